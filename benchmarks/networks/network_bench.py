"""What the benchmarks of whole networks share: each round times the reference, then the row, in one process.

The functions are those of `edm-fast bench`, which times all rows by turns; here a row is a benchmark of its own.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from edm_fast import timing
from edm_fast.errors import UserError
from edm_fast.evaluation import _machine, _networks, _peers
from edm_fast.evaluation._rows import ROWS
from edm_fast.evaluation._targets import TARGETS, default_batches

ROUNDS = 5
_open = functools.lru_cache(maxsize=1)(_networks.open_network)


def parameters(target: str) -> list[Any]:
    """(network, batch, row), network by network."""
    return [
        pytest.param(network, batch, row, id=f"{network}-{batch}-{row}")
        for network in TARGETS[target].networks
        for batch in default_batches(target, network)
        for row in TARGETS[target].rows
    ]


def time_row(benchmark: Any, target: str, network: str, batch: int, row: str) -> None:
    """Time a row against the reference; skip one that cannot run, and say why."""
    prepare = TARGETS[target].prepare
    with _peers.subject(_open(network), batch) as subject:
        try:
            call = prepare(ROWS[row], subject)
            results = call()
        except UserError as error:
            pytest.skip(str(error))
        reference = prepare(ROWS["reference"], subject)
        truth, times = reference(), []
        benchmark.group = f"{target} {network} batch {batch}"
        benchmark.pedantic(
            call, setup=lambda: times.append(timing.wall_clock(reference)), rounds=ROUNDS, warmup_rounds=1
        )
    found = timing.compared(benchmark.stats.stats.data, times[-ROUNDS:])
    found["error"] = _networks.relative_error(results, truth)
    where = {"target": target, "network": network, "batch": batch, "row": row, **ROWS[row].described()}
    benchmark.extra_info.update(_machine.settings(torch.device("cpu")), **where, **found)
    print(
        f"{network:28s} batch {batch:3d} {row:17s} median {found['median_s'] * 1e3:9.1f} ms, "
        f"{found['ratio']:5.2f}x the reference's speed, error {found['error']:.1e}"
    )
