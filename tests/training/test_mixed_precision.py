"""Training with the fused ops in half precision: autocast, a gradient scaler, DistributedDataParallel.

The bodies run on the GPU where there is one, and on the CPU, where Triton's interpreter stands for it.
"""

import pytest
import torch
import torch.distributed as dist

from edm_fast import distributed, use_backend
from edm_fast.evaluation._networks import relative_error
from edm_fast.plan._gpu_program import tensor_float
from edm_fast.training import EDMLoss
from helpers.devices import DEVICES
from helpers.planned_networks import network

pytest.importorskip("triton")
SMALL = {"img_resolution": 4, "attn_resolutions": [2], "model_channels": 16, "augment_dim": 0, "dropout": 0}
LAYERS = ("conv2d", "group_norm_silu", "attention", "upfirdn")  # the preconditioner's solver_update has no backward
devices = pytest.mark.parametrize("device", DEVICES)


def trained(device, name="ddpmpp", **changes):
    """A network all of whose terms count, in training mode."""
    changes |= {"model_channels": 32} if name == "adm" else {}  # of 16, ADM would have no head
    return network(name, **{**SMALL, **changes}).train().requires_grad_(True).to(device)


def loss_of(net, model=None):
    """The mean loss of two images, the same for every call."""
    device = next(net.parameters()).device
    images = torch.randn([2, 3, 4, 4], generator=torch.Generator().manual_seed(1)).to(device) / 2
    labels = torch.eye(net.label_dim)[:2].to(device) if net.label_dim else None
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return EDMLoss()(model or net, images, labels).sum() / len(images)


def gradients(net, backend, dtype=None, model=None):
    net.zero_grad()
    device = next(net.parameters()).device.type
    convolutions, others = ("cuda", "triton") if backend == "tail" else (backend, backend)
    with use_backend(others, *LAYERS), use_backend(convolutions, "conv2d"), tensor_float(False):
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = loss_of(net, model)
        loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    return [p.grad.detach().cpu() for p in net.parameters()]


def backends(device):
    """All ops on Triton, and convolutions by torch with their tails there; and on a GPU also each op's own choice."""
    return ["triton", "tail", "auto"] if device == "cuda" else ["triton", "tail"]


@devices
@pytest.mark.parametrize("name, dtype", [("ddpmpp", torch.bfloat16), ("adm", torch.float16)])
def test_gradients_under_autocast(name, dtype, device):
    """Of every parameter within twice the error of the reference under autocast, all by that of float32."""
    net = trained(device, name).to(memory_format=torch.channels_last)
    exact, plain = gradients(net, "reference"), gradients(net, "reference", dtype)
    errors = [relative_error([g], [e]) for g, e in zip(plain, exact)]
    for backend in backends(device):
        found = gradients(net, backend, dtype)
        assert 0 < relative_error(found, exact) <= 2 * relative_error(plain, exact)
        for (name, _), g, e, error in zip(net.named_parameters(), found, exact, errors):
            assert relative_error([g], [e]) <= 2 * error + max(errors), name


@devices
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter, at infinity
def test_gradient_scaler(device):
    """Gradients that float16 does not hold are found and the step is skipped; at a smaller scale, float32's is made."""
    net = trained(device, channel_mult=[1], attn_resolutions=[4])
    exact, before = gradients(net, "reference"), [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**26, backoff_factor=2.0**-16)
    for scale, skipped in ((2.0**26, True), (2.0**10, False)):
        assert scaler.get_scale() == scale
        optimizer.zero_grad()
        with use_backend("triton", *LAYERS):
            with torch.autocast(device, torch.float16):
                loss = loss_of(net)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before)) == skipped
    steps = [(b - p.detach()).cpu() / 0.5 for p, b in zip(net.parameters(), before)]
    assert relative_error(steps, exact) < 1e-2


@devices
def test_distributed_data_parallel_of_one(device, tmp_path):
    """The same gradients to the bit; of several processes, see test_loop.py."""
    net = trained(device, channel_mult=[1], attn_resolutions=[4])
    alone = gradients(net, "triton", torch.bfloat16)
    group = {"init_method": f"file://{tmp_path / 'meet'}", "rank": 0, "world_size": 1}
    distributed.init(device)  # the current GPU is the one to meet on
    dist.init_process_group("nccl" if device == "cuda" else "gloo", **group)
    try:
        model = torch.nn.parallel.DistributedDataParallel(net)
        reduced = []
        model.register_comm_hook(None, lambda state, bucket: reduced.append(bucket) or allreduce(bucket))
        found = gradients(net, "triton", torch.bfloat16, model)
    finally:
        distributed.shutdown()
    assert reduced and all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def allreduce(bucket):
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])
