"""Where the numbers of a run also go: TensorBoard where that is installed, and a module with wandb's functions."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edm_fast.errors import BROKEN, UserError, one_line

Row = Mapping[str, Mapping[str, float]]
FUNCTIONS = ("init", "log", "finish")
EXPECTED = "expected a module with wandb's init, log and finish, such as wandb or trackio"


class TensorBoard:
    """Scalars in event files."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, row: Row, cur_nimg: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value["mean"], global_step=cur_nimg)
        self._writer.flush()

    def close(self) -> None:
        pass  # each row is flushed


def tensorboard(folder: Path) -> TensorBoard | None:
    """None where it is not installed: an optional extra."""
    try:
        return TensorBoard(folder)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("torch", "tensorboard"):
            return None
        raise


class Logger:
    """A run of a module with wandb's functions: init(project, name, config, resume), log(numbers, step) and finish().

    UserError if there is no such module, or if it does not begin a run.
    """

    def __init__(self, name: str, run: str, config: Mapping[str, Any]) -> None:
        try:
            self._module: Any = importlib.import_module(name)
            if missing := [each for each in FUNCTIONS if not callable(getattr(self._module, each, None))]:
                raise UserError(f"the module {name} has no {', '.join(missing)}; {EXPECTED}")
            self._module.init(project="edm-fast", name=run, config=config, resume="allow")
        except UserError:
            raise
        except BROKEN as error:
            reason = f"{type(error).__name__}: {one_line(error)}"[:200]
            raise UserError(f"{name} does not begin a run ({reason}); {EXPECTED}") from error

    def write(self, row: Row, cur_nimg: int) -> None:
        self._module.log({name: value["mean"] for name, value in row.items()}, step=cur_nimg)

    def close(self) -> None:
        self._module.finish()


def try_each(boards: dict[str, Any], action: Callable[[Any], None]) -> None:
    """They are extras: one that fails is left out, after one line, and training goes on."""
    for name, board in [*boards.items()]:
        try:
            action(board)
        except BROKEN as error:
            say_failed(name, error)
            del boards[name]


def say_failed(name: str, error: BaseException) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    print(f"Going on without {name}, which failed ({reason}); stats.jsonl has all numbers", flush=True)
