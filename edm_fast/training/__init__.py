"""Training: losses, data, augmentation and the loop."""

from edm_fast.data import ImageFolderDataset
from edm_fast.diffusion.loss import EDMLoss, VELoss, VPLoss
from edm_fast.training._augment import AUGMENT, AUGMENT_LABELS, AugmentPipe
from edm_fast.training._build import describe_network
from edm_fast.training._folder import check_free, clear_leftovers, run_results
from edm_fast.training._run import deal_batch
from edm_fast.training._schedule import ema_beta, learning_rate
from edm_fast.training._state import latest_state
from edm_fast.training._stop import Interrupted, Stopped
from edm_fast.training.loop import training_loop

__all__ = [
    "AUGMENT",
    "AUGMENT_LABELS",
    "AugmentPipe",
    "EDMLoss",
    "ImageFolderDataset",
    "Interrupted",
    "Stopped",
    "VELoss",
    "VPLoss",
    "check_free",
    "clear_leftovers",
    "deal_batch",
    "describe_network",
    "ema_beta",
    "latest_state",
    "learning_rate",
    "run_results",
    "training_loop",
]
