"""HIC's meshes become parameters whose vertices are the meshes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_pairs

from interhand_prior.data.hic import HIC
from interhand_prior.hands import open_hands


def write_ply(path: Path, vertices: np.ndarray, binary: bool) -> None:
    path.parent.mkdir(exist_ok=True)
    form = "binary_little_endian" if binary else "ascii"
    names = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"ply\nformat {form} 1.0\nelement vertex {len(vertices)}\n{names}element face 0\nend_header\n"
    rows = "\n".join(" ".join(map(repr, row)) for row in vertices.tolist())
    path.write_bytes(head.encode() + (vertices.astype("<f4").tobytes() if binary else rows.encode()))


def test_hic_is_read_at_vertex_level(tmp_path):
    pairs = replace(random_pairs(3, seed=11), hands=open_hands())
    annotations, images = [], []
    for index in range(3):
        item = {"id": index, "image_id": index, "hand_type": "interacting" if index else "left"}
        for side, vertices in zip(("left", "right"), pairs.vertices(), strict=True):
            name = f"mano/{index}_{side}.ply"
            write_ply(tmp_path / name, vertices[index].numpy(), binary=side == "left")
            item[f"{side}_mano_path"] = None if (index, side) == (0, "right") else name
        annotations.append(item)
        images.append({"id": index, "file_name": f"01/rgb/{index:05d}.jpg"})
    (tmp_path / "HIC.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (batch,) = HIC.read(tmp_path, open_hands())
    assert batch.hands.valid[0].tolist() == [True, True, True]
    assert batch.hands.valid[1].tolist() == [False, True, True]
    assert batch.hands.extras["interacting"].tolist() == [False, True, True]
    for found, wanted, there in zip(batch.hands.vertices(), pairs.vertices(), batch.hands.valid, strict=True):
        torch.testing.assert_close(found[there].double(), wanted[there], rtol=0, atol=1e-5)
    (tmp_path / "mano/1_left.ply").write_text("ply\n")
    with pytest.raises(ValueError, match=r"1_left.ply should be a .ply of 778 vertices"):
        list(HIC.read(tmp_path, open_hands()))
    (tmp_path / "mano/1_left.ply").unlink()
    with pytest.raises(FileNotFoundError, match=r"HIC.json names it"):
        list(HIC.read(tmp_path, open_hands()))
