"""Plans of EDM2 networks: what is left to torch, and that factors, clipping and normalised attention are the same."""

import copy

import pytest
import torch

from edm_fast import accelerate, backend, native
from edm_fast.evaluation._networks import Exact
from edm_fast.networks import build
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.pixel_norm import PixelNormArgs
from edm_fast.plan._graph import Fused, SeparateQKVArgs, TorchArgs, Value
from edm_fast.plan._rewrite import fold_clip, rewrite, rewritten
from edm_fast.plan._trace import trace
from helpers.planned_networks import moved, places, planned

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
SMALL = {"img_resolution": 16, "img_channels": 3, "label_dim": 4, "model_channels": 32, "channel_mult": [1, 2]}
SMALL |= {"num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 16}


def network(gain=0.7, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build("Precond", {**SMALL, **changes}).eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim == 0:
            parameter.fill_(gain)
    return net


def inputs(batch):
    generator = torch.Generator().manual_seed(1)
    labels = torch.eye(4)[torch.arange(batch) % 4]
    return torch.randn(batch, 3, 16, 16, generator=generator), 0.1 + torch.rand(batch, generator=generator), labels


def test_what_is_left_to_torch():
    shapes = {"x": (2, 3, 16, 16), "noise_labels": (2,), "class_labels": (2, 4)}
    nodes = rewrite(rewritten(trace(network(concat_balance=0.3).unet, shapes)), fold_clip).nodes
    images = [node for node in nodes if len(node.output.shape) == 4]
    names = [node.function.__name__ for node in images if isinstance(node.args, TorchArgs)]
    assert names == ["__getitem__", "ones_like", *["cat"] * 5]  # the channel of ones, and skip connections
    assert sum(isinstance(node.args, SeparateQKVArgs) for node in images) == 4
    norms = [node.args for node in images if isinstance(node.args, PixelNormArgs)]
    assert sum(args.norm and args.groups == 12 for args in norms) == 4 and all(a.interleaved == 1 for a in norms)
    assert sum(not args.norm and isinstance(args.gain, torch.Tensor) for args in norms) == 4  # of skip connections
    assert sum(node.args.clip == 256 for node in images if isinstance(node.args, Conv2dArgs)) == 10


@needs_native
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"concat_balance": 0.3}, {"clip_act": 0.5}, {"clip_act": None, "resample_filter": [1, 3, 3, 1]}],
    ids=str,
)
def test_same_images(changes, batch):
    net, call = network(**changes), inputs(batch)
    with backend.use_backend("reference"):
        expected = net(*call)
    found = accelerate(net)(*call)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    if changes.get("clip_act") == 0.5:
        with backend.use_backend("reference"):
            assert (network()(*call) - expected).abs().max() > 0.01 * expected.abs().max()


class Published(torch.nn.Module):
    """Stands in for a network of the published code, which is not of this package."""

    def __init__(self, net):
        super().__init__()
        self.init_kwargs = net.init_kwargs
        self._modules.update(net._modules)
        self.eval()


@needs_native
def test_networks_of_the_published_class_keep_their_half_precision():
    """The rounding of its gains and frequencies is part of a network: it has another function in float32."""
    net, call = network(gain=0.9).half(), inputs(2)
    theirs = Published(net)
    theirs.__class__ = type("Precond", (Published,), {})
    found = accelerate(theirs)(*call)
    assert torch.equal(found, accelerate(net)(*call))
    wide = accelerate(copy.deepcopy(net).float())(*call)
    assert (found - wide).abs().max() > 2e-5 * wide.abs().max()
    assert next(theirs.parameters()).dtype == torch.float16


@pytest.mark.parametrize("precision, limit", {"fp32": 1e-5, "tf32": 5e-3, "bf16": 3e-2, "fp16": 5e-3}.items())
def test_gpu_plans_take_the_pixel_norm_of_triton(precision, limit):
    pytest.importorskip("triton")
    net, (x, sigma, labels) = network(img_resolution=8, attn_resolutions=[4]), inputs(1)
    call = x[..., :8, :8], sigma, labels

    def measure(key, ways):
        """The kernel is the fastest one where it is met, elsewhere torch's own function."""
        return {name: place - (name.split("+")[0] == "triton") for name, place in places(ways).items()}

    with torch.no_grad():
        want, fast = Exact(net)(*call), planned(net, precision, measure)
        found = fast(*moved(*call)).cpu()
    (program,) = next(iter(fast.raw.pool.programs.values()))
    alone = [s.candidate.name for s in program.steps if isinstance(s.node.args, PixelNormArgs)]
    fused = [s.candidate.name for s in program.steps if isinstance(s.node, Fused) and s.node.rule == "norm"]
    assert len(alone) == 8 and len(fused) == 19
    assert set(alone) == {"triton"} and {name.split("+")[0] for name in fused} == {"triton"}
    assert (found - want).abs().max() <= limit * want.abs().max()


@pytest.mark.parametrize("precision, limit", {"tf32": 5e-3, "fp16": 5e-3}.items())
def test_gpu_plans_take_factors_in_and_clip_in_the_same_pass(precision, limit):
    pytest.importorskip("triton")
    net, (x, sigma, labels) = network(img_resolution=8, attn_resolutions=[4], clip_act=0.5), inputs(1)
    call = x[..., :8, :8], sigma, labels

    def measure(key, ways):
        return {name: place - ("merged" in name) - 0.5 * ("winograd" in name) for name, place in places(ways).items()}

    with torch.no_grad():
        want, fast = Exact(net)(*call), planned(net, precision, measure)
        found = fast(*moved(*call)).cpu()
    (program,) = next(iter(fast.raw.pool.programs.values()))
    merged = [s for s in program.steps if isinstance(s.node, Fused) and s.candidate.name == "merged-winograd"]
    assert sum(isinstance(s.node.first.args.gain, torch.Tensor | Value) for s in merged) == 12
    assert not any(getattr(s.node, "function", None) in (torch.clip, torch.Tensor.clip) for s in program.steps)
    assert (found - want).abs().max() <= limit * want.abs().max()
