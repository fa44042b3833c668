"""Lists of widths of averages on the command line."""

from __future__ import annotations

from edm_fast.cli import _options as opt
from edm_fast.errors import UserError

WIDEST = 0.289


def parse_widths(text: str) -> list[float]:
    """Numbers such as 0.05,0.1 or 0.01,0.02,...,0.1: the dots go on with the last step. Sorted, each once."""
    found: list[float] = []
    parts = text.split(",")
    for index, part in enumerate(parts):
        if part == "...":
            if len(found) < 2 or index + 1 == len(parts):
                raise UserError(f"{text!r}: the dots stand between two numbers and a last one, as in 0.01,0.02,...,0.1")
            continue
        try:
            value = float(part)
        except ValueError:
            raise UserError(f"{part!r} is no number (in {text!r}); expected widths such as 0.05,0.1") from None
        if index and parts[index - 1] == "...":
            first, step = found[-1], found[-1] - found[-2]
            steps = (value - first) / step if step else 0.0
            if steps < 0.5 or abs(steps - round(steps)) > 1e-4:
                raise UserError(f"{text!r}: {value:g} is not reached from {first:g} in steps of {step:g}")
            found += [first + i * step for i in range(1, round(steps))]
        found.append(value)
    if not all(0 < value < WIDEST for value in found):
        raise UserError(f"{text!r}: expected widths above 0 and below {WIDEST}")
    return sorted(set(found))


WIDTHS = opt.Parsed(parse_widths)
