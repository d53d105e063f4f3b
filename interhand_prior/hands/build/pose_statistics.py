"""hands_mean and hands_components, derived from the published ranges of motion; not MANO's.

Mean. A hand at rest is taken to stand at a stated share of each joint's flexion range, growing toward the little finger
(the resting cascade): REST_SHARE, our choice. The thumb of the template lies spread in the palm's plane; at rest it is
a third of its anteposition in front of the palm and drawn in by a third of its radial abduction.

Covariance. Each angle has the deviation of a uniform law over its published range, range / sqrt(12). Correlations
(ASSUMED): between fingers NEIGHBOUR ** (fingers apart); between the joints of a finger as in JOINT, where PIP and
DIP move nearly together (Rijpkema & Girard 1991 use DIP = 2/3 PIP). Their Kronecker product couples all flexions
and is positive by construction. Twist, and the sideways bending of hinges, which have no published range, get
OFF_AXIS degrees so that the covariance is regular: real fits show such freedom.

With C = V diag(l) V^T, hands_components = diag(sqrt l) V^T, largest first: coefficients of unit variance, a basis
of all 45 dimensions that is inverted, not transposed.
"""

from __future__ import annotations

import numpy as np

from .anthropometry import MCP_ABDUCTION, MOTION, Array
from .skeleton import AXES, FIRST, pose

REST_SHARE = {"index": 0.25, "middle": 0.30, "ring": 0.35, "pinky": 0.35, "thumb": 0.25}
NEIGHBOUR = 0.8
JOINT = np.array([[1.0, 0.4, 0.3], [0.4, 1.0, 0.8], [0.3, 0.8, 1.0]])
THUMB_JOINT = np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.5], [0.3, 0.5, 1.0]])
ABDUCTION_NEIGHBOUR = 0.4
OFF_AXIS = {"mcp_twist": 8.0, "hinge": 4.0, "cmc_twist": 15.0}
LONG = ("index", "middle", "ring", "pinky")


def _deviation(low: float, high: float) -> float:
    return (high - low) / np.sqrt(12)


def hands_mean() -> Array:
    """Mean pose (45,) rad of the right hand."""
    flex: dict[int, float] = {}
    for k in LONG:
        for i, joint in enumerate(("mcp", "pip", "dip")):
            flex[FIRST[k] + i] = REST_SHARE[k] * MOTION[joint][1]
    flex[14] = REST_SHARE["thumb"] * MOTION["thumb_mcp"][1]
    flex[15] = REST_SHARE["thumb"] * MOTION["thumb_ip"][1]
    flex[13] = MOTION["cmc_anteposition"][1] / 3
    return np.asarray(pose(flex, {13: -MOTION["cmc_radial_abduction"][1] / 3})[1:].ravel())


def covariance() -> Array:
    """Covariance (45, 45) rad^2 of hand_pose, right hand."""
    axes = np.zeros((45, 45))  # columns: joint-major, then flexion, abduction, twist
    for j in range(1, 16):
        f, a, t = AXES[j]
        axes[(j - 1) * 3 : j * 3, (j - 1) * 3 : j * 3] = np.stack([f, a - f * (f @ a), t], 1)
    sd = np.zeros((15, 3))
    for k in LONG:
        at = FIRST[k] - 1
        sd[at : at + 3, 0] = [_deviation(*MOTION[x]) for x in ("mcp", "pip", "dip")]
        sd[at : at + 3, 1] = [_deviation(-MCP_ABDUCTION, MCP_ABDUCTION), OFF_AXIS["hinge"], OFF_AXIS["hinge"]]
        sd[at : at + 3, 2] = [OFF_AXIS["mcp_twist"], OFF_AXIS["hinge"], OFF_AXIS["hinge"]]
    sd[12:, 0] = [_deviation(*MOTION[x]) for x in ("cmc_anteposition", "thumb_mcp", "thumb_ip")]
    sd[12:, 1] = [_deviation(*MOTION["cmc_radial_abduction"]), OFF_AXIS["mcp_twist"], OFF_AXIS["hinge"]]
    sd[12:, 2] = [OFF_AXIS["cmc_twist"], OFF_AXIS["mcp_twist"], OFF_AXIS["hinge"]]
    rho = np.eye(45)
    apart = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    flexion = np.kron(NEIGHBOUR**apart, JOINT)
    bend = [(FIRST[k] - 1 + i) * 3 for k in LONG for i in range(3)]
    rho[np.ix_(bend, bend)] = flexion
    side = [(FIRST[k] - 1) * 3 + 1 for k in LONG]
    rho[np.ix_(side, side)] = ABDUCTION_NEIGHBOUR**apart
    thumb = [36, 39, 42]
    rho[np.ix_(thumb, thumb)] = THUMB_JOINT
    s = np.radians(sd.ravel())
    return np.asarray(axes @ (rho * np.outer(s, s)) @ axes.T)


def hands_components() -> Array:
    """Rows sqrt(l_i) v_i (45, 45) of the covariance, largest first; the largest entry of each row is positive."""
    values, vectors = np.linalg.eigh(covariance())
    rows = (np.sqrt(values) * vectors).T[::-1]
    largest = np.abs(rows).argmax(1)
    return np.asarray(rows * np.sign(rows[np.arange(45), largest])[:, None])
