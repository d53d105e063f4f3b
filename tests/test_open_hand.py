"""The bundled open hand: topology, places, shape space, correctives, pose statistics; and that its build makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interhand_prior
from interhand_prior.hands.build import anthropometry, checks, pose_statistics, shape
from interhand_prior.hands.build.assemble import (
    MCP_PAIR,
    PALM_PAIR,
    TIP_ID,
    TIP_NEIGHBOURS,
    WRIST_LOOP,
    assemble,
    face_normals,
)
from interhand_prior.hands.build.asset import save
from interhand_prior.hands.build.field import bends, field, value_and_gradient
from interhand_prior.hands.build.fingers import RING_COUNT, finger_tube
from interhand_prior.hands.build.poses import named_poses
from interhand_prior.hands.build.skeleton import (
    FIRST,
    FRAMES,
    JOINTS,
    PARENTS,
    finger_points,
    pose,
    rodrigues,
    skin,
    transforms,
)
from interhand_prior.hands.build.skinning import skinning_weights

ASSET = Path(interhand_prior.__file__).parent / "assets" / "open_hand.npz"
SHAPES = {
    "v_template": (778, 3),
    "f": (1538, 3),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "kintree_table": (2, 16),
    "hands_mean": (45,),
    "hands_components": (45, 45),
    "part": (778,),
}
# MANO's right rest joints and tips as quoted in public, mm: compared with, never shipped.
QUOTED = {
    "index": [(7.6, 1.2, 26.9), (-25.1, 5.2, 29.1), (-47.3, 3.9, 29.0), (-70.5, 4.6, 33.0)],
    "middle": [(1.0, 4.9, 2.8), (-30.2, 6.8, -2.8), (-53.1, 5.5, -6.7), (-84.1, 4.1, -13.1)],
    "pinky": [(26.9, -3.6, -37.0), (9.9, -3.5, -49.5), (-6.0, -4.2, -59.9), (-25.6, -1.6, -71.3)],
    "ring": [(13.9, 2.4, -20.5), (-14.4, 4.5, -25.6), (-37.9, 2.8, -33.2), (-67.1, 6.5, -41.3)],
    "thumb": [(71.6, -9.1, 32.0), (51.9, -8.2, 55.7), (29.7, -13.7, 70.2), (-1.8, -20.2, 90.7)],
}
QUOTED_WRIST = (95.7, 6.4, 6.2)


class Hand:
    """The asset in float64 and millimetres."""

    def __init__(self) -> None:
        with np.load(ASSET, allow_pickle=False) as file:
            self.raw = {k: file[k] for k in file.files}
        self.v = self.raw["v_template"].astype(float) * 1e3
        self.f = self.raw["f"].astype(np.int64)
        self.w = self.raw["weights"].astype(float)
        self.regressor = self.raw["J_regressor"].astype(float)
        self.shapedirs = self.raw["shapedirs"].astype(float) * 1e3
        self.posedirs = self.raw["posedirs"].astype(float) * 1e3
        self.part = self.raw["part"].astype(int)
        self.joints = self.regressor @ self.v

    def posed(self, axis_angle: np.ndarray, corrected: bool = True) -> np.ndarray:
        r = rodrigues(axis_angle)
        v = self.v + corrected * (self.posedirs @ (r[1:] - np.eye(3)).ravel())
        return skin(v, self.w, transforms(r, self.joints))[0]


@pytest.fixture(scope="module")
def hand() -> Hand:
    return Hand()


def test_keys_shapes_and_types_are_manos(hand: Hand) -> None:
    assert {k: v.shape for k, v in hand.raw.items()} == SHAPES
    assert hand.raw["f"].dtype == np.uint32
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for k, v in hand.raw.items() if v.dtype.kind == "f")
    assert hand.raw["kintree_table"][0].tolist() == [2**32 - 1, *PARENTS[1:]]


def test_surface_is_a_manifold_disc_with_manos_wrist_loop_and_outward_normals(hand: Hand) -> None:
    assert checks.topology_errors(hand.f) == []
    _, gradient = value_and_gradient(field, hand.v[hand.f].mean(1))
    assert ((face_normals(hand.v, hand.f) * gradient).sum(1) > 0).all()
    # normals of the sealed hand look outward, so the volume is positive; 200-400 cm^3 is a hand with its wrist
    assert 200e3 < checks.volume(hand.v, hand.f) < 400e3
    assert checks.smallest_angle(hand.v, hand.f) > 15


def test_topology_check_sees_faults(hand: Hand) -> None:
    assert checks.topology_errors(hand.f[:-1])
    turned = hand.f.copy()
    turned[0] = turned[0, ::-1]
    assert checks.topology_errors(turned)


def test_vertices_lie_on_the_field(hand: Hand) -> None:
    away = field(hand.v)
    assert np.sqrt((away**2).mean()) < 0.5
    assert np.abs(away).max() < 2.5


def test_no_self_intersection_at_rest_and_over_random_betas(hand: Hand) -> None:
    assert not checks.self_intersections(hand.v, hand.f)
    rng = np.random.default_rng(0)
    for betas in rng.normal(size=(8, 10)):
        assert not checks.self_intersections(hand.v + hand.shapedirs @ betas, hand.f)


def test_intersection_check_sees_a_finger_through_the_palm(hand: Hand) -> None:
    through = hand.posed(pose({FIRST["middle"]: 90, FIRST["middle"] + 1: 110, FIRST["middle"] + 2: 120}))
    assert checks.self_intersections(through, hand.f)


def test_joints_and_tips_are_near_the_quoted_places(hand: Hand) -> None:
    assert np.abs(hand.joints - JOINTS).max() < 1e-3
    assert np.linalg.norm(hand.joints[0] - QUOTED_WRIST) < 6
    for finger, places in QUOTED.items():
        mine = np.concatenate([hand.joints[FIRST[finger] :][:3], hand.v[TIP_ID[finger]][None]])
        assert np.linalg.norm(mine - np.array(places), axis=1).max() < 6, finger


def test_hard_coded_vertex_ids_hold_what_other_code_expects(hand: Hand) -> None:
    for finger, tip in TIP_ID.items():
        axis = FRAMES[finger][2][0]
        own = hand.part == list(anthropometry.FINGERS).index(finger)
        assert own[tip]
        # the apex is the farthest point of its finger along the last bone, its neighbours are a few mm away
        assert ((hand.v[tip] - hand.v[own]) @ axis).min() > -0.5
        for other in TIP_NEIGHBOURS[finger]:
            assert own[other]
            assert np.linalg.norm(hand.v[other] - hand.v[tip]) < 6
    for finger, (a, b) in MCP_PAIR.items():
        assert np.linalg.norm((hand.v[a] + hand.v[b]) / 2 - hand.joints[FIRST[finger]]) < 5
    palm = (hand.v[PALM_PAIR[0]] + hand.v[PALM_PAIR[1]]) / 2
    assert np.linalg.norm(palm - (hand.joints[0] + hand.joints[FIRST["middle"]]) / 2) < 5
    assert hand.v[270, 0] - hand.v[216, 0] < 0
    assert np.ptp(hand.v[list(WRIST_LOOP), 0]) < 1
    assert hand.v[list(WRIST_LOOP), 0].min() > hand.joints[0, 0]


def test_hand_has_the_published_size(hand: Hand) -> None:
    # ANSUR II measures from the wrist's crease, where this hand's opening is
    length = np.linalg.norm(hand.v[TIP_ID["middle"]] - hand.v[list(WRIST_LOOP)].mean(0))
    assert abs(length - anthropometry.pooled_mean("hand_length")) < 8
    for finger in anthropometry.FINGERS:
        size, points = anthropometry.segment_size(finger), finger_points(finger)
        for i in range(3 - len(size), 3):
            axis, lateral, dorsal = FRAMES[finger][i]
            centre = points[i] + (0.68 if i == 0 else 0.52) * (points[i + 1] - points[i])
            breadth = sum(checks.bend_thickness(hand.v, hand.f, centre, axis, lateral, 14))
            depth = sum(checks.bend_thickness(hand.v, hand.f, centre, axis, dorsal, 14))
            assert abs(breadth - size[i - 3 + len(size)][0]) < 1.5
            assert abs(depth - size[i - 3 + len(size)][1]) < 1.5


def test_weights_are_convex_with_at_most_four_bones(hand: Hand) -> None:
    assert (hand.w >= 0).all()
    assert np.abs(hand.w.sum(1) - 1).max() < 1e-6
    assert (hand.w > 0).sum(1).max() <= 4
    for i, finger in enumerate(anthropometry.FINGERS):  # a tip follows its last bone alone
        assert hand.w[TIP_ID[finger], FIRST[finger] + 2] == pytest.approx(1), i


def knuckle_breadth(hand: Hand, v: np.ndarray) -> float:
    """Extent along z (mm) of the cut through the index's and the little finger's MCP joints, without the thumb."""
    joints = hand.regressor @ v
    a, b = joints[FIRST["index"]], joints[FIRST["pinky"]]
    side = (v - a) @ np.array([a[2] - b[2], 0.0, b[0] - a[0]])  # the cut is the vertical plane through both
    edges = np.unique(
        np.sort(np.concatenate([hand.f[:, [0, 1]], hand.f[:, [1, 2]], hand.f[:, [2, 0]]]), axis=1), axis=0
    )
    cut = edges[((side[edges] > 0).sum(1) == 1) & (hand.part[edges] != 4).all(1)]
    i, j = cut.T
    z = (side[i] * v[j, 2] - side[j] * v[i, 2]) / (side[i] - side[j])
    return float(np.ptp(z[np.abs(z - (a + b)[2] / 2) < 60]))


def test_metacarpals_vary_as_published(hand: Hand) -> None:
    """Each ray keeps its own bone's deviation: breadth is the girths' and does not lengthen a splayed ray."""
    dirs = np.einsum("jv,vdk->jdk", hand.regressor, hand.shapedirs)
    for k in ("index", "middle", "ring", "pinky"):
        ray = hand.joints[FIRST[k]] - hand.joints[0]
        sd = np.linalg.norm((dirs[FIRST[k]] - dirs[0]).T @ ray / np.linalg.norm(ray))
        assert sd == pytest.approx(anthropometry.BONES[k][0][1], rel=0.08), k


def test_betas_have_unit_variance_of_the_published_measures(hand: Hand) -> None:
    """Hands drawn with betas ~ N(0, 1) vary in length and breadth as ANSUR II's pooled men and women do."""
    along = hand.shapedirs[TIP_ID["middle"]] - np.einsum("v,vdk->dk", hand.regressor[0], hand.shapedirs)
    direction = hand.v[TIP_ID["middle"]] - hand.joints[0]
    length_sd = np.linalg.norm(along.T @ direction / np.linalg.norm(direction))
    across = np.einsum("jv,vk->jk", hand.regressor[[1, 7]], hand.shapedirs[:, 2])
    cov = anthropometry.pooled_covariance(("hand_length", "hand_breadth"))
    assert length_sd == pytest.approx(np.sqrt(cov[0, 0]), rel=0.05)
    # the outer MCP joints' distance varies in proportion to the hand's breadth
    share = (hand.joints[1, 2] - hand.joints[7, 2]) / anthropometry.pooled_mean("hand_breadth")
    assert np.linalg.norm(across[0] - across[1]) == pytest.approx(share * np.sqrt(cov[1, 1]), rel=0.05)
    breadths = [
        knuckle_breadth(hand, hand.v + hand.shapedirs @ b) for b in np.random.default_rng(0).normal(size=(400, 10))
    ]
    assert np.mean(breadths) == pytest.approx(anthropometry.pooled_mean("hand_breadth"), rel=0.03)
    assert np.std(breadths) == pytest.approx(np.sqrt(cov[1, 1]), rel=0.1)  # 400 draws: good to 3.5 %
    # principal directions: orthogonal, largest first, the first one size
    flat = hand.shapedirs.reshape(-1, 10)
    gram = flat.T @ flat
    norm = np.sqrt(np.diag(gram))
    assert np.abs(gram / np.outer(norm, norm) - np.eye(10)).max() < 1e-4
    assert (np.diff(norm) < 0).all()
    assert ((hand.v - hand.joints[0]) * hand.shapedirs[:, :, 0]).sum() > 0


