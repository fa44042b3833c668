"""The program edm-fast: one file per verb, loaded when the verb is used, and one place that prints errors."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from edm_fast.cli import _streams
from edm_fast.cli._errors import error_line, plain_warnings

# the summaries stand here so that listing the verbs imports none of them
VERBS = {
    "generate": "Draw images from a network.",
    "train": "Train a network on a dataset.",
    "fid": "Compute Frechet distances between sets of images.",
    "dataset": "Convert images into a dataset, or check one.",
    "convert": "Convert checkpoints between formats.",
    "bench": "Measure speed against the peers.",
    "verify": "Measure each backend's error.",
    "tune-kernels": "Show, clear or fill the tables of measured kernels.",
    "doctor": "Say what is installed, what is missing, and what will run.",
}


def version() -> str:
    try:
        return importlib.metadata.version("edm-fast")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def module_of(verb: str) -> str:
    return f"{__name__}.{verb.replace('-', '_')}"


class Program(click.Group):
    """Loads verbs on demand; prints `Error: <one line>` and exits with 2 on bad input."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if importlib.util.find_spec(module_of(verb))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(module_of(cmd_name)).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, VERBS[verb]) for verb in self.list_commands(ctx)])

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


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="edm-fast")
def main() -> None:
    """Sampling and training of EDM diffusion models with fused kernels."""
