"""The networks of Karras et al. 2022, their preconditioners, and the published models by name."""

from edm_fast.networks._attention import attention_levels
from edm_fast.networks._block import UNetBlock
from edm_fast.networks._build import build
from edm_fast.networks._dhariwal import DhariwalUNet
from edm_fast.networks._layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    weight_init,
)
from edm_fast.networks._precond import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from edm_fast.networks._songunet import SongUNet
from edm_fast.networks.presets import ARCHITECTURES, PRESETS, preset

__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "Conv2d",
    "DhariwalUNet",
    "EDMPrecond",
    "FourierEmbedding",
    "GroupNorm",
    "Linear",
    "PositionalEmbedding",
    "SongUNet",
    "UNetBlock",
    "VEPrecond",
    "VPPrecond",
    "attention_levels",
    "build",
    "iDDPMPrecond",
    "preset",
    "weight_init",
]
