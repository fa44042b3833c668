"""upfirdn: each backend's speed relative to the reference, at layer shapes of the published networks."""

import op_bench
import pytest


@pytest.mark.parametrize("case, name", op_bench.parameters("upfirdn"))
def bench_upfirdn(benchmark, case, name):
    op_bench.time_op(benchmark, "upfirdn", case, name)
