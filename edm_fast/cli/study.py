"""edm-fast study: one question about a checkpoint, answered by measurements; tables, JSON, a chart, a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edm_fast.checkpoint import DEMO
from edm_fast.cli import _options as opt
from edm_fast.cli._device import resolve_device
from edm_fast.errors import UserError, near
from edm_fast.studies import Option, Session, Study, registry, run_study

UNRECORDED = {"outdir", "resume"}  # of the command; they change no number


def parse_words(text: str) -> list[str]:
    """ "a,b" """
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(f"{text!r} has an empty name; expected names such as a,b")
    return words


def parse_numbers(text: str) -> list[float]:
    """ "0,0.5,2" """
    return [opt.NON_NEGATIVE.convert(part, None, None) for part in text.split(",")]


KINDS: dict[str, tuple[str, Any]] = {
    "ints": ("LIST", opt.INT_LIST),
    "numbers": ("LIST", opt.Parsed(parse_numbers)),
    "word": ("NAME", str),
    "words": ("A,B", opt.Parsed(parse_words)),
    "count": ("INT", opt.POSITIVE_INT),
    "positive": ("FLOAT", opt.POSITIVE),
    "path": ("PATH", opt.INPUT_PATH),
    "address": ("PATH|URL", opt.INPUT_PATH_OR_URL),
}


class Studies(click.Group):
    """A command for each study."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(registry())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in registry():
            return _command(registry()[cmd_name])
        known = self.list_commands(ctx)
        raise UserError(f"no study is called {cmd_name!r}{near(cmd_name, known)}; expected one of {', '.join(known)}")


@click.group(cls=Studies)
def command() -> None:
    """Measure what a choice does to the images of a network.

    Each study writes CSV, JSON, a PNG chart and an HTML page, shows its progress, and goes on after a kill (--resume).

    \b
    edm-fast study truncation
    edm-fast study precision --network=model.safetensors --seeds=0-63
    """


def _option(name: str, metavar: str, kind: Any, default: Any, text: str) -> click.Option:
    return click.Option(
        [name], metavar=metavar, type=kind, default=default, show_default=default is not None, help=text
    )


def _command(study: Study) -> click.Command:
    own = {f"--{name.replace('_', '-')}": option for name, option in study.options.items()}
    params: list[click.Parameter] = [
        *([_option("--network", "PATH|URL", opt.INPUT_PATH_OR_URL, DEMO, "Checkpoint.")] * study.needs_network),
        _option("--outdir", "DIR", opt.OUTPUT_PATH, "out/study", "Where the results go."),
        _option("--seeds", "LIST", opt.INT_LIST, study.seeds, "Of the images, as in 1,2,5-10."),
        _option("--batch", "INT", opt.POSITIVE_INT, 64, "Most images at a time."),
        _option("--device", "NAME", str, "auto", "auto, cpu, cuda or cuda:N."),
        *(_own_option(name, option) for name, option in own.items()),
        click.Option(["--resume"], is_flag=True, help="Keep what an earlier run with the same settings has measured."),
    ]
    text = "\n\n".join([study.summary, *study.words])
    return click.Command(study.name, params=params, callback=click.pass_context(_callback(study)), help=text)


def _own_option(name: str, option: Option) -> click.Option:
    metavar, kind = KINDS[option.kind]
    default = ",".join(map(str, option.default)) if isinstance(option.default, (list, tuple)) else option.default
    return _option(name, metavar, kind, default, option.help)


def _callback(study: Study) -> Any:
    def callback(ctx: click.Context, **options: Any) -> None:
        if not options["seeds"] or len({*options["seeds"]}) < len(options["seeds"]):
            raise UserError("--seeds expects different integers, as in 0-15")
        session = Session(
            study,
            options.get("network", ""),
            options["seeds"],
            Path(options["outdir"]),
            {name: options[name] for name in study.options},
            options["batch"],
            resolve_device(options["device"], group=False),
            options["resume"],
        )
        written = opt.command_line(ctx, "study", study.name, unrecorded=UNRECORDED)
        for path in run_study(session, written, lambda text: click.echo(text, err=True)):
            click.echo(path)

    return callback
