"""Training: losses, data, augmentation and the loop."""

from edm_fast.data import ImageFolderDataset
from edm_fast.diffusion.loss import EDMLoss, VELoss, VPLoss
from edm_fast.training._augment import AugmentPipe

__all__ = ["AugmentPipe", "EDMLoss", "ImageFolderDataset", "VELoss", "VPLoss"]
