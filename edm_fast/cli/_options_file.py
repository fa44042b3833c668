"""training_options.json of a run folder: it tells of a run from its first step on, however often it is taken up."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from edm_fast import distributed
from edm_fast.errors import UserError, UserOSError, one_line
from edm_fast.files import atomic_write

OPTIONS_NAME = "training_options.json"
# keywords of the training loop that say where a run began
START = ("resume_pkl", "resume_kimg", "resume_state_dump", "ema_rampup_ratio")


def read_json(path: str) -> dict[str, Any]:
    """The object in a file. Numbers are finite: JSON has no others, though Python's reader does."""
    try:
        found = json.loads(Path(path).read_bytes(), parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({one_line(error)[:100]})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; expected the {OPTIONS_NAME} of a training run")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text}; expected a finite number")
    return number


def beginning(run_dir: str) -> dict[str, Any] | None:
    """How the run in this folder began, by the options that it has written; None if they cannot be read."""
    try:
        found = read_json(os.path.join(run_dir, OPTIONS_NAME))
    except UserError:
        return None
    return {name: found[name] for name in (*START, "seed") if name in found}


def with_beginning(settings: dict[str, Any], run_dir: str) -> dict[str, Any]:
    """Settings of the whole run in this folder: those with which it goes on, but for where it began.

    If nobody can tell, they keep the state, with which no run can be repeated; see `read_settings`.
    """
    began = beginning(run_dir)
    return settings if began is None else {k: v for k, v in settings.items() if k not in START} | began


def write_options(settings: dict[str, Any], run_dir: str) -> None:
    beside = {"run_dir": run_dir, "processes": distributed.world_size()}
    try:
        with atomic_write(Path(run_dir) / OPTIONS_NAME, "w", kind="json") as file:
            json.dump({**settings, **beside}, file, indent=2)
    except OSError as error:
        raise UserOSError(f"cannot write to {run_dir}: {error.strerror or error}") from error
