"""The networks of Karras et al. 2022 and 2024, their preconditioners, and the published models by name."""

from edm_fast.networks._attention import attention_levels
from edm_fast.networks._block import UNetBlock
from edm_fast.networks._build import build
from edm_fast.networks._dhariwal import DhariwalUNet
from edm_fast.networks._edm2 import Block, MPConv, MPFourier, UNet, mp_cat, mp_silu, mp_sum, normalize, resample
from edm_fast.networks._layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    weight_init,
)
from edm_fast.networks._precond import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond
from edm_fast.networks._songunet import SongUNet
from edm_fast.networks.presets import ARCHITECTURES, PRESETS, preset

__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "Block",
    "Conv2d",
    "DhariwalUNet",
    "EDMPrecond",
    "FourierEmbedding",
    "GroupNorm",
    "Linear",
    "MPConv",
    "MPFourier",
    "PositionalEmbedding",
    "Precond",
    "SongUNet",
    "UNet",
    "UNetBlock",
    "VEPrecond",
    "VPPrecond",
    "attention_levels",
    "build",
    "iDDPMPrecond",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "normalize",
    "preset",
    "resample",
    "weight_init",
]
