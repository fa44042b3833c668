"""group_norm_silu: each backend's speed relative to the reference, at layer shapes of the published networks.

Forward alone through the shared timer; forward and backward here, reference and backend by turns in one process, in
CPU time of the thread when there is one (a busy machine hardly moves it), and beside a plain copy of x.
"""

import op_bench
import pytest
import torch

from edm_fast import backend, native
from edm_fast.ops import group_norm_silu

# (N, C, H, W), groups: CIFAR-10 DDPM++ at 32, 16 and 8 pixels, the demo model, ADM ImageNet-64
SHAPES = [
    ((8, 256, 32, 32), 32),
    ((8, 128, 32, 32), 32),
    ((8, 256, 16, 16), 32),
    ((8, 512, 16, 16), 32),
    ((8, 256, 8, 8), 32),
    ((64, 32, 32, 32), 8),
    ((2, 192, 64, 64), 32),
]


@pytest.mark.parametrize("case, name", op_bench.parameters("group_norm_silu"))
def bench_group_norm_silu(benchmark, case, name):
    op_bench.time_op(benchmark, "group_norm_silu", case, name)


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape, groups", SHAPES, ids=str)
def bench_forward_and_backward(benchmark, shape, groups, layout):
    x = torch.randn(shape).to(memory_format=layout)
    dy, copy, channels = torch.randn_like(x), torch.empty_like(x), shape[1]
    leaves = x.clone().requires_grad_(), torch.randn(channels, requires_grad=True), torch.randn(channels)

    def forward(name):
        with torch.no_grad(), backend.use_backend(name):
            group_norm_silu(*leaves, groups, 1e-6)

    def both(name):
        with backend.use_backend(name):
            y = group_norm_silu(*leaves, groups, 1e-6)
        torch.autograd.grad(y, leaves[:2], dy)

    plain, fused, floor = op_bench.medians(lambda: forward("reference"), lambda: forward("cpu"), lambda: copy.copy_(x))
    plain_both, fused_both = op_bench.medians(lambda: both("reference"), lambda: both("cpu"))
    ratios = {"forward": plain / fused, "both": plain_both / fused_both, "copy": fused / floor}
    benchmark.extra_info.update(op="group_norm_silu", shape=shape, isa=native.isa(), threads=torch.get_num_threads())
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(lambda: both("cpu"), rounds=3)
    print(
        f"{shape!s:18} {'last' if layout == torch.channels_last else 'first':5} forward {fused * 1e6:6.0f} us, "
        f"{ratios['forward']:.2f}x the reference's speed, {ratios['copy']:.1f} copies; "
        f"with backward {fused_both * 1e6:6.0f} us, {ratios['both']:.2f}x"
    )
