"""Pictures and mesh files, against slow twins, closed forms and foreign readers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from helpers import random_pairs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from interhand_prior import HandParams, TwoHands
from interhand_prior.hands import open_hands
from interhand_prior.viewer import contact_sheet, write_png
from interhand_prior.viewer.camera import best_directions, fit_camera, look, upward
from interhand_prior.viewer.light import MAP, studio, visibility
from interhand_prior.viewer.mesh_files import SUFFIXES
from interhand_prior.viewer.png import encode_png
from interhand_prior.viewer.rasterizer import depth_buffer, rasterize
from interhand_prior.viewer.sheet import _columns
from interhand_prior.viewer.surface import Surface, Topology, boundary_loops, join, vertex_normals

SIZE = 64
WRIST_LOOP = {108, 79, 78, 121, 214, 215, 279, 239, 234, 92, 38, 122, 118, 117, 119, 120}


def facing_pair() -> TwoHands:
    """Two flat hands side by side, 12 cm apart."""
    zero = HandParams(torch.zeros(3), torch.zeros(45), torch.zeros(10), torch.zeros(3))
    moved = HandParams(torch.zeros(3), torch.zeros(45), torch.zeros(10), torch.tensor([0.0, 0.0, 0.2]))
    return TwoHands(zero, moved)


def pairs(count: int) -> TwoHands:
    return random_pairs(count, seed=3, dtype=torch.float32)


def sphere(subdivisions: int = 3, radius: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    ball = trimesh.creation.icosphere(subdivisions, radius)
    return ball.vertices.astype(np.float32), ball.faces.astype(np.int64)


def as_surface(vertices: np.ndarray, faces: np.ndarray, part: int = 0, levels: int = 0) -> Surface:
    return Topology(faces, len(vertices), levels).surface(vertices, part)


# ---- rasteriser -----------------------------------------------------------------------------------------------------


def naive_depth(xy: np.ndarray, z: np.ndarray, faces: np.ndarray, height: int, width: int) -> np.ndarray:
    """One pixel and one triangle at a time; NaN where a pixel's centre is within 1e-3 of an edge."""
    buffer, unsure = np.full((height, width), np.inf), np.zeros((height, width), bool)
    for a, b, c in faces:
        corners = xy[[a, b, c]].astype(np.float64)
        matrix = np.vstack([corners.T, np.ones(3)])
        if abs(np.linalg.det(matrix)) < 0.1:
            continue
        sides = [np.linalg.norm(corners[(k + 1) % 3] - corners[(k + 2) % 3]) for k in range(3)]
        heights = abs(np.linalg.det(matrix)) / np.array(sides)
        for i in range(height):
            for j in range(width):
                weights = np.linalg.solve(matrix, [j + 0.5, i + 0.5, 1.0])
                distance = weights * heights  # to each edge
                if distance.min() > 1e-3:
                    buffer[i, j] = min(buffer[i, j], weights @ z[[a, b, c]])
                elif distance.min() > -1e-3:
                    unsure[i, j] = True
    return np.where(unsure, np.nan, buffer)


@given(st.integers(0, 10_000))
def test_rasteriser_equals_its_naive_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = 9, 12
    xy = rng.uniform(-3, 15, (9, 2)).astype(np.float32)
    if seed % 2:
        xy = np.round(xy * 2) / 2  # corners on centres and borders of pixels, level edges
    z = rng.uniform(1, 2, 9).astype(np.float32)
    faces = rng.permutation(9).reshape(3, 3)
    # Triangles too thin for the twin's arithmetic are left out of both.
    e = xy[faces[:, 1:]] - xy[faces[:, :1]]
    faces = faces[np.abs(e[:, 0, 0] * e[:, 1, 1] - e[:, 0, 1] * e[:, 1, 0]) >= 0.1]
    expected = naive_depth(xy, z, faces, height, width)
    found = depth_buffer(xy, z, faces, height, width)
    sure = ~np.isnan(expected)
    np.testing.assert_allclose(found[sure], expected[sure], atol=1e-4)

    hit = rasterize(xy, z, faces, height, width)
    assert np.array_equal(hit.pixel, np.flatnonzero(np.isfinite(found)))
    corner = faces[hit.face]
    np.testing.assert_allclose(hit.weights.sum(1), 1, atol=1e-5)
    near = (hit.weights * z[corner]).sum(1)
    np.testing.assert_allclose(near, found.reshape(-1)[hit.pixel], atol=2e-2)
    row, column = np.divmod(hit.pixel, width)
    place = (hit.weights[..., None] * xy[corner]).sum(1)
    np.testing.assert_allclose(place, np.stack([column, row], 1) + 0.5, atol=2e-2)