def test_factor_covariance_is_positive_and_reproduces_the_tables() -> None:
    cov = shape.factor_covariance()
    assert np.linalg.eigvalsh(cov).min() > 0
    names = shape.bone_names()
    sd = np.sqrt(np.diag(cov))[: len(names)]
    assert sd == pytest.approx([anthropometry.BONES[k][i][1] for k, i in names])
    middle = np.array([k == "middle" for k, _ in names] + [False] * 3, float)
    hand_length = anthropometry.pooled_covariance(("hand_length",))[0, 0]
    assert middle @ cov @ middle == pytest.approx(hand_length)
    girths = anthropometry.pooled_covariance(("hand_length", *shape.GIRTHS))
    assert cov[-3:, -3:] == pytest.approx(girths[1:, 1:])
    assert (cov @ middle)[-3:] == pytest.approx(girths[0, 1:])


def test_pooled_covariance_is_that_of_a_mixture() -> None:
    rng = np.random.default_rng(0)
    men = rng.normal(*anthropometry.MEN["hand_breadth"], 200_000)
    women = rng.normal(*anthropometry.WOMEN["hand_breadth"], 200_000)
    both = np.concatenate([men, women])
    assert anthropometry.pooled_mean("hand_breadth") == pytest.approx(both.mean(), rel=1e-3)
    assert anthropometry.pooled_covariance(("hand_breadth",))[0, 0] == pytest.approx(both.var(), rel=1e-2)


