"""Published measures of the hand: every number here is cited, or marked as an assumption of ours.

Sources
-------
ANSUR II   Gordon et al., "2012 Anthropometric Survey of U.S. Army Personnel: Methods and Summary Statistics",
           NATICK/TR-15/007 (4082 men, 1986 women): means and standard deviations in millimetres.
BURYANOV   Buryanov & Kotiuk, "Proportions of Hand Segments", Int. J. Morphol. 28(3), 2010 (n = 66): bone lengths and
           the soft tissue beyond the distal phalanx, in millimetres.
SEGMENTS   breadths and depths of the phalanges as fractions of hand breadth, after Buchholz & Armstrong, "An
           ellipsoidal representation of human hand anthropometry", Human Factors 33(4), 1991.
MOTION     ranges of active motion as in clinical norms (American Academy of Orthopaedic Surgeons, "Joint Motion",
           1965, and later goniometry).
SPREAD     Chatzioglou, Pinar & Govsa, "Biometric analysis of hand parameters in young adults", Anat. Cell Biol. 57(2),
           2024: mean angle between neighbouring fingers at their widest (n = 51), rounded.
YOUM       Youm et al., "Kinematics of the wrist", J. Bone Joint Surg. 60A, 1978: the carpal height is .54 of the third
           metacarpal's length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FINGERS = ("index", "middle", "pinky", "ring", "thumb")
"""Fingers in the order of MANO's joints."""

MEN: dict[str, tuple[float, float]] = {
    "hand_length": (193.3, 9.9),
    "hand_breadth": (88.3, 4.4),
    "palm_length": (116.5, 6.2),
    "hand_circumference": (212.3, 10.2),
    "wrist_circumference": (175.9, 9.0),
}
"""ANSUR II, men: measure -> (mean, standard deviation), mm."""

WOMEN: dict[str, tuple[float, float]] = {
    "hand_length": (181.1, 10.1),
    "hand_breadth": (78.2, 3.8),
    "palm_length": (108.7, 5.9),
    "hand_circumference": (186.6, 8.8),
    "wrist_circumference": (154.8, 7.8),
}
"""ANSUR II, women: measure -> (mean, standard deviation), mm."""

WITHIN_SEX_CORRELATION: dict[tuple[str, str], float] = {
    ("hand_length", "hand_breadth"): 0.5,
    ("hand_length", "hand_circumference"): 0.5,
    ("hand_length", "wrist_circumference"): 0.5,
    ("hand_breadth", "hand_circumference"): 0.9,
    ("hand_breadth", "wrist_circumference"): 0.7,
    ("hand_circumference", "wrist_circumference"): 0.7,
}
"""ASSUMED, in round numbers: the summary tables give no correlations. One half between a length and a girth, .7 between
girths of neighbouring parts, .9 between breadth and circumference of the same part."""

BONES: dict[str, tuple[tuple[float, float], ...]] = {
    "thumb": ((46.2, 3.9), (31.6, 3.1), (21.7, 1.6)),
    "index": ((68.1, 6.3), (39.8, 4.9), (22.4, 2.5), (15.8, 2.3)),
    "middle": ((64.6, 5.4), (44.6, 3.8), (26.3, 3.0), (17.4, 1.9)),
    "ring": ((58.0, 5.1), (41.4, 3.9), (25.7, 3.3), (17.3, 2.2)),
    "pinky": ((53.7, 4.4), (32.7, 2.8), (18.1, 2.5), (16.0, 2.5)),
}
"""Buryanov & Kotiuk: (mean, sd) mm of metacarpal, proximal, (middle,) distal bone; the thumb has no middle phalanx."""

PULP: dict[str, float] = {"thumb": 5.7, "index": 3.8, "middle": 4.0, "ring": 4.0, "pinky": 3.7}
"""Buryanov & Kotiuk: soft tissue beyond the tip of the distal bone, mm."""

SEGMENT_FRACTION: dict[str, tuple[tuple[float, float], ...]] = {
    "thumb": ((0.231, 0.227), (0.239, 0.185)),
    "index": ((0.231, 0.227), (0.210, 0.186), (0.198, 0.153)),
    "middle": ((0.212, 0.220), (0.206, 0.187), (0.200, 0.159)),
    "ring": ((0.202, 0.204), (0.192, 0.172), (0.187, 0.148)),
    "pinky": ((0.186, 0.180), (0.172, 0.157), (0.165, 0.133)),
}
"""Breadth and depth of proximal, (middle,) distal segment as fractions of hand breadth."""

CARPAL_HEIGHT_RATIO = 0.54
"""Youm: carpal height over the third metacarpal's length (35 mm here, measured from the radius)."""

CAPITATE_HEAD = 7.0
"""OUR CHOICE, mm: the wrist's centre of rotation lies in the head of the capitate, this far beyond the radius."""

MOTION: dict[str, tuple[float, float]] = {
    "mcp": (-45.0, 90.0),
    "pip": (0.0, 100.0),
    "dip": (0.0, 80.0),
    "thumb_mcp": (-8.0, 60.0),
    "thumb_ip": (-12.0, 88.0),
    "cmc_radial_abduction": (0.0, 63.0),
    "cmc_anteposition": (0.0, 61.0),
}
"""Ranges of motion, degrees: (extension as a negative number, flexion)."""

MCP_ABDUCTION = 20.0
"""Abduction of a finger at its MCP joint, degrees from the middle position, at most."""

SPREAD: dict[tuple[str, str], float] = {
    ("thumb", "index"): 53.0,
    ("index", "middle"): 17.0,
    ("middle", "ring"): 14.0,
    ("ring", "pinky"): 32.0,
}
"""Largest spread between neighbouring fingers, degrees."""


def pooled_mean(measure: str) -> float:
    """Mean of a measure (mm) in an even mixture of ANSUR II men and women."""
    return (MEN[measure][0] + WOMEN[measure][0]) / 2


def pooled_covariance(measures: tuple[str, ...]) -> Array:
    """Covariance (mm^2) of measures in an even mixture of ANSUR II men and women.

    C_ij = r_ij (s_i^m s_j^m + s_i^w s_j^w) / 2 + (m_i - w_i)(m_j - w_j) / 4: the published deviations within each sex
    under the assumed correlations r, and the published difference between the sexes, which needs no assumption.
    """
    n = len(measures)
    r = np.eye(n)
    for i, a in enumerate(measures):
        for j, b in enumerate(measures):
            if i != j:
                r[i, j] = WITHIN_SEX_CORRELATION.get((a, b), WITHIN_SEX_CORRELATION.get((b, a), np.nan))
    men = np.array([MEN[k][1] for k in measures])
    women = np.array([WOMEN[k][1] for k in measures])
    gap = np.array([MEN[k][0] - WOMEN[k][0] for k in measures])
    cov: Array = r * (np.outer(men, men) + np.outer(women, women)) / 2 + np.outer(gap, gap) / 4
    return cov


def carpus() -> float:
    """Length (mm) from the wrist's centre of rotation to the base of the metacarpals."""
    return CARPAL_HEIGHT_RATIO * BONES["middle"][0][0] - CAPITATE_HEAD


def segment_size(finger: str) -> Array:
    """Breadth and depth (mm) of a finger's segments, base to tip, at the pooled hand breadth."""
    return np.array(SEGMENT_FRACTION[finger]) * pooled_mean("hand_breadth")
