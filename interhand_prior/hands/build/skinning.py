"""Skinning weights, at most four bones a vertex.

A finger's vertices blend along its chain by smooth steps across the joints' bisecting planes; the palm shares
between the fingers by nearness and between palm and finger by the distance past the MCP joint; the thumb's base by
nearness to the thumb or to the palm's bones. A few steps of smoothing over the mesh make the palm's weights even.
Widths are OUR CHOICE.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags

from .anthropometry import FINGERS, Array
from .assemble import WRIST_LOOP
from .skeleton import FIRST, FRAMES, JOINTS, TIPS, finger_points

MOST_BONES = 4


def smoothstep(x: Array) -> Array:
    """3 x^2 - 2 x^3 on [0, 1]."""
    x = np.clip(x, 0, 1)
    return np.asarray(x * x * (3 - 2 * x))


def averaging(faces: np.ndarray, count: int) -> csr_matrix:
    """Sparse (V, V) operator: the mean over a vertex's neighbours."""
    e = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    e = np.concatenate([e, e[:, ::-1]])
    a = coo_matrix((np.ones(len(e)), (e[:, 0], e[:, 1])), (count, count)).tocsr()
    a.data[:] = 1
    return (diags(1 / np.asarray(a.sum(1)).ravel()) @ a).tocsr()


def along(vertices: Array, k: str) -> list[Array]:
    """Signed distances (mm) past the bisecting planes of a finger's three joints."""
    out = []
    for i, point in enumerate(finger_points(k)[:3]):
        t = FRAMES[k][i][0] + (FRAMES[k][i - 1][0] if i else 0)
        out.append((vertices - point) @ (t / np.linalg.norm(t)))
    return out


def _segment_distance(p: Array, a: Array, b: Array) -> Array:
    t = np.clip(((p - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    return np.asarray(np.linalg.norm(p - a - t[:, None] * (b - a), axis=1))


def skinning_weights(vertices: Array, faces: np.ndarray, part: np.ndarray) -> Array:
    """Weights (V, 16), rows sum to one, at most four are not zero."""
    n = len(vertices)
    share, past, inner = np.zeros((n, 5)), np.zeros((n, 5)), np.zeros((n, 5, 2))
    for i, k in enumerate(FINGERS):
        s = along(vertices, k)
        if k == "thumb":
            past[:, i] = smoothstep((s[0] + 14) / 34)
            half = (9.0, 6.5)
            thumb = _segment_distance(vertices, JOINTS[13], TIPS[k])
            palm = np.minimum(
                _segment_distance(vertices, np.array([84, 1, 15.0]), JOINTS[1]),
                _segment_distance(vertices, JOINTS[1], TIPS["index"]),
            )
            share[:, i] = smoothstep((palm - thumb) / 26 + 0.5)
        else:
            past[:, i] = smoothstep((s[0] + 9) / 22)
            half = (5.0, 4.5) if k == "pinky" else (6.0, 5.2)
            share[:, i] = np.exp(-((_segment_distance(vertices, JOINTS[FIRST[k]], TIPS[k]) / 9.0) ** 2))
        for j in (1, 2):
            inner[:, i, j - 1] = smoothstep((s[j] + half[j - 1]) / (2 * half[j - 1]))
    share[:, :4] /= share[:, :4].sum(1, keepdims=True) + 1e-12
    share = np.where((part >= 0)[:, None], part[:, None] == np.arange(5), share)
    share[:, :4] *= 1 - share[:, 4:] * past[:, 4:]
    carried = past * share
    w = np.zeros((n, 16))
    for i, k in enumerate(FINGERS):
        a, b = inner[:, i, 0], inner[:, i, 1]
        w[:, FIRST[k]] = carried[:, i] * (1 - a)
        w[:, FIRST[k] + 1] = carried[:, i] * a * (1 - b)
        w[:, FIRST[k] + 2] = carried[:, i] * a * b
    w[:, 0] = np.maximum(1 - w[:, 1:].sum(1), 0)
    soft = part < 0
    soft[list(WRIST_LOOP)] = False
    mean = averaging(faces, n)
    for _ in range(6):
        w = np.where(soft[:, None], 0.5 * w + 0.5 * (mean @ w), w)
    least = np.sort(w, axis=1)[:, -MOST_BONES][:, None]
    w[(w < least) | (w < 0.004)] = 0
    return np.asarray(w / w.sum(1, keepdims=True))
