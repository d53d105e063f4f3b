"""What `data_card.py` measures on the meshes of pairs: penetration, nearness, which parts touch, room for forearms.

    touching parts   (a, b): a vertex of part a of one hand lies within 3 mm of the skin of the other hand, and the
                     nearest vertex there belongs to part b.  Distances to skin are exact, to the nearest triangle.
    forearms         straight behind the wrist, and bent by what wrists do: whether the arms then have room (the
                     generator's arms and limits, `arms`, but against the mesh of the other hand, not its balls)

Parts are read off the unposed hand: the joint that moves a vertex most names the finger, a normal within 37
degrees of the finger's own direction is its tip's, and else the angle between the normal and the palmar direction
across the finger tells pad (within 60 degrees), back (beyond 120) and side.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interhand_prior import TwoHands
from interhand_prior.data.synthetic.arms import ALONG, ELBOW, ELBOWS_APART, RADII, bend_directions
from interhand_prior.data.synthetic.pairs import ARM_OVERLAP
from interhand_prior.geometry import nearest_vertices, vertex_normals
from interhand_prior.hands import TIP_IDS, HandModel, sealed_vertices
from interhand_prior.metrics.penetration import penetration_distance, penetration_volume
from interhand_prior.metrics.penetration_depth import triangle_distances
from interhand_prior.progress import progress_bar
from interhand_prior.rotations import axis_angle_to_matrix

TOUCH_MM = 3.0
#: A point of a triangle is at most 1 / sqrt(3) of its longest edge from a corner; posed skin stretches by some 30 %.
_REACH = 1.3 / 3**0.5
FINGERS = ("thumb", "index", "middle", "ring", "little")
_FIRST_JOINT = {"index": 1, "middle": 4, "little": 7, "ring": 10, "thumb": 14}  # the thumb's metacarpal is palm
_THUMB_FLEXION = (0.43, -0.82, 0.39)  # axis of its middle joint, right hand (MANO's convention)
FACES = ("pad", "tip", "side", "back")
HAND_PARTS = ("palm", "back of hand", "edge of hand", "wrist")
PARTS = (*(f"{finger} {face}" for finger in FINGERS for face in FACES), *HAND_PARTS)
#: Rows and columns of the printed matrix.
GROUPS = (*FINGERS, *HAND_PARTS)

Values = dict[str, NDArray[Any]]
_CHUNK = 64


@lru_cache(maxsize=4)
def part_of_vertex(model: HandModel) -> Tensor:
    """(778,) place in `PARTS` of each vertex of a right hand (and of its mirror image, which has the same vertices)."""
    rest = model.arrays.v_template
    vertices = torch.from_numpy(rest)
    normals = vertex_normals(vertices, model.faces)
    joint = torch.from_numpy(model.arrays.weights).argmax(1)
    joints = model.rest_joints(vertices.new_zeros(10))
    tips = dict(zip(FINGERS, vertices[list(TIP_IDS)], strict=True))  # TIP_IDS has the same order
    down = -normals[:, 1]
    label = torch.where(down >= 0.5, 0, torch.where(down <= -0.5, 1, 2)) + PARTS.index("palm")
    label[(joint == 0) & (vertices[:, 0] > joints[0, 0] - 0.01)] = PARTS.index("wrist")
    for finger in FINGERS:
        first = _FIRST_JOINT[finger]
        last = 15 if finger == "thumb" else first + 2
        along = torch.nn.functional.normalize(tips[finger] - joints[first], dim=0)
        palmar = vertices.new_tensor((0.0, -1.0, 0.0))
        if finger == "thumb":
            palmar = torch.linalg.cross(vertices.new_tensor(_THUMB_FLEXION), along)
        palmar = torch.nn.functional.normalize(palmar - (palmar @ along) * along, dim=0)
        across = torch.nn.functional.normalize(normals - (normals @ along)[:, None] * along, dim=1)
        facing = across @ palmar
        face = torch.where(facing >= 0.5, 0, torch.where(facing <= -0.5, 3, 2))
        face[normals @ along > 0.8] = 1
        own = (joint >= first) & (joint <= last)
        label[own] = PARTS.index(f"{finger} pad") + face[own]
    return label


@lru_cache(maxsize=1)
def group_of_part() -> NDArray[np.int64]:
    """(24,) place in `GROUPS` of each part: fingers without their faces."""
    name = lambda part: part.split(" ")[0] if part.split(" ")[0] in FINGERS else part
    return np.array([GROUPS.index(name(part)) for part in PARTS])


@torch.no_grad()
def measure_surfaces(pairs: TwoHands) -> Values:
    """Everything about some pairs, (N,) by name; one process.

    Returns:
        ``depth_mm`` of the deepest vertex and ``volume_cm3`` shared (NaN where the operation failed), both exact;
        ``gap_mm`` between the skins (0 inside; between vertices beyond 3 mm, which is at most a little more);
        ``touching`` (N, 24, 24) bool, left part by right part; ``straight_arms_free``, ``arms_free`` bool.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        meshes = part.vertices()
        gap, touching = contacts(part, meshes)
        straight, bent = arms_free(part, meshes)
        depth = penetration_distance(part) * 10
        row = {
            "depth_mm": depth,
            "volume_cm3": penetration_volume(part, workers=1).cm3,
            "gap_mm": torch.where(depth > 0, torch.zeros_like(gap), gap),
            "touching": touching,
            "straight_arms_free": straight,
            "arms_free": bent,
        }
        for name, value in row.items():
            found.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


