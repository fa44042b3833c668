"""Training: losses, data, augmentation and the loop."""

from edm_fast.data import ImageFolderDataset
from edm_fast.diffusion.loss import EDM2Loss, EDMLoss, VELoss, VPLoss
from edm_fast.training._augment import AUGMENT, AUGMENT_LABELS, AugmentPipe
from edm_fast.training._averages import PowerFunctionEMA, TraditionalEMA
from edm_fast.training._build import build_dataset, build_encoder, describe_network
from edm_fast.training._folder import check_free, clear_leftovers, is_inside, run_results
from edm_fast.training._forecast import forecast
from edm_fast.training._precision import PRECISIONS, Precision
from edm_fast.training._recipes import is_edm2
from edm_fast.training._reconstruct import (
    StoredAverage,
    images_of,
    inputs_until,
    reconstruct_averages,
    stored_averages,
)
from edm_fast.training._schedule import ema_beta, inverse_sqrt_rate, learning_rate
from edm_fast.training._state import latest_state
from edm_fast.training._stop import Interrupted, Stopped
from edm_fast.training.loop import check_settings, training_loop

__all__ = [
    "AUGMENT",
    "AUGMENT_LABELS",
    "AugmentPipe",
    "EDM2Loss",
    "EDMLoss",
    "ImageFolderDataset",
    "Interrupted",
    "PRECISIONS",
    "PowerFunctionEMA",
    "Precision",
    "Stopped",
    "StoredAverage",
    "TraditionalEMA",
    "VELoss",
    "VPLoss",
    "build_dataset",
    "build_encoder",
    "check_free",
    "check_settings",
    "clear_leftovers",
    "describe_network",
    "ema_beta",
    "forecast",
    "images_of",
    "inputs_until",
    "inverse_sqrt_rate",
    "is_edm2",
    "is_inside",
    "latest_state",
    "learning_rate",
    "reconstruct_averages",
    "run_results",
    "stored_averages",
    "training_loop",
]
