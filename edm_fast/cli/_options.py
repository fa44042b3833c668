"""Option types the verbs share. Each refuses bad values with one line."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable
from typing import Any

import click
from click.core import ParameterSource

from edm_fast.errors import UserError
from edm_fast.files import link_target, user_path

# far above any published use (50,000 images); a slip such as 0-99999999999 must not fill the memory
MAX_INTS = 10_000_000


def parse_int_list(text: str) -> list[int]:
    """`"1,2,5-10"` -> [1, 2, 5, ..., 10]: both ends included, order and repeats kept, `9-8` is empty."""
    if isinstance(text, (list, tuple)):
        return [int(value) for value in text]
    result: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d+)-(\d+)", part)
        try:
            numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else (int(part),)
        except ValueError:
            raise UserError(f"{part!r} is not an integer or a range such as 0-63 (in {text!r})") from None
        if len(result) + max(numbers[-1] - numbers[0] + 1 if numbers else 0, 0) > MAX_INTS:
            raise UserError(f"{text!r} stands for more than {MAX_INTS:,} integers")
        result.extend(numbers)
    return result


def int_list_text(numbers: Iterable[int]) -> str:
    """What parse_int_list takes: [1, 2, 3, 7] -> "1-3,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1 and runs[-1][0] >= 0:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


class Count(int):
    """A number of images that was typed with a unit."""


def parse_images(text: str) -> int:
    """ "128Ki" -> 131072, of class Count; "1000" -> 1000"""
    match = re.fullmatch(r"(\d{1,18})(Ki|Mi|Gi)?", text)
    if match is None:
        raise UserError(f"{text!r} is no number of images; expected an integer such as 1000, 128Ki, 8Mi or 2Gi")
    return Count(int(match[1]) * UNITS[match[2]]) if match[2] else int(match[1])


def parse_batch(text: str) -> int:
    """parse_images() of 1 and more."""
    number = parse_images(text)
    if number < 1:
        raise UserError(f"{text!r} is no batch; expected an integer from 1 on")
    return number


def parse_duration(text: str) -> float:
    """Million images, or with a unit a Count."""
    found = parse_images(text) if text.endswith(tuple(UNITS)) else POSITIVE.convert(text, None, None)
    if not found:
        raise UserError(f"{text!r} is no length; expected a number above 0")
    return found


def command_line(ctx: click.Context, *words: str, unrecorded: Collection[str] = ()) -> str:
    """The command as it was typed, without the parameters `unrecorded`, which change no number."""
    parts = ["edm-fast", *words]
    for param in ctx.command.params:
        name, value = str(param.name), ctx.params.get(str(param.name))
        typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if isinstance(param, click.Option) and typed and name not in unrecorded:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(param.opts[0] if value is True else f"{param.opts[0]}={text}")
    return shlex.join(parts)


class Parsed(click.ParamType):
    """What a function makes of text; its UserErrors are told as bad values of the option."""

    name = "list"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value
        except UserError as error:
            self.fail(str(error), param, ctx)


class Float(click.FloatRange):
    """A float in a range; NaN is never one, and infinity only where allowed."""

    name = "float"

    def __init__(
        self, min: float | None = None, *, min_open: bool = False, max: float | None = None, inf: bool = False
    ) -> None:
        super().__init__(min=min, min_open=min_open, max=max)
        self.inf = inf

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number) or (math.isinf(number) and not self.inf):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


class UserPath(click.ParamType):
    """A path, or an http(s) address where `url` allows one, with ~ expanded; empty text is none.

    For an `output`, a symbolic link to nothing is what it leads to, as no folder can be made under its own name.
    """

    name = "path"

    def __init__(self, url: bool = False, output: bool = False) -> None:
        self.url = url
        self.output = output

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            path = user_path(value, self.url)
            to_nothing = self.output and os.path.islink(path) and not os.path.exists(path)
            return str(link_target(path)) if to_nothing else path  # as given: a slash at its end says folder
        except UserError as error:
            self.fail(str(error), param, ctx)


INPUT_PATH = UserPath()
INPUT_PATH_OR_URL = UserPath(url=True)
OUTPUT_PATH = UserPath(output=True)
INT_LIST = Parsed(parse_int_list)
POSITIVE_INT = click.IntRange(min=1)
NON_NEGATIVE_INT = click.IntRange(min=0)
POSITIVE = Float(0, min_open=True)
NON_NEGATIVE = Float(0)
NON_NEGATIVE_OR_INF = Float(0, inf=True)
FINITE = Float()
PROBABILITY = Float(0, max=1)
IMAGES = Parsed(parse_images)
BATCH = Parsed(parse_batch)
DURATION = Parsed(parse_duration)
