"""solver_update: each backend's speed relative to the reference, at layer shapes of the published networks."""

import op_bench
import pytest
import torch


@pytest.mark.parametrize("case, name", op_bench.parameters("solver_update"))
def bench_solver_update(benchmark, case, name):
    op_bench.time_op(benchmark, "solver_update", case, name, torch.float64)
