"""A fit with smplx's own layers, and the prior in it: two MANO hands laid onto the 2D joints of one camera.

The loop is the usual one: `smplx.create`, the layers' parameters as leaves, Adam, a loss on joints. The prior enters it
in one line, marked below. It wants the finger pose as an absolute one, whatever the layer was made with (`use_pca`,
`flat_hand_mean`): `PoseForm.of_layer` turns the layer's `hand_pose` into that, and the gradient back.

    pip install smplx
    python examples/smplx_fitting.py                        # the bundled open hand, written as MANO files
    python examples/smplx_fitting.py --mano body_models     # your folder with mano/MANO_RIGHT.pkl, as smplx wants it
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior, sample, sds_loss
from interhand_prior.convert import PoseForm
from interhand_prior.hands import HandPair, load_hands
from interhand_prior.hands.export import export_mano

Layers = tuple[nn.Module, nn.Module]

STD, DEPTH_STD = 0.003, 0.03  # metres: of a joint in the picture, and of a hand's depth
STEP = {"global_orient": 0.02, "hand_pose": 0.02, "betas": 0.05, "transl": 0.002}


def make_layers(folder: Path, number: int, **options: object) -> Layers:
    """The left and the right layer, with the parameters of `number` hands each."""
    import smplx

    with contextlib.redirect_stdout(io.StringIO()):  # smplx prints how many betas it uses
        left, right = (
            smplx.create(str(folder), "mano", is_rhand=is_right, batch_size=number, **options)
            for is_right in (False, True)
        )
    if (left.shapedirs[:, 0] - right.shapedirs[:, 0]).abs().sum() < 1:  # a bug of the released MANO_LEFT.pkl
        left.shapedirs[:, 0] *= -1
    return left, right


def joints_of(layers: Layers) -> Tensor:
    """What the layers' parameters make: 16 joints and 5 tips of both hands, (N, 2, 21, 3), metres."""
    outputs = [(layer, layer()) for layer in layers]
    return torch.stack([layer.vertex_joint_selector(out.vertices, out.joints) for layer, out in outputs], 1)


def fit(
    layers: Layers,
    image: Tensor,
    depth: Tensor,
    *,
    prior: TwoHandPrior | None = None,
    hands: HandPair | None = None,
    weight: float = 1.0,
    steps: int = 100,
    seed: int = 0,
) -> Tensor:
    """Fit the layers' parameters, from where they are, and return the joints (N, 2, 21, 3) that they then make.

    Args:
        layers: left and right; their parameters are changed.
        image: (N, 2, 21, 2) noisy joints before an orthographic camera, left hand first, metres.
        depth: (N, 2) rough depth of each hand's middle, metres.
        prior: from `load_prior`; None fits without.
        hands: `load_hands(layers)`: the prior has to know where the layers' knuckles are.
        weight: of the prior; the other terms are squared errors over squared standard deviations, so 1 is natural.
        steps: of Adam.
        seed: of the prior's noise.
    """
    forms = [PoseForm.of_layer(layer) for layer in layers]
    groups = [{"params": [getattr(layer, name) for layer in layers], "lr": lr} for name, lr in STEP.items()]
    optimizer = torch.optim.Adam(groups, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        left, right = (
            HandParams(layer.global_orient, form.to_pose(layer.hand_pose), layer.betas, layer.transl)
            for layer, form in zip(layers, forms, strict=True)
        )
        joints = joints_of(layers)
        loss = ((joints[..., :2] - image) / STD).square().sum() / 2
        loss = loss + ((joints[..., 2].mean(-1) - depth) / DEPTH_STD).square().sum() / 2
        for layer in layers:
            loss = loss + layer.betas.square().sum() / 2 + (layer.hand_pose / 0.5).square().sum() / 2

        if prior is not None:
            critic = {"hands": hands, "reduction": "sum", "generator": generator}
            loss = loss + weight * sds_loss(prior, left, right, **critic)  # <- the one line
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return joints_of(layers).detach()


@torch.no_grad()
def write(layers: Layers, pairs: TwoHands) -> None:
    """Put pairs into the layers' parameters."""
    for layer, hand in zip(layers, (pairs.left, pairs.right), strict=True):
        pose = PoseForm.of_layer(layer).from_pose(hand.hand_pose)
        for name, value in {**hand.as_dict(), "hand_pose": pose}.items():
            getattr(layer, name).copy_(value)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Fit without and with the prior and print both errors (MPJPE and MRRPE, mm); returns them."""
    parser = argparse.ArgumentParser(description="Fit smplx's MANO layers without and with the prior.")
    parser.add_argument("--prior", default="bundled", help="'bundled', a folder, or 'owner/repo' on the Hub")
    parser.add_argument("--mano", type=Path, help="folder that holds mano/; default: the open hand")
    parser.add_argument("--num", type=int, default=16, help="pairs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--weight", type=float, default=1.0, help="of the prior")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    prior = load_prior(args.prior)
    with tempfile.TemporaryDirectory() as folder:
        if args.mano is None:
            export_mano(Path(folder) / "mano")
        layers = make_layers(args.mano or Path(folder), args.num, use_pca=False, flat_hand_mean=False)
    hands = load_hands(layers)

    pairs = sample(prior, args.num, seed=args.seed)
    write(layers, pairs)
    truth, draw = joints_of(layers).detach(), torch.Generator().manual_seed(args.seed)
    normal = lambda like: torch.randn(like.shape, generator=draw)
    image = truth[..., :2] + STD * normal(truth[..., :2])
    off = DEPTH_STD * normal(truth[..., 0, 0])  # one error for each hand: it is too near or too far
    std = {"global_orient": 0.2, "hand_pose": 0.2, "betas": 0.5, "transl": 0.01}  # of the estimate to start from
    noisy = lambda hand: HandParams(
        **{name: value + std[name] * normal(value) for name, value in hand.as_dict().items()}
    )
    start = TwoHands(noisy(pairs.left), noisy(pairs.right))

    rows = {}
    print(f"{'':15s} {'MPJPE mm':>9s} {'MRRPE mm':>9s}")
    for name, critic in (("without prior", None), ("with prior", prior)):
        write(layers, start)
        options = {"prior": critic, "hands": hands, "weight": args.weight, "steps": args.steps, "seed": args.seed}
        error = fit(layers, image, truth[..., 2].mean(-1) + off, **options) - truth
        mpjpe = (error - error[:, :, :1]).norm(dim=-1).mean()
        mrrpe = (error[:, 1, 0] - error[:, 0, 0]).norm(dim=-1).mean()
        rows[name] = (1e3 * float(mpjpe), 1e3 * float(mrrpe))
        print(f"{name:15s} {rows[name][0]:9.2f} {rows[name][1]:9.2f}")
    return rows


if __name__ == "__main__":
    main()
