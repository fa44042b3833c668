"""What the processes of a group do together, or one of them for all; and shards, which know nothing of each other."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from edm_fast import distributed
from edm_fast.cli import _options as opt
from edm_fast.cli._errors import error_line
from edm_fast.errors import UserError

T = TypeVar("T")
FROM_ENVIRONMENT = "environment"


def parse_shard(text: str) -> tuple[int, int, str]:
    """(I, N, what says so) of I/N, or of the variables that launchers set."""
    if text == FROM_ENVIRONMENT:
        return distributed.shard()
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if numbers is None or not int(numbers[1]) < int(numbers[2]):
        raise UserError(f"{text!r} is not I/N with I from 0 to N-1, such as 0/8")
    return int(numbers[1]), int(numbers[2]), "--shard"


def shard_option(what: str) -> Callable[[Any], Any]:
    """--shard of a command; `what` says what it does, as the beginning of its help."""
    return click.option(
        "--shard",
        metavar="I/N",
        type=opt.Parsed(parse_shard),
        is_flag=False,
        flag_value=FROM_ENVIRONMENT,
        help=f"{what}; no I/N: by Slurm, MPI, torchrun.  [default: all]",
    )


def on_first_rank(function: Callable[[], T]) -> T:
    """What function() returns on rank 0, on every rank. An error stops all ranks and is told once."""
    result, line = None, None
    if distributed.rank() == 0:
        try:
            result = function()
        except Exception as error:
            line = error_line(error)
            distributed.broadcast_object((None, line or repr(error)))
            raise
    result, line = distributed.broadcast_object((result, line))
    if line is not None:
        sys.exit(2)
    return result


def wait_for_others() -> None:
    try:
        distributed.barrier()
    except RuntimeError as error:  # it has said why by itself
        raise UserError("another process has stopped; the images made so far are whole") from error
