r"""Fit the tilt of the loose placements; writes `fitted_placement.py`.

``python -m interhand_prior.data.synthetic.fit_placement`` (about two minutes, deterministic).

Solves the dual of the maximum-entropy problem,

.. math::  \min_\lambda \log \mathrm{mean}\, e^{\lambda \cdot (F - F^*)} + \rho |\lambda|^2,

by Newton's method over candidates that pass the collision tests, where F* is what the loose half must have for the
whole corpus to meet the published moments, given the named kinds' own (as solved on the balls: finishing on the mesh
moves hands by a millimetre).
"""

from __future__ import annotations

import argparse
import pprint
from pathlib import Path

import torch
from torch import Tensor

from . import fitted_placement
from .contact import solve
from .loose import draw_candidates
from .marginals import REL_MEAN, REL_VAR
from .placement import KIND_POWER, _start_tilt, draw_starts, moments

_ROTATION = [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14]  # of the eighteen moments

HEADER = '''# fmt: off
"""Numbers of the loose placements, written by ``python -m interhand_prior.data.synthetic.fit_placement``.

Do not edit. START_TILT tilts the starts (`placement`), TILT the loose placements (`loose`).
"""

from __future__ import annotations

'''


def max_entropy(features: Tensor, target: Tensor, ridge: float = 2e-4, steps: int = 100) -> tuple[Tensor, float]:
    """lambda (18,) in the units of the features, and the effective share of the sample it leaves."""
    scale = features.std(0)
    z = ((features - target) / scale).double()
    tilt = torch.zeros(z.shape[1], dtype=torch.float64)

    def value(t: Tensor) -> Tensor:
        return torch.logsumexp(z @ t, 0) + ridge * t @ t

    for _ in range(steps):
        w = torch.softmax(z @ tilt, 0)
        mean = w @ z
        grad = mean + 2 * ridge * tilt
        hessian = (z * w[:, None]).T @ z - mean[:, None] * mean + 2 * ridge * torch.eye(len(tilt), dtype=torch.float64)
        move = torch.linalg.solve(hessian, grad)
        size = 1.0
        while value(tilt - size * move) > value(tilt) - 1e-4 * size * grad @ move and size > 1e-6:
            size /= 2
        tilt = tilt - size * move
        if float(grad.abs().amax()) < 1e-7:
            break
    w = torch.softmax(z @ tilt, 0)
    return tilt / scale.double(), float(1 / (w * w).sum() / len(w))


def main() -> None:
    """Fit on fresh contacts and candidates, and write the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("fitted_placement.py"))
    parser.add_argument("--named", type=int, default=2048)
    parser.add_argument("--candidates", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=1_000_003)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(args.seed)
    pairs = draw_starts(12_000, generator, power=0.0)[0]
    whole = torch.cat([REL_MEAN, REL_VAR + REL_MEAN**2])
    start_tilt = torch.zeros(18, dtype=torch.float64)
    features = moments(pairs.rotation, pairs.translation)
    start_tilt[_ROTATION], share = max_entropy(features[:, _ROTATION], whole[_ROTATION], ridge=0.02)
    print(f"starts: effective share {share:.3f}")
    fitted_placement.START_TILT = [round(float(v), 3) for v in start_tilt]
    _start_tilt.cache_clear()
    solved = []
    for _ in range(args.named // 256):
        start, goal, _, _ = draw_starts(256, generator, power=KIND_POWER, keep_kinds=True)
        done = solve(start, goal)[0]
        solved.append(moments(done.rotation, done.translation))
    named = torch.cat(solved).mean(0)
    free = []
    for _ in range(args.candidates // 1000):
        pairs = draw_candidates(1000, generator, tilted=False)[0]
        free.append(moments(pairs.rotation, pairs.translation))
    features = torch.cat(free)
    tilt, share = max_entropy(features, 2 * whole - named)
    print(f"named: mean {[round(float(v), 3) for v in named[:9]]}")
    print(f"named: variance {[round(float(v), 4) for v in named[9:] - named[:9] ** 2]}")
    print(f"{len(features)} candidates, effective share {share:.3f}")
    text = HEADER
    for name, values in (("START_TILT", start_tilt), ("TILT", tilt)):
        numbers = pprint.pformat([round(float(v), 3) for v in values], width=90, compact=True)
        text += f"{name}: list[float] = {numbers}\n"
    args.out.write_text(text)


if __name__ == "__main__":
    main()