def test_palm_thickness_keeps_the_circumference() -> None:
    b, t = 83.0, shape.palm_half_thickness(83.0, 200.0)
    a = np.linspace(0, 2 * np.pi, 20_001)
    curve = np.stack([b / 2 * np.cos(a), t * np.sin(a)], 1)
    assert np.linalg.norm(np.diff(curve, axis=0), axis=1).sum() == pytest.approx(200.0, rel=1e-6)


def test_regressor_keeps_joints_inside_over_the_shape_space(hand: Hand) -> None:
    assert np.abs(hand.regressor.sum(1) - 1).max() < 1e-5
    assert hand.regressor.min() > -1e-6
    rng = np.random.default_rng(1)
    for betas in rng.normal(size=(10, 10)):
        joints = hand.regressor @ (hand.v + hand.shapedirs @ betas)
        bones = np.linalg.norm(joints[1:] - joints[list(PARENTS[1:])], axis=1)
        rest = np.linalg.norm(hand.joints[1:] - hand.joints[list(PARENTS[1:])], axis=1)
        assert (np.abs(bones / rest - 1) < 0.45).all()


def test_a_pose_noised_by_one_radian_stays_near_plain_skinning(hand: Hand) -> None:
    rng = np.random.default_rng(2)
    apart = []
    for noise in rng.normal(size=(60, 15, 3)):
        r = np.concatenate([np.zeros((1, 3)), noise])
        apart.append(np.linalg.norm(hand.posed(r) - hand.posed(r, corrected=False), axis=1))
    assert np.percentile(apart, 95) < 2
    assert np.percentile(apart, 99) < 3.5
    assert np.max(apart) < 8


