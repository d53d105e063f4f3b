"""A plain training loop with the prior in it: a small network corrects the two hands of a single-hand estimator.

The estimator sees one hand at a time, so its hands are badly placed to each other, above all in depth. Only one
training pair in ten has 3D labels; the rest have what pictures have, 2D joints. A hand is missing in some pairs, both
in a few. The prior enters the loss in one line, marked below. It judges the network's hands and needs no label. The
network is trained without and with that line, and both are measured on new pairs.

    python examples/training_loop.py

The step is a function of (network, batch, prior), so it goes into any framework's loop as it is. In Lightning:

    class Correction(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = Corrector()
            self.critic = [load_prior()]  # in a list: the checkpoint and the optimizer are not to see it

        def on_fit_start(self):
            self.critic[0].to(self.device)

        def training_step(self, batch, batch_idx):
            losses = training_step(self.network, batch, self.critic[0])
            self.log_dict(losses)
            return losses["loss"]

        def configure_optimizers(self):
            return torch.optim.AdamW(self.network.parameters(), 1e-3)
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from interhand_prior import HandParams, TwoHandPrior, TwoHands, load_prior, sample, sds_loss

STD_LABEL = 0.02  # metres: how far from a joint's label such a network remains
#: Errors of the estimator: radians, units of shape, metres along x, y and z.
STD = {"global_orient": (0.15,), "hand_pose": (0.2,), "betas": (0.5,), "transl": (0.005, 0.005, 0.03)}
WIDTHS = (3, 45, 10, 3)
SCALE = torch.cat([torch.tensor(std).expand(width) for std, width in zip(STD.values(), WIDTHS, strict=True)])

Batch = Mapping[str, Tensor]


class Corrector(nn.Module):
    """Estimates of both hands -> better ones. It starts as the identity."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        size = 2 * sum(WIDTHS)
        hidden = nn.Linear(size + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        self.body = nn.Sequential(*hidden, nn.Linear(width, size))
        nn.init.zeros_(self.body[-1].weight)
        nn.init.zeros_(self.body[-1].bias)

    def forward(self, estimate: Tensor, present: Tensor) -> tuple[HandParams, HandParams]:
        """Parameters (B, 2, 61), zero where a hand is missing, and (B, 2) bool -> left hand, right hand."""
        change = self.body(torch.cat((estimate.flatten(1), present.to(estimate)), -1)).unflatten(-1, (2, -1))
        left, right = (estimate + SCALE.to(estimate) * change).unbind(1)
        return HandParams(*left.split(WIDTHS, -1)), HandParams(*right.split(WIDTHS, -1))


def training_step(
    network: nn.Module, batch: Batch, prior: TwoHandPrior, weight: float = 1.0, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The losses of a batch: `loss` is to be minimised, the others are its parts.

    Args:
        network: estimates and presence -> left and right hand.
        batch: estimate (B, 2, 61); present (B, 2) bool; joints (B, 2, 21, 3) in metres, whose depth counts only where
            labelled (B,) is True.
        prior: from `load_prior`.
        weight: of the prior. The task's terms are squared errors over squared standard deviations, so 1 is natural.
        generator: of the prior's noise.
    """
    present = batch["present"]
    left, right = network(batch["estimate"], present)
    off = (torch.stack(TwoHands(left, right, prior.hands).joints21(), 1) - batch["joints"]) / STD_LABEL
    off = torch.cat((off[..., :2], off[..., 2:] * batch["labelled"][:, None, None, None]), -1)
    found = torch.stack([torch.cat(list(hand.as_dict().values()), -1) for hand in (left, right)], 1)
    away = (found - batch["estimate"]) / SCALE.to(found)
    per_hand = (off.square().sum((-2, -1)) + away.square().sum(-1)) / 2
    task_loss = torch.where(present, per_hand, 0).sum(-1).mean()

    # gate=False: all of these pairs interact. Leave that out where hands may be far apart.
    options = {"gate": False, "generator": generator}
    masks = {"left_valid": present[:, 0], "right_valid": present[:, 1]}
    prior_loss = sds_loss(prior, left, right, **masks, **options) if weight else torch.zeros(())  # <- the one line
    return {"loss": task_loss + weight * prior_loss, "task_loss": task_loss, "prior_loss": prior_loss}


def make_batch(pairs: TwoHands, labelled: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """What the estimator says of pairs, what is known of them, and who is there: each hand in nine pairs of ten."""
    present = torch.rand(len(pairs), 2, generator=generator) > 0.1
    truth = torch.stack([torch.cat(list(hand.as_dict().values()), -1) for hand in (pairs.left, pairs.right)], 1)
    estimate = truth + SCALE * torch.randn(truth.shape, generator=generator)
    estimate = torch.where(present[..., None], estimate, 0)
    joints = torch.stack(pairs.joints21(), 1)
    return {"estimate": estimate, "joints": joints, "present": present, "labelled": labelled}


def train(
    pairs: TwoHands, labelled: Tensor, prior: TwoHandPrior, weight: float, steps: int, batch_size: int, seed: int
) -> nn.Module:
    """A network after so many steps; `labelled` (N,) says which pairs have 3D labels."""
    torch.manual_seed(seed)  # of its weights
    network, generator = Corrector(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(pairs), (batch_size,), generator=generator)
        batch = make_batch(pairs[chosen], labelled[chosen], generator)  # augmented: other errors every time
        losses = training_step(network, batch, prior, weight, generator)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        schedule.step()
    return network


@torch.no_grad()
def errors(network: nn.Module, data: Batch, prior: TwoHandPrior) -> tuple[float, float]:
    """Mean joint error of each hand about its wrist, and error of wrist to wrist (MPJPE, MRRPE), mm."""
    left, right = network(data["estimate"], data["present"])
    off = torch.stack(TwoHands(left, right, prior.hands).joints21(), 1) - data["joints"]
    mpjpe = (off - off[:, :, :1]).norm(dim=-1).mean(-1)[data["present"]].mean()
    mrrpe = (off[:, 1, 0] - off[:, 0, 0]).norm(dim=-1)[data["present"].all(-1)].mean()
    return 1e3 * float(mpjpe), 1e3 * float(mrrpe)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Train without and with the prior; returns the errors on new pairs, those of the estimator first."""
    parser = argparse.ArgumentParser(description="Train a network without and with the prior.")
    parser.add_argument("--prior", default="bundled", help="'bundled', a folder, or 'owner/repo' on the Hub")
    parser.add_argument("--num", type=int, default=512, help="training pairs, and half as many to measure on")
    parser.add_argument("--labelled", type=float, default=0.1, help="share of training pairs with 3D labels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--weight", type=float, default=1.0, help="of the prior")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    prior, generator = load_prior(args.prior), torch.Generator().manual_seed(args.seed)
    pairs = sample(prior, args.num + args.num // 2, seed=args.seed, steps=15, penetration_scale=0)
    known, new = pairs[: args.num], pairs[args.num :]
    labelled = torch.rand(args.num, generator=generator) < args.labelled
    test_data = make_batch(new, torch.ones(len(new), dtype=torch.bool), generator)
    rows = {"estimator": errors(Corrector(), test_data, prior)}
    for name, weight in (("without prior", 0.0), ("with prior", args.weight)):
        network = train(known, labelled, prior, weight, args.steps, args.batch_size, args.seed)
        rows[name] = errors(network, test_data, prior)
    print(f"{'':15s} {'MPJPE mm':>9s} {'MRRPE mm':>9s}")
    for name, (mpjpe, mrrpe) in rows.items():
        print(f"{name:15s} {mpjpe:9.2f} {mrrpe:9.2f}")
    return rows


if __name__ == "__main__":
    main()
