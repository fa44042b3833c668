"""edm-fast verify: the error of each backend and of whole networks against float64, as a table and as JSON."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable
from typing import Any

import click

from edm_fast.checkpoint import DEMO
from edm_fast.checkpoint.native import CONFIG_NAME
from edm_fast.cli import _options as opt
from edm_fast.cli._device import resolve_device
from edm_fast.cli._outputs import expect_output
from edm_fast.evaluation import _machine, _networks
from edm_fast.evaluation.verify import real_calls, summary, verify_network, verify_ops
from edm_fast.files import atomic_write


@click.command()
@click.option(
    "--network",
    metavar="PATH|URL|PRESET",
    type=opt.INPUT_PATH_OR_URL,
    default=DEMO,
    show_default=True,
    help="What to check.",
)
@click.option("--device", default="auto", show_default=True, help="Of the network: auto, cpu, cuda or cuda:N.")
@click.option(
    "--json", "json_path", metavar="FILE", type=opt.OUTPUT_PATH, help="Also write every case as JSON.  [default: none]"
)
def command(network: str, device: str, json_path: str | None) -> None:
    """Compare each backend of each op, and each way to evaluate a network, with float64.

    Prints the largest error, the share of the error budget it takes, the largest distance from the reference in units
    in the last place, and whether the bits are the same. Exit code 1 if an error is over its budget. A preset gets
    fresh random weights.

    \b
    edm-fast verify
    edm-fast verify --network=edm-cifar10-32x32-cond-vp --json=out/verify.json
    """
    where = resolve_device(device, group=False)
    if json_path is not None:
        expect_output(json_path, "json", network, os.path.join(network, CONFIG_NAME))
    net = _networks.open_network(network, where)
    ops = verify_ops(real_calls())
    click.echo("\n".join(op_lines(ops)))
    networks = verify_network(network, net)
    click.echo("\n".join(network_lines(networks)))
    ok = all(row["ok"] for row in (*ops, *networks))
    if json_path is not None:
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        found = {"settings": _machine.settings(where), "date": date, "ok": ok, "ops": ops, "networks": networks}
        with atomic_write(json_path, "w", kind="json") as file:
            file.write(json.dumps(found, indent=1) + "\n")
    click.echo("every error is within its budget" if ok else "OVER BUDGET: see FAILED above")
    if not ok:
        raise SystemExit(1)


def op_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    lines = ["ops at layer shapes of the published networks, the worst case of each:"]
    lines.append(
        f"  {'op':16s}{'backend':10s}{'device':7s}{'dtype':9s}{'error':>8s}  relative  budget      ulp  bit-identical"
    )
    for row in summary(rows):
        lines.append(
            f"  {row['op']:16s}{row['backend']:10s}{row['device']:7s}{row['dtype']:9s}{row['error']:8.1e}"
            f"{row['relative']:10.1e}{row['budget_spent']:8.0%}{_count(row['ulp']):>9s}"
            f"  {row['identical']} of {row['cases']}{'' if row['ok'] else '  FAILED'}"
        )
    return lines


def network_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    lines = ["networks, one evaluation of 2 images, relative error ||y - y64|| / ||y64|| and largest error:"]
    lines.append(
        f"  {'network':32s}{'way':17s}{'sigma':>6s}{'error':>9s}{'largest':>9s}  budget      ulp  bit-identical"
    )
    for row in rows:
        where = f"  {row['network'][-31:]:32s}{row['way']:17s}"
        if "reason" in row:
            lines.append(f"{where} cannot run: {row['reason']}")
            continue
        lines.append(
            f"{where}{row['sigma']:6g}{row['relative']:9.1e}{row['largest']:9.1e}{row['relative'] / row['budget']:8.0%}"
            f"{_count(row['ulp']):>9s}  {'yes' if row['identical'] else 'no'}{'' if row['ok'] else '  FAILED'}"
        )
    return lines


def _count(ulp: float) -> str:
    return f"{ulp:.0f}" if ulp < 1e6 else f"{ulp:.1e}"
