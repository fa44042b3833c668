"""Networks: the speed of one evaluation, each way relative to eager PyTorch in float32."""

import network_bench
import pytest


@pytest.mark.parametrize("network, batch, row", network_bench.parameters("networks"))
def bench_networks(benchmark, network, batch, row):
    network_bench.time_row(benchmark, "networks", network, batch, row)