@given(st.integers(0, 10_000))
def test_neighbouring_triangles_leave_no_crack(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, size = 7, 40
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).astype(np.float32).reshape(-1, 2)
    inside = ((grid > 0) & (grid < n - 1)).all(1, keepdims=True)
    grid += rng.uniform(-0.25, 0.25, grid.shape).astype(np.float32) * inside
    xy = grid * np.float32(size / (n - 1))
    corner = np.arange(n * n).reshape(n, n)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])
    assert np.isfinite(depth_buffer(xy, np.ones(len(xy), np.float32), faces, size, size)).all()


def test_triangles_off_the_picture_and_without_area_are_nothing() -> None:
    xy = np.array([[-9, -9], [-5, -9], [-5, -4], [2, 2], [5, 5], [8, 8], [3, 4.5], [6, 4.5], [9, 4.5]], np.float32)
    faces = np.arange(9).reshape(3, 3)
    assert len(rasterize(xy, np.ones(9, np.float32), faces, 10, 10).pixel) == 0


def test_a_ball_covers_a_disc() -> None:
    vertices, faces = sphere(4)
    xy = vertices[:, :2] * 40 + 50
    covered = len(rasterize(xy, vertices[:, 2] + 2, faces, 100, 100).pixel)
    assert covered == pytest.approx(np.pi * 40**2, rel=5e-3)
    depth = depth_buffer(xy, vertices[:, 2] + 2, faces, 100, 100)
    assert depth.min() == pytest.approx(1, abs=2e-3)


# ---- surface --------------------------------------------------------------------------------------------------------


