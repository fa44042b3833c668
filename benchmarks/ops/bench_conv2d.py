"""conv2d: each backend's speed relative to the reference, at layer shapes of the published networks."""

import op_bench
import pytest


@pytest.mark.parametrize("case, name", op_bench.parameters("conv2d"))
def bench_conv2d(benchmark, case, name):
    op_bench.time_op(benchmark, "conv2d", case, name)
