"""Sampling: the speed of an 18-step run, from seeds to images, each way relative to eager PyTorch in float32."""

import network_bench
import pytest


@pytest.mark.parametrize("network, batch, row", network_bench.parameters("sampling"))
def bench_sampling(benchmark, network, batch, row):
    network_bench.time_row(benchmark, "sampling", network, batch, row)