def test_the_open_hand_has_one_border_and_its_cap_closes_it() -> None:
    vertices, faces = (a.numpy() for a in (open_hands().right.v_template, open_hands().right.faces))
    (loop,) = boundary_loops(faces)
    assert set(loop) == WRIST_LOOP
    volumes = []
    for levels in (0, 1, 2):
        surface = as_surface(vertices, faces, levels=levels)
        assert surface.cut.sum() == 16 * 2**levels + 1
        # Merged, the rim and its copy are one: a closed body with its inside inside.
        body = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
        body.merge_vertices(digits_vertex=7)
        assert body.is_watertight
        volumes.append(body.volume)
        assert len(surface.vertices) == len(surface.normals) == len(surface.part)
        np.testing.assert_allclose(np.linalg.norm(surface.normals, axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(surface.vertices[:778], vertices)
        # The cap looks out of the wrist, away from the fingers (-x).
        assert surface.normals[surface.cut][0] @ np.array([1, 0, 0]) > 0.9
    assert volumes[0] > 1e-4
    assert volumes[1] == pytest.approx(volumes[0], rel=0.06)


def test_finer_triangles_come_nearer_to_the_ball() -> None:
    vertices, faces = sphere(1)
    flat = as_surface(vertices, faces)
    fine = as_surface(vertices, faces, levels=2)
    assert len(fine.faces) == 16 * len(flat.faces)
    assert boundary_loops(fine.faces) == []
    radius = np.linalg.norm(fine.vertices, axis=1)
    middle = np.linalg.norm(vertices[faces].mean(1), axis=1)
    assert (1 - radius).max() < 0.4 * (1 - middle).max()
    assert (fine.normals * fine.vertices).sum(1).min() > 0.97


def test_vertex_normals_are_those_of_trimesh() -> None:
    vertices, faces = (a.numpy() for a in (open_hands().left.v_template, open_hands().left.faces))
    body = trimesh.Trimesh(vertices, faces, process=False)
    ours = vertex_normals(vertices, faces)
    theirs = trimesh.geometry.weighted_vertex_normals(
        len(vertices), faces, body.face_normals, body.area_faces[:, None] * np.ones((1, 3))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_join_keeps_the_parts_apart() -> None:
    a, b = as_surface(*sphere(1), part=0), as_surface(*sphere(2), part=1)
    both = join([a, b])
    assert len(both.faces) == len(a.faces) + len(b.faces)
    np.testing.assert_array_equal(both.vertices[both.faces[len(a.faces) :]], b.vertices[b.faces])
    assert set(both.part[both.faces[len(a.faces) :]].ravel()) == {1}


# ---- light ----------------------------------------------------------------------------------------------------------


def test_a_ball_sees_the_lamps_on_its_side_only() -> None:
    surface = as_surface(*sphere(3))
    directions = studio().directions
    cosine = surface.normals @ directions.T
    seen = visibility(surface, surface, directions)
    assert seen[cosine > 0.25].min() > 0.99
    assert seen[cosine < -0.4].max() < 0.01


def test_a_plate_casts_its_own_shadow() -> None:
    """Lamp at the zenith, a plate of 1 x 1 half a metre above a floor of 4 x 4: the shadow has area 1."""
    n = 81
    line = np.linspace(-2, 2, n, dtype=np.float32)
    x, z = np.meshgrid(line, line)
    floor = np.stack([x, np.zeros_like(x), z], -1).reshape(-1, 3)
    corner = np.arange(n * n).reshape(n, n)
    a, b, c, d = (s.reshape(-1) for s in (corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    up = np.tile(np.array([0, 1, 0], np.float32), (len(floor), 1))
    none = np.zeros(len(floor), bool)
    ground = Surface(floor, up, faces, np.zeros(len(floor), int), none)
    plate = np.array([[-0.5, 0.5, -0.5], [-0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, -0.5]], np.float32)
    cover = Surface(plate, up[:4], np.array([[0, 1, 2], [0, 2, 3]]), np.ones(4, int), none[:4])
    scene = join([ground, cover])
    seen = visibility(scene, scene, np.array([[0, 1, 0]], np.float32))[: n * n, 0].reshape(n, n)
    pixel = 2 * 2.9 / MAP
    inside = (np.abs(x) < 0.5 - 2 * pixel) & (np.abs(z) < 0.5 - 2 * pixel)
    outside = (np.abs(x) > 0.5 + 2 * pixel) | (np.abs(z) > 0.5 + 2 * pixel)
    assert seen[inside].max() < 0.01
    assert seen[outside].min() > 0.99


def test_touching_balls_are_dark_between() -> None:
    vertices, faces = sphere(3)
    one, other = as_surface(vertices, faces), as_surface(vertices + np.float32([2.0, 0, 0]), faces, 1)
    both = join([one, other])
    seen = visibility(both, both, studio().directions).mean(1)[: len(vertices)]
    towards, away = vertices[:, 0] > 0.9, vertices[:, 0] < -0.9
    assert seen[towards].mean() < 0.6 * seen[away].mean()


# ---- camera ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_the_scene_fills_the_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(50, 3)) * rng.uniform(0.01, 0.2, 3) + rng.normal(size=3)).astype(np.float32)
    axes = look(rng.normal(size=3), rng.normal(size=3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(axes) == pytest.approx(1, abs=1e-5)
    xy, depth = fit_camera(points, axes, margin=0.05).project(points, 100)
    assert depth.min() > 0
    assert xy.min() > 5 - 0.1
    assert xy.max() < 95 + 0.1
    spread = xy.max(0) - xy.min(0)
    assert spread.max() == pytest.approx(90, abs=0.2)
    widest = spread.argmax()
    assert xy.max(0)[widest] + xy.min(0)[widest] == pytest.approx(100, abs=0.3)


def test_up_is_where_the_fingers_point() -> None:
    zero = TwoHands(*[HandParams(torch.zeros(3), torch.zeros(45), torch.zeros(10), torch.zeros(3))] * 2)
    left, right = (v.numpy() for v in zero.vertices())
    faces = [f.numpy() for f in zero.faces]
    # Flat at rest, the left fingers point to +x and the right ones to -x: the thumbs (+z) decide.
    scene = join([as_surface(left, faces[0], 0), as_surface(right, faces[1], 1)])
    assert upward(scene) @ np.array([0, 0, 1]) > 0.9
    turned = right * np.array([-1, 1, -1], np.float32)  # half a turn about y
    scene = join([as_surface(left, faces[0], 0), as_surface(turned, faces[1], 1)])
    assert upward(scene) @ np.array([1, 0, 0]) > 0.9
    assert upward(as_surface(*sphere(1))).tolist() == [0, 1, 0]


def test_the_best_direction_shows_both() -> None:
    """A small ball behind a large one, in all directions: only a look from its side shows it."""
    vertices, faces = sphere(2)
    for away in np.eye(3, dtype=np.float32)[[0, 2]]:
        scene = join([as_surface(vertices, faces), as_surface(vertices * np.float32(0.5) + 1.6 * away, faces, 1)])
        first, second = best_directions(scene, np.array([0, 1, 0], np.float32), 2)
        assert first @ away > -0.4
        assert abs(first @ second) < 0.65


# ---- contact sheet --------------------------------------------------------------------------------------------------


def share_of(image: np.ndarray, which: str) -> float:
    red, _, blue = image.reshape(-1, 3).astype(int).T
    return float({"clay": red - blue > 25, "blue": blue - red > 25}[which].mean())


def test_a_picture_shows_two_shaded_hands_in_two_colours() -> None:
    left, right = facing_pair().vertices()
    image = contact_sheet([left[None], right[None]], facing_pair().faces, size=SIZE)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert share_of(image, "clay") > 0.05
    assert share_of(image, "blue") > 0.05
    assert (image[[0, -1]] == 255).all()
    assert (image[:, [0, -1]] == 255).all()
    assert 0.2 < (image == 255).all(2).mean() < 0.9
    skin = image[image[..., 0].astype(int) - image[..., 2] > 25]
    assert len(np.unique(skin, axis=0)) > 100  # shaded, not flat


def test_the_same_hands_give_the_same_pixels_and_cells_do_not_mix() -> None:
    hands = pairs(3)
    sheet = contact_sheet(hands.vertices(), hands.faces, size=SIZE, columns=2)
    assert sheet.shape == (2 * SIZE, 2 * SIZE, 3)
    cells = [sheet[:SIZE, :SIZE], sheet[:SIZE, SIZE:], sheet[SIZE:, :SIZE]]
    for i, cell in enumerate(cells):
        alone = hands[i : i + 1]
        np.testing.assert_array_equal(contact_sheet(alone.vertices(), alone.faces, size=SIZE), cell)
        assert share_of(cell, "clay") > 0.02
        assert share_of(cell, "blue") > 0.02
    assert (sheet[SIZE:, SIZE:] == 255).all()
    assert np.abs(cells[0].astype(int) - cells[1]).mean() > 2


def test_the_left_hand_is_clay_and_the_right_hand_blue() -> None:
    left, right = facing_pair().vertices()
    faces = facing_pair().faces
    alone = contact_sheet([left[None]], [faces[0]], size=SIZE)
    assert share_of(alone, "clay") > 0.05
    assert share_of(alone, "blue") == 0
    swapped = contact_sheet([right[None], left[None]], [faces[1], faces[0]], size=SIZE, views=[(0, 1, 0)])
    straight = contact_sheet([left[None], right[None]], faces, size=SIZE, views=[(0, 1, 0)])
    same = (swapped == 255).all(2) == (straight == 255).all(2)
    assert same.all()
    assert np.abs(swapped.astype(int) - straight).mean() > 2


def test_views_go_side_by_side_and_up_is_up() -> None:
    left, right = facing_pair().vertices()
    faces = facing_pair().faces
    draw = lambda **options: contact_sheet([left[None], right[None]], faces, size=SIZE, **options)
    both = draw(views=2)
    assert both.shape == (SIZE, 2 * SIZE, 3)
    np.testing.assert_array_equal(both[:, :SIZE], draw())
    assert np.abs(both[:, :SIZE].astype(int) - both[:, SIZE:]).mean() > 2
    # The right hand is 20 cm along +z of the left one: below it when -z is up, to the left of it from +y.
    image = draw(views=[(0, 1, 0)], up=(0, 0, -1))
    red, blue = (np.abs(image.astype(int)[..., 0] - image[..., 2]) > 25), image[..., 2] > image[..., 0]
    rows = np.arange(SIZE)
    mean_row = lambda mask: float((mask.sum(1) * rows).sum() / mask.sum())
    assert mean_row(red & blue) > mean_row(red & ~blue) + 10


def test_labels_are_written_above_their_cells() -> None:
    hands = pairs(2)
    plain, labelled = (
        contact_sheet(hands.vertices(), hands.faces, size=SIZE, columns=2, labels=labels)
        for labels in (None, ["", "clasp"])
    )
    strip = len(labelled) - len(plain)
    assert strip == 14
    np.testing.assert_array_equal(labelled[strip:], plain)
    assert (labelled[:strip, :SIZE] == 255).all()
    assert (labelled[:strip, SIZE:] < 200).any()


def test_sheets_are_well_filled() -> None:
    assert [_columns(n, 1) for n in (1, 2, 4, 6, 8, 16, 64)] == [1, 2, 2, 3, 4, 4, 10]
    assert _columns(16, 2) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 3}, "views must be 1 or 2"),
        ({"views": []}, "views is empty"),
        ({"views": [(0, 0, 0)]}, "views must hold directions"),
        ({"up": (1, 2)}, "up must hold directions"),
        ({"size": 4}, "size must be an integer number of pixels from 16"),
        ({"columns": 0}, "columns must be a positive integer"),
        ({"labels": ["one"]}, "labels must hold one text for each of the 2"),
        ({"colours": [(1, 0, 0)]}, "colours must hold one colour for each of the 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pairs(2).render(tmp_path / "x.png", **options)
    assert list(tmp_path.iterdir()) == []


def test_meshes_that_cannot_be_drawn_are_refused() -> None:
    vertices, faces = sphere(1)
    with pytest.raises(ValueError, match="NaN"):
        contact_sheet([np.full_like(vertices[None], np.nan)], [faces])
    with pytest.raises(ValueError, match=r"\(N, V, 3\)"):
        contact_sheet([vertices], [faces])
    with pytest.raises(ValueError, match="one N >= 1"):
        contact_sheet([vertices[None], vertices[None].repeat(2, 0)], [faces, faces])
    with pytest.raises(ValueError, match="with 42 vertices"):
        contact_sheet([vertices[None]], [faces + 1])
    with pytest.raises(ValueError, match="one array per mesh"):
        contact_sheet([vertices[None]], [faces, faces])
    with pytest.raises(ValueError, match="at most 1024"):
        contact_sheet([np.broadcast_to(vertices, (1025, *vertices.shape))], [faces])


# ---- files ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_png_is_what_pillow_reads(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(image))) as read:
        assert read.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(read), image)


def test_png_refuses_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="byte array"):
        write_png(np.zeros((3, 3)), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_render_writes_a_sheet(tmp_path: Path) -> None:
    hands = pairs(2)
    path = hands.render(tmp_path / "sheet.png", size=SIZE)
    with Image.open(path) as image:
        assert image.size[0] * image.size[1] == 2 * SIZE**2
        pixels = np.asarray(image).astype(int)
    # Hands of another type and with a graph, in a batch of two axes, and options that arrive.
    double = hands.map(lambda v: v.double().requires_grad_())
    folded = TwoHands(double.left.reshape(1, 2), double.right.reshape(1, 2))
    folded.render(tmp_path / "double.png", size=SIZE, columns=1)
    with Image.open(tmp_path / "double.png") as image:
        assert image.size == (SIZE, 2 * SIZE)
        column = np.concatenate([np.asarray(image).astype(int)[:SIZE], np.asarray(image).astype(int)[SIZE:]], 1)
    assert np.abs(column - pixels).mean() < 0.5
    with pytest.raises(ValueError, match=r"must end in \.png"):
        hands.render(tmp_path / "sheet.jpg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["double.png", "sheet.png"]


def test_render_writes_one_pair_large(tmp_path: Path) -> None:
    with Image.open(facing_pair().render(tmp_path / "pair.png")) as image:
        assert image.size == (640, 640)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_pair_survives_the_file(tmp_path: Path, suffix: str) -> None:
    hands = pairs(1)[0]
    left, right = (v.numpy() for v in hands.vertices())
    path = hands.export(tmp_path / f"hands{suffix}")
    if suffix == ".glb":
        scene = trimesh.load_scene(path, process=False)
        assert set(scene.geometry) == {"left", "right"}
        found = [scene.geometry[side].vertices for side in ("left", "right")]
        faces = [scene.geometry[side].faces for side in ("left", "right")]
        colours = [scene.geometry[side].visual.material.baseColorFactor for side in ("left", "right")]
        assert colours[0][0] > colours[0][2]
        assert colours[1][2] > colours[1][0]
        normals = scene.geometry["left"].vertex_normals
        np.testing.assert_allclose(normals, vertex_normals(left, hands.faces[0].numpy()), atol=1e-4)
    else:
        body = trimesh.load_mesh(path, process=False, maintain_order=True)
        found, faces = [body.vertices[:778], body.vertices[778:]], [body.faces[:1538], body.faces[1538:] - 778]
        red, _, blue = body.visual.vertex_colors[:, :3].astype(int).T
        assert (red[:778] > blue[:778]).all()
        assert (red[778:] < blue[778:]).all()
    for got, wanted in zip(found, (left, right), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    for got, wanted in zip(faces, hands.faces, strict=True):
        np.testing.assert_array_equal(got, wanted.numpy())


def test_obj_names_its_objects(tmp_path: Path) -> None:
    scene = trimesh.load_scene(pairs(2).export(tmp_path / "x.obj"), split_objects=True, process=False)
    assert set(scene.geometry) >= {"left_0", "right_0", "left_1", "right_1"}


def test_a_batch_is_laid_out_without_overlap(tmp_path: Path) -> None:
    hands = pairs(5)
    scene = trimesh.load_scene(hands.export(tmp_path / "x.glb", columns=3), process=False)
    assert set(scene.geometry) == {f"{side}_{i}" for side in ("left", "right") for i in range(5)}
    left, right = (v.numpy() for v in hands.vertices())
    boxes = []
    for i in range(5):
        shift = scene.geometry[f"left_{i}"].vertices - left[i]
        np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-5)
        np.testing.assert_allclose(scene.geometry[f"right_{i}"].vertices - right[i], shift, atol=1e-5)
        both = np.concatenate([scene.geometry[f"{side}_{i}"].vertices for side in ("left", "right")])
        boxes.append((both.min(0), both.max(0)))
    for i in range(5):
        for j in range(i):
            apart = (boxes[i][0] > boxes[j][1]) | (boxes[j][0] > boxes[i][1])
            assert apart.any()
    middle = np.array([(low + high) / 2 for low, high in boxes])
    assert middle[2, 0] > middle[1, 0] > middle[0, 0]
    assert middle[3, 1] < middle[0, 1] - 0.05


def test_index_in_the_name_gives_each_pair_its_file(tmp_path: Path) -> None:
    hands = pairs(3)
    hands.export(tmp_path / "hands_{index}.ply")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hands_0.ply", "hands_1.ply", "hands_2.ply"]
    body = trimesh.load_mesh(tmp_path / "hands_1.ply", process=False)
    np.testing.assert_allclose(body.vertices[:778], hands[1].vertices()[0].numpy(), atol=1e-6)


def test_export_refuses_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hands.glb"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"\.glb, \.obj, \.ply"):
        pairs(1).export(tmp_path / "hands.stl")
    broken = pairs(1)
    broken.left.transl[0, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        broken.export(path)
    with pytest.raises(ValueError, match="empty batch"):
        pairs(2)[:0].export(path)
    with pytest.raises(ValueError, match="columns"):
        pairs(2).export(path, columns=0)
    with pytest.raises(FileNotFoundError):
        pairs(1).export(tmp_path / "missing" / "hands.glb")

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        pairs(1).export(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["hands.glb"]