@pytest.mark.parametrize("finger", ["index", "middle", "ring", "pinky"])
@pytest.mark.parametrize("joint", [1, 2])
def test_bent_fingers_keep_their_thickness(hand: Hand, finger: str, joint: int) -> None:
    """Across a joint bent by 90 degrees, skinning loses 29 % of the knuckle; the correctives give most of it back."""
    bent = pose({FIRST[finger] + joint: 90})
    dorsal = []
    for v, maps in (
        (hand.v, None),
        (hand.posed(bent, corrected=False), transforms(rodrigues(bent))),
        (hand.posed(bent), transforms(rodrigues(bent))),
    ):
        centre, normal, palmar, _ = bends(finger, maps)[joint]
        dorsal.append(checks.bend_thickness(v, hand.f, centre, normal, palmar, 16)[0])
    rest, plain, corrected = dorsal
    assert plain < 0.75 * rest
    assert corrected > (0.88 if joint == 1 else 0.77) * rest


@pytest.mark.parametrize("name", list(named_poses()))
def test_no_crease_crosses_itself_in_named_poses(hand: Hand, name: str) -> None:
    v = hand.posed(named_poses()[name])
    hits = checks.self_intersections(v, hand.f)
    same_finger = [h for h in hits if hand.part[h[0]] >= 0 and (hand.part[hand.f[h[1]]] == hand.part[h[0]]).all()]
    assert not same_finger
    rest = checks.volume(hand.v, hand.f)
    assert checks.volume(v, hand.f) > 0.88 * rest
    plain = hand.posed(named_poses()[name], corrected=False)
    assert abs(checks.volume(v, hand.f) - rest) <= abs(checks.volume(plain, hand.f) - rest)


