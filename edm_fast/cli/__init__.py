"""The program edm-fast: one file per verb, loaded when the verb is used, and one place that prints errors."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from edm_fast import __version__
from edm_fast.cli import _streams
from edm_fast.cli._errors import error_line, plain_warnings

# the summaries stand here so that listing the verbs imports none of them
VERBS = {
    "generate": "Draw images from a network.",
    "tune": "Find the fewest evaluations that keep a bound on the error.",
    "train": "Train a network on a dataset.",
    "ema": "Make averages of weights of any width after training.",
    "fid": "Compute Frechet distances between sets of images.",
    "dataset": "Convert images into a dataset, or check one.",
    "convert": "Convert checkpoints between formats.",
    "study": "Measure what a choice does to images: solver, noise, precision, ...",
    "bench": "Measure speed against the peers.",
    "verify": "Measure each backend's error.",
    "tune-kernels": "Show, clear or fill the tables of measured kernels.",
    "doctor": "Say what is installed, what is missing, and what will run.",
}


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """While torch is imported: each search among its objects takes 0.1 s and finds nothing, and would again later."""
    first = "torch" not in sys.modules and gc.isenabled()
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()


def module_of(verb: str) -> str:
    return f"{__name__}.{verb.replace('-', '_')}"


class Verbs(click.Group):
    """Loads verbs on demand; prints `Error: <one line>` and exits with 2 on bad input."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        with no_garbage_collection():
            return importlib.import_module(module_of(cmd_name)).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **kw: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **kw)
        _streams.prepare()
        try:
            with plain_warnings():
                status = super().main(args, prog_name, standalone_mode=False, **kw)
            sys.stdout.flush()
        except (click.Abort, KeyboardInterrupt):
            _stop("interrupted", 130)
        except BrokenPipeError:
            # whoever read our output has left; a second flush at exit would complain again
            _streams.silence_broken()
            sys.exit(1)
        except BaseException as error:
            if isinstance(error, click.UsageError) and error.ctx and "\n" in error.format_message():
                click.echo(error.format_message(), err=True)  # no verb given: click's message is the help page
                sys.exit(2)
            line = error_line(error)
            if line is None:
                raise
            _stop(line, 2)
        sys.exit(status if isinstance(status, int) else 0)


def _stop(line: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        click.echo(f"Error: {line}", err=True)
    _streams.silence_broken()
    sys.exit(code)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edm-fast")
def main() -> None:
    """Sampling and training of EDM diffusion models with fused kernels."""
