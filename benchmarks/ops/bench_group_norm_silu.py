"""group_norm_silu: each backend's speed relative to the reference, at layer shapes of the published networks."""

import op_bench
import pytest


@pytest.mark.parametrize("case, name", op_bench.parameters("group_norm_silu"))
def bench_group_norm_silu(benchmark, case, name):
    op_bench.time_op(benchmark, "group_norm_silu", case, name)
