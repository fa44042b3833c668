"""attention: each backend's speed relative to the reference, at layer shapes of the published networks.

Forward alone through the shared timer; both memory layouts, forward and with backward, here, reference and backend by
turns in one process.
"""

import op_bench
import pytest
import torch

from edm_fast import backend, native, testing
from edm_fast.ops import attention


@pytest.mark.parametrize("case, name", op_bench.parameters("attention"))
def bench_attention(benchmark, case, name):
    op_bench.time_op(benchmark, "attention", case, name)


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in testing.cases("attention", real=True)])
def bench_forward_and_backward(benchmark, case, layout):
    (qkv, heads), _ = case.inputs(torch.float32)
    leaf = qkv.to(memory_format=layout).requires_grad_()
    n, channels, h, w = leaf.shape
    da = torch.randn(n, channels // 3, h, w).to(memory_format=layout)

    def forward(name):
        with torch.no_grad(), backend.use_backend(name):
            attention(leaf, heads)

    def both(name):
        with backend.use_backend(name):
            a = attention(leaf, heads)
        torch.autograd.grad(a, leaf, da)

    plain, fused = op_bench.medians(lambda: forward("reference"), lambda: forward("cpu"))
    plain_both, fused_both = op_bench.medians(lambda: both("reference"), lambda: both("cpu"))
    ratios = {"forward": plain / fused, "both": plain_both / fused_both}
    product = 2 * n * (channels // 3) * (h * w) ** 2 / 1e9  # GFLOP of one of the products: 2 forward, 5 backward
    rates = {"forward_gflops": 2 * product / fused, "both_gflops": 7 * product / fused_both}
    benchmark.extra_info.update(op="attention", case=case.name, layout=str(layout), isa=native.isa(), **ratios, **rates)
    benchmark.extra_info.update(threads=torch.get_num_threads())
    benchmark.pedantic(lambda: both("cpu"), rounds=3)
    print(
        f"{case.name:11} {'last' if layout == torch.channels_last else 'first':5} "
        f"forward {fused * 1e3:7.3f} ms, {ratios['forward']:.2f}x the reference's speed, "
        f"{rates['forward_gflops']:.0f} GFLOP/s; with backward {fused_both * 1e3:7.3f} ms, {ratios['both']:.2f}x, "
        f"{rates['both_gflops']:.0f} GFLOP/s"
    )
