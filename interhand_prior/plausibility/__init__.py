"""How usual a pair is: its score against held-out pairs, and how far `sds_loss` may move its placement.

What the network would change (`residuals`) and how the surfaces meet (`contact`) are the numbers (`evidence`) that
small networks (`critic`) read; they have learned to tell real pairs from wrong ones (`corruption`). A `score` is the
percentile of their answers among held-out pairs. The gate needs residuals alone, and a table of their quantiles
(`calibration`).
"""

from .calibration import Calibration, placement_gate
from .evidence import FINGERS
from .residuals import BLOCKS, LEVELS, log_residuals, probe_noise
from .scoring import Critics, Score, fit_critics, score

__all__ = [
    "BLOCKS",
    "FINGERS",
    "LEVELS",
    "Calibration",
    "Critics",
    "Score",
    "fit_critics",
    "log_residuals",
    "placement_gate",
    "probe_noise",
    "score",
]
