"""The regulariser (Eq. 9): the loss, noise levels that fall, and what an estimate's own uncertainty makes of both."""

from .levels import Anneal
from .loss import SDSInfo, sds_loss
from .uncertainty import Uncertainty

__all__ = ["Anneal", "SDSInfo", "Uncertainty", "sds_loss"]
