"""The functional API: one function per op, each in a folder of its own."""

from edm_fast.ops.attention import attention
from edm_fast.ops.conv2d import conv2d
from edm_fast.ops.group_norm_silu import group_norm_silu
from edm_fast.ops.pixel_norm import pixel_norm
from edm_fast.ops.solver_update import solver_update
from edm_fast.ops.upfirdn import upfirdn

__all__ = ["attention", "conv2d", "group_norm_silu", "pixel_norm", "solver_update", "upfirdn"]