def measure_all(pairs: TwoHands, workers: int = 1, progress: bool = False, chunk: int = 4 * _CHUNK) -> Values:
    """`measure_surfaces`, in several processes if asked; the numbers are the same."""
    chunks = [pairs[i : i + chunk] for i in range(0, len(pairs), chunk)]
    parts: list[Values] = []
    with progress_bar(len(pairs), "meshes", "pair", progress) as advance:
        if workers <= 1 or len(chunks) == 1:
            for some in chunks:
                parts.append(measure_surfaces(some))
                advance(len(some))
        else:
            with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
                for some, done in zip(chunks, pool.map(_one_thread, chunks), strict=True):
                    parts.append(done)
                    advance(len(some))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _one_thread(pairs: TwoHands) -> Values:
    torch.set_num_threads(1)
    return measure_surfaces(pairs)


def contacts(pairs: TwoHands, meshes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Gap between the skins (N,) in mm, and which parts touch, (N, 24, 24): left part by right part."""
    model = pairs.model
    label = part_of_vertex(model.right)
    touching = torch.zeros(len(pairs), len(PARTS), len(PARTS), dtype=torch.bool)
    gaps = []
    for side in (0, 1):
        points, surface = meshes[side], meshes[1 - side]
        around, far = _surroundings((model.left, model.right)[1 - side])
        square, index = nearest_vertices(points, surface)
        reach = square.sqrt() * 1e3
        gap = reach.amin(1)
        sample, vertex = (reach <= TOUCH_MM + far[index]).nonzero(as_tuple=True)
        corners = sealed_vertices(surface)[sample[:, None], around[index[sample, vertex]]]  # M, 3 T, 3
        each, triangles = torch.arange(len(sample)), torch.arange(around.shape[1]).view(-1, 3)
        distance = triangle_distances(points[sample, vertex], corners, triangles, each) * 1e3
        gaps.append(gap.scatter_reduce(0, sample, distance, "amin"))
        near = distance <= TOUCH_MM
        sample, vertex = sample[near], vertex[near]
        own, other = label[vertex], label[index[sample, vertex]]
        touching[(sample, own, other) if side == 0 else (sample, other, own)] = True
    return torch.minimum(*gaps), touching


@lru_cache(maxsize=4)
def _surroundings(model: HandModel) -> tuple[Tensor, Tensor]:
    """(778, 3 T) corners of the triangles round a vertex and its neighbours, the first one repeated to fill; and (778,)
    how far, in mm, points of these triangles may be from the nearest vertex.
    """
    faces, vertices = model.sealed_faces, sealed_vertices(torch.from_numpy(model.arrays.v_template).float())
    corners = vertices[faces]
    longest = (corners - corners.roll(1, 1)).norm(dim=-1).amax(1)
    ring = torch.zeros(779, 779, dtype=torch.bool)
    ring[faces[:, :, None], faces[:, None, :]] = True
    near = ring[:, faces].any(2)[:778]  # vertex, triangle
    lists = [row.nonzero()[:, 0] for row in near]
    width = max(map(len, lists))
    around = torch.stack([faces[torch.cat([own, own[:1].expand(width - len(own))])].flatten() for own in lists])
    return around, torch.stack([longest[own].amax() for own in lists]) * _REACH * 1e3


def arms_free(pairs: TwoHands, meshes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Whether there is room for both forearms, straight behind the wrists, and for some bend of both: (N,) each."""
    bends = bend_directions()
    straight = _room(pairs, meshes, bends[bends[:, :1].argmax(0)])
    bent = straight.clone()
    rows = (~straight).nonzero()[:, 0]
    if len(rows):
        bent[rows] = _room(pairs[rows], (meshes[0][rows], meshes[1][rows]), bends)
    return straight, bent


def _room(pairs: TwoHands, meshes: tuple[Tensor, Tensor], bends: Tensor) -> Tensor:
    """(N,) whether any of the directions (B, 3), a right hand's, of the left arm goes with any of the right one."""
    count, steps = len(bends), torch.cat([ALONG, ALONG.new_tensor([ELBOW])])[:, None]
    arms, elbows, free = [], [], []
    for side, hand in enumerate((pairs.left, pairs.right)):
        model = (pairs.model.left, pairs.model.right)[side]
        wrist = (model.rest_joints(hand.betas)[:, 0] + hand.transl) * 1e3
        directions = bends * bends.new_tensor([-1.0 if side == 0 else 1.0, 1.0, 1.0])
        turned = directions @ axis_angle_to_matrix(hand.global_orient).mT  # N, B, 3
        places = wrist[:, None, None] + turned[:, :, None] * steps  # N, B, K + 1, 3
        arms.append(places[:, :, :-1].flatten(1, 2))
        elbows.append(places[:, :, -1])
        clear = nearest_vertices(arms[-1], meshes[1 - side] * 1e3).squared_distance.sqrt() - RADII.repeat(count)
        free.append(clear.unflatten(1, (count, -1)).amin(2) > -ARM_OVERLAP)
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(arms[0], arms[1], compute_mode=exact) - RADII.repeat(count)[:, None] - RADII.repeat(count)
    apart = apart.unflatten(2, (count, -1)).unflatten(1, (count, -1)).amin((2, 4))  # N, B, B
    between = torch.cdist(elbows[0], elbows[1], compute_mode=exact)
    clear = (apart > -ARM_OVERLAP) & (between >= ELBOWS_APART[0]) & (between <= ELBOWS_APART[1])
    return (clear & free[0][:, :, None] & free[1][:, None]).any(2).any(1)
