"""Which sides of images the networks can be trained on: the one rule for conversion, check and training."""

from __future__ import annotations


def side_fault(side: int, halvings: int = 2) -> str:
    """Why a network that halves the side `halvings` times (its levels - 1) cannot take images of it; "" if it can.

    Sides below 16 that are no power of two are refused as the published tools do, larger ones are not.
    """
    if side % 4 or (side < 16 and side & (side - 1)):
        return f"the side {side} is not a power of two from 4 up, nor a multiple of 4 from 16 up"
    if side % 2**halvings:
        return f"the side {side} cannot be halved {halvings} times (see --arch); expected a multiple of {2**halvings}"
    return ""


def side_note(side: int) -> str:
    """What to know about a side without a fault; "" if nothing."""
    unfit = "" if side % 8 == 0 else ", and --arch=adm needs a multiple of 8"
    return f"the side {side} is not a power of two: the published tools refuse it{unfit}" if side & (side - 1) else ""