def test_correctives_bring_the_surface_to_the_posed_field(hand: Hand) -> None:
    for k in ("index", "ring"):
        r = pose({FIRST[k] + i: a for i, a in enumerate((60, 80, 50))})
        maps = transforms(rodrigues(r))
        own = (hand.part == list(anthropometry.FINGERS).index(k)) & (hand.w[:, 0] == 0)
        plain, corrected = (field(hand.posed(r, c)[own], maps, only=k) for c in (False, True))
        assert np.sqrt((corrected**2).mean()) < 0.85 * np.sqrt((plain**2).mean())


def test_hands_mean_rests_within_the_ranges(hand: Hand) -> None:
    assert np.abs(hand.raw["hands_mean"] - pose_statistics.hands_mean()).max() < 1e-6
    mean = hand.raw["hands_mean"].reshape(15, 3)
    for k in ("index", "middle", "pinky", "ring"):
        flexion = np.degrees(mean[FIRST[k] - 1, 2])
        assert 0 < flexion < anthropometry.MOTION["mcp"][1]
    v = hand.posed(np.concatenate([np.zeros((1, 3)), mean]))
    assert not checks.self_intersections(v, hand.f)


def test_hands_components_are_invertible_and_span_the_covariance(hand: Hand) -> None:
    components = hand.raw["hands_components"].astype(float)
    assert np.linalg.matrix_rank(components) == 45
    assert np.linalg.cond(components) < 30
    assert np.abs(components.T @ components - pose_statistics.covariance()).max() < 1e-5
    x = np.random.default_rng(3).normal(size=45)
    assert np.abs(x @ components @ np.linalg.inv(components) - x).max() < 1e-9
    # deviations of the hinge flexions are those of uniform laws over the published ranges
    sd = np.sqrt(np.diag(pose_statistics.covariance()))
    assert sd[2] == pytest.approx(np.radians(135) / np.sqrt(12), rel=1e-6)


def test_skinning_and_shape_are_what_the_build_makes(hand: Hand) -> None:
    weights = skinning_weights(hand.v, hand.f, hand.part)
    assert np.abs(weights - hand.w).max() < 1e-4
    space = shape.shape_space(hand.v, hand.f, hand.w, hand.part)
    assert np.abs(np.abs(space.shapedirs) - np.abs(hand.shapedirs)).max() < 0.02
    assert space.share[:10].sum() > 0.99
    regressor = shape.joint_regressor(hand.v, space)
    assert np.abs(regressor @ hand.v - JOINTS).max() < 1e-6


@pytest.mark.parametrize("finger", ["index", "thumb"])
def test_finger_tubes_reach_the_tips(hand: Hand, finger: str) -> None:
    vertices, faces, _ = finger_tube(finger)
    assert np.linalg.norm(vertices[-1] - hand.v[TIP_ID[finger]]) < 1
    assert len(faces) == 2 * (len(vertices) - 1) - RING_COUNT[finger]  # an open disc
    assert np.abs(field(vertices, only=finger)).max() < 0.01


def test_save_is_atomic_and_single_precision(tmp_path: Path) -> None:
    target = tmp_path / "hand.npz"
    save({"v": np.ones((2, 3)), "f": np.ones((1, 3), np.uint32)}, target)
    with np.load(target) as file:
        assert file["v"].dtype == np.float32
        assert file["f"].dtype == np.uint32
    before = target.read_bytes()
    with pytest.raises(OSError, match="nowhere"):
        save({"v": np.ones(1)}, tmp_path / "nowhere" / "hand.npz")

    class Broken:
        dtype = np.dtype(np.uint8)

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        save({"v": Broken()}, target)  # type: ignore[dict-item]
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["hand.npz"]


@pytest.mark.slow
def test_the_build_makes_the_shipped_mesh(hand: Hand) -> None:
    """Remeshing decides by comparing floats, so another machine may triangulate otherwise; the surface is the same."""
    vertices, faces, part = assemble()
    assert checks.topology_errors(faces) == []
    assert not checks.self_intersections(vertices, faces)
    assert abs(checks.volume(vertices, faces) / checks.volume(hand.v, hand.f) - 1) < 0.01
    assert abs((part < 0).sum() - (hand.part < 0).sum()) < 1
    for finger, tip in TIP_ID.items():
        assert np.linalg.norm(vertices[tip] - hand.v[tip]) < 0.5, finger
    nearest = np.sqrt(((vertices[:, None] - hand.v[None]) ** 2).sum(-1)).min(1)
    assert np.percentile(nearest, 50) < 0.1  # the fingers' rings do not depend on the remesher
