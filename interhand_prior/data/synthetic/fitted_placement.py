# fmt: off
"""Numbers of the loose placements, written by ``python -m interhand_prior.data.synthetic.fit_placement``.

Do not edit. START_TILT tilts the starts (`placement`), TILT the loose placements (`loose`).
"""

from __future__ import annotations

START_TILT: list[float] = [-0.952, 1.393, -0.561, -1.582, -0.212, -0.731, 0.0, 0.0, 0.0, 0.308, -1.44, 0.996,
 -1.267, -0.171, 2.306, 0.0, 0.0, 0.0]
TILT: list[float] = [-2.278, -16.124, 0.195, -22.374, 0.569, 0.518, -31.806, -18.05, -14.801, 17.663, -31.439,
 18.351, 13.887, -29.898, -27.25, -318.189, -99.942, -148.423]
