"""A plug-in prior over two interacting hands (InterHandGen, CVPR 2024, as a library).

prior = load_prior()                                       # bundled, works offline
loss = task_loss + 0.1 * sds_loss(prior, left, right)      # Eq. 9 in any training or fitting loop
sample(prior, 16, seed=0).export("hands.glb")              # Algorithm 2
"""

from ._version import __version__
from .hub import load_prior
from .params import HandParams, TwoHands
from .prior import TwoHandPrior
from .sampling import sample
from .sds import sds_loss

__all__ = ["HandParams", "TwoHandPrior", "TwoHands", "__version__", "load_prior", "sample", "sds_loss"]
