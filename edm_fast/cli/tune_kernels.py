"""edm-fast tune-kernels: show, clear or fill the tables of measured kernels that accelerated networks go by."""

from __future__ import annotations

from typing import Any

import click
import torch

from edm_fast.cli import _options as opt
from edm_fast.cli._device import resolve_device
from edm_fast.errors import UserError
from edm_fast.evaluation import _machine, _networks
from edm_fast.evaluation._peers import SIGMA
from edm_fast.files import cache_folder
from edm_fast.plan import PRECISIONS
from edm_fast.plan._table import MAX_COUNT, Table, at_once, summary, tables

ALL_PRECISIONS = list(dict.fromkeys(name for names in PRECISIONS.values() for name in names))


@click.command()
@click.option(
    "--network",
    metavar="PATH|URL|PRESET",
    type=opt.INPUT_PATH_OR_URL,
    help="Measure for this network what is not known, or not well enough.  [default: none]",
)
@click.option(
    "--batch", "batches", metavar="LIST", type=opt.INT_LIST, default="1", show_default=True, help="As in 1,8,32."
)
@click.option("--precision", type=click.Choice(ALL_PRECISIONS), default="fp32", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", metavar="INT", type=opt.POSITIVE_INT, help="[default: torch's choice]")
@click.option("--clear", is_flag=True, help="First remove every table.")
@click.option("--show", is_flag=True, help="Show every row of the tables.")
def command(
    network: str | None,
    batches: list[int],
    precision: str,
    device: str,
    threads: int | None,
    clear: bool,
    show: bool,
) -> None:
    """Show, clear or fill the tables of measured kernels.

    An accelerated network measures each kernel when it first meets a shape, and from then on goes by its table. Rows
    whose times disagreed, as on a busy machine, are measured again by later runs; this verb does so at once.

    \b
    edm-fast tune-kernels
    edm-fast tune-kernels --clear --network=edm-cifar10-32x32-cond-vp --batch=1,8 --precision=fp32
    """
    if min(batches, default=0) < 1:
        raise UserError("--batch expects sizes of at least 1, as in 1,8,32")
    if clear:
        for table in tables():
            table.path.unlink(missing_ok=True)
            click.echo(f"removed {table.path}")
    if network is not None:
        measure(network, resolve_device(device, group=False), batches, precision, threads)
    found = tables()
    for table in found:
        click.echo("\n".join([f"{table.path}:", f"  {summary(table)}", *(row_lines(table) if show else [])]))
    if not found:
        click.echo(f"no tables in {cache_folder() / 'plans'}")


def measure(network: str, device: torch.device, batches: list[int], precision: str, threads: int | None) -> None:
    """Make the plans of a network so often that rows whose times disagree are settled."""
    net = _networks.open_network(network, device)
    with _machine.threads(threads), torch.no_grad():
        for batch in batches:
            example = _networks.inputs(net, batch, SIGMA, device=device)
            for _ in range(MAX_COUNT):
                before = rows()
                with at_once():
                    _networks.accelerated(net, precision)(*example)
                if rows() == before:
                    break


def rows() -> dict[Any, Any]:
    return {(table.path, key): row for table in tables() for key, row in table.rows.items()}


def row_lines(table: Table) -> list[str]:
    lines = []
    for key, row in sorted(table.rows.items()):
        found = f"dropped: {row.fault}" if row.fault else f"{row.seconds * 1e3:9.3f} ms  spread {row.spread:7.1%}"
        lines.append(f"  {row.date[:10]}  measured {row.count}x  {found}  {key}")
    return lines
