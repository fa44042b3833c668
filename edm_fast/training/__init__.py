"""Training: losses, data, augmentation and the loop."""

from edm_fast.data import ImageFolderDataset
from edm_fast.diffusion.loss import EDMLoss, VELoss, VPLoss
from edm_fast.training._augment import AugmentPipe
from edm_fast.training._schedule import ema_beta, learning_rate
from edm_fast.training._state import latest_state
from edm_fast.training.loop import training_loop

__all__ = [
    "AugmentPipe",
    "EDMLoss",
    "ImageFolderDataset",
    "VELoss",
    "VPLoss",
    "ema_beta",
    "latest_state",
    "learning_rate",
    "training_loop",
]
