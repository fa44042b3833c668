"""What changes while training runs: the learning rate and the memory of the weight average."""

from __future__ import annotations

import math


def learning_rate(cur_nimg: int, lr: float, lr_rampup_kimg: float) -> float:
    """lr min(cur_nimg / (1000 lr_rampup_kimg), 1): linear from 0 at the first step."""
    return lr * min(cur_nimg / max(lr_rampup_kimg * 1000, 1e-8), 1)


def inverse_sqrt_rate(
    cur_nimg: int, batch_size: int, ref_lr: float = 0.01, ref_batches: float = 70e3, rampup_Mimg: float = 10
) -> float:
    """ref_lr / sqrt(max(steps / ref_batches, 1)) min(cur_nimg / rampup_Mimg million, 1), steps = cur_nimg / batch_size.

    0 leaves a factor out. Karras et al. 2024, Eq. 67.
    """
    lr = ref_lr
    if ref_batches > 0:
        lr /= math.sqrt(max(cur_nimg / (ref_batches * batch_size), 1))
    return lr * min(cur_nimg / (rampup_Mimg * 1e6), 1) if rampup_Mimg > 0 else lr


def ema_beta(cur_nimg: int, batch_size: int, ema_halflife_kimg: float, ema_rampup_ratio: float | None = None) -> float:
    """0.5^(batch_size / h): what is left of the average after one step.

    The half-life h is 1000 ema_halflife_kimg images, early on at most ema_rampup_ratio of the images seen.
    """
    halflife = ema_halflife_kimg * 1000
    if ema_rampup_ratio is not None:
        halflife = min(halflife, cur_nimg * ema_rampup_ratio)
    return 0.5 ** (batch_size / max(halflife, 1e-8))
