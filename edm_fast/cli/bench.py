"""edm-fast bench: speed against eager PyTorch and the peers; tables, JSON, Markdown, a chart, the README's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edm_fast.cli import _options as opt
from edm_fast.errors import UserError
from edm_fast.evaluation import _machine, _report
from edm_fast.evaluation._rows import ROWS
from edm_fast.evaluation._targets import TARGETS
from edm_fast.evaluation.bench import bench

UNRECORDED = {"outdir", "readme", "results", "resume"}  # of the command; they change no number


class Names(click.ParamType):
    """Comma-separated names."""

    name = "names"

    def __init__(self, known: Any = None) -> None:
        self.known = known  # without them the names are presets, paths and addresses

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = value if isinstance(value, list) else [name.strip() for name in value.split(",")]
        for name in names:
            if not name or (self.known is not None and name not in self.known):
                self.fail(f"{name!r} is unknown; expected some of {', '.join(self.known or ['a,b'])}.", param, ctx)
        return names if self.known is not None else [opt.INPUT_PATH_OR_URL.convert(name, param, ctx) for name in names]


@click.command()
@click.argument(
    "targets", metavar="[networks] [sampling] [processes] [training]", nargs=-1, type=click.Choice(list(TARGETS))
)
@click.option("--networks", metavar="A,B", type=Names(), help="Presets, demo or checkpoints.  [default: by target]")
@click.option("--batch", "batches", metavar="LIST", type=opt.INT_LIST, help="As in 1,8,32.  [default: by target]")
@click.option("--rows", metavar="A,B", type=Names(ROWS), help=f"Of {', '.join(ROWS)}.  [default: all]")
@click.option("--threads", metavar="INT", type=opt.POSITIVE_INT, help="[default: torch's choice]")
@click.option("--rounds", metavar="INT", type=opt.POSITIVE_INT, default=5, show_default=True, help="Turns of each row.")
@click.option(
    "--outdir",
    metavar="DIR",
    type=opt.OUTPUT_PATH,
    default="out/bench",
    show_default=True,
    help="Where the results go.",
)
@click.option("--resume", is_flag=True, help="Keep what an earlier run with the same settings has finished.")
@click.option("--memory", is_flag=True, help="Also peak memory, of a process for each row.")
@click.option(
    "--readme",
    metavar="FILE",
    type=opt.OUTPUT_PATH,
    help="Measure nothing: rewrite this README's table from --results.  [default: none]",
)
@click.option(
    "--results",
    metavar="DIR",
    type=opt.INPUT_PATH,
    default="benchmarks/results",
    show_default=True,
    help="Read by --readme.",
)
@click.pass_context
def command(ctx: click.Context, targets: tuple[str, ...], **options: Any) -> None:
    """Time one evaluation of networks, a sampling run, a process of edm-fast generate, and a training step, each way by
    turns. The row "tuned" draws with the sampler file of the demo model.

    Speeds are relative to eager PyTorch in float32 on the reference backend. Presets get fresh random weights. Without
    --resume, the files of the targets are written anew.

    \b
    edm-fast bench
    edm-fast bench networks --networks=demo --batch=1,8 --rows=fused,torch.compile --threads=2
    """
    if options["readme"] is not None:
        changed = _report.update_readme(Path(options["readme"]), Path(options["results"]))
        click.echo(f"{options['readme']}: {'written' if changed else 'up to date'}")
        return
    batches = options["batches"]
    if batches is not None and (not batches or min(batches) < 1):
        raise UserError("--batch expects sizes of at least 1, as in 1,8,32")
    settings = {name: options[name] for name in ("networks", "batches", "rows", "rounds", "resume", "memory")}
    written = opt.command_line(ctx, "bench", *targets, unrecorded=UNRECORDED)
    with _machine.threads(options["threads"]):
        for target in dict.fromkeys(targets or TARGETS):
            path = bench(target, Path(options["outdir"]), _say, command=written, **settings)
            click.echo("\n".join(_report.table(_report.read(path))))
            for name in _report.write_pages(path):
                click.echo(name)


def _say(text: str) -> None:
    click.echo(text, err=True)
