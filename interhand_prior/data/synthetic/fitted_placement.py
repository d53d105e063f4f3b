# fmt: off
"""Numbers of the loose placements, written by ``python -m interhand_prior.data.synthetic.fit_placement``.

Do not edit. START_TILT tilts the starts (`placement`), TILT the loose placements (`loose`).
"""

from __future__ import annotations

START_TILT: list[float] = [-0.871, 1.101, -0.558, -1.225, -0.217, -0.515, 0.0, 0.0, 0.0, 0.562, -1.481, 1.226,
 -1.36, 0.133, 3.018, 0.0, 0.0, 0.0]
TILT: list[float] = [-1.56, -14.685, -1.418, -24.662, 1.719, -1.398, -33.302, -27.93, 8.608, 17.832, -35.461,
 19.049, 11.87, -28.393, -26.283, -366.601, -84.074, -67.397]
