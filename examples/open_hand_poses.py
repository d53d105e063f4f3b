"""The bundled open hand in seven poses, from the palm, the back and the side.

    python examples/open_hand_poses.py --out open_hand.png

Needs `pip install "interhand_prior[viewer,build]"`: the poses are the ones that the hand's build checks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from interhand_prior import HandParams
from interhand_prior.hands import open_hands
from interhand_prior.hands.build.poses import named_poses
from interhand_prior.viewer.png import write_png
from interhand_prior.viewer.sheet import contact_sheet

PALM, BACK, SIDE = (0.0, -1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def main(argv: Sequence[str] | None = None) -> Path:
    """Draw the sheet: a row for each pose, a column for each view of the right hand."""
    parser = argparse.ArgumentParser(description="Draw the open hand in named poses.")
    parser.add_argument("--out", type=Path, default=Path("open_hand.png"))
    parser.add_argument("--size", type=int, default=280, help="pixels of a picture's side")
    args = parser.parse_args(argv)

    poses = named_poses()
    hand_pose = torch.tensor(np.stack([p[1:].ravel() for p in poses.values()]), dtype=torch.float32)
    zero = torch.zeros(len(poses), 3)
    right = open_hands().right
    vertices, _ = right(HandParams(zero, hand_pose, torch.zeros(len(poses), 10), zero))
    image = contact_sheet(
        [vertices],
        [right.faces],
        size=args.size,
        views=(PALM, BACK, SIDE),
        up=(-1.0, 0.0, 0.0),
        columns=2,
        labels=list(poses),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return write_png(image, args.out)


if __name__ == "__main__":
    print(main())
