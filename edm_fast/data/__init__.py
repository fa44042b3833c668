"""Data sets and the order in which training reads them."""

from edm_fast.data.dataset import ImageFolderDataset
from edm_fast.data.digits import demo_digits
from edm_fast.data.index_stream import EpochSampler, InfiniteSampler, mixed_seed

__all__ = ["EpochSampler", "ImageFolderDataset", "InfiniteSampler", "demo_digits", "mixed_seed"]
