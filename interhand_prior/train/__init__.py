"""Algorithm 1: `train(pairs, TrainConfig(...), out)`, or `python -m interhand_prior.train`."""

from .config import TrainConfig
from .prior import train
from .trainer import TrainingDiverged

__all__ = ["TrainConfig", "TrainingDiverged", "train"]
