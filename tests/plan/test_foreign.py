"""Networks whose layers are torch's own, and those of diffusers: the same outputs, or one line that says why not."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edm_fast import accelerate, explain, native
from edm_fast.errors import UserError
from helpers import peers

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


class Block(nn.Module):
    def __init__(self, inputs, outputs, emb):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding="same")
        self.emb, self.act = nn.Linear(emb, outputs), nn.SiLU(inplace=True)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(self.act(self.norm1(x)))
        h = h + self.emb(F.silu(emb))[:, :, None, None]
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), 0.1, self.training))
        return (self.skip(x) + h) / math.sqrt(2)


class HandWritten(nn.Module):
    """A U-Net of the usual kind, with nearest and strided resampling, attention by einsum, and labels."""

    def __init__(self, width=16, classes=3):
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, 64))
        self.labels = nn.Linear(classes, 64)
        self.first, self.down0 = nn.Conv2d(3, width, 3, padding=1), Block(width, width, 64)
        self.shrink, self.down1 = nn.Conv2d(width, width, 3, stride=2, padding=1), Block(width, 2 * width, 64)
        self.qkv, self.grow = nn.Conv2d(2 * width, 6 * width, 1), nn.Upsample(scale_factor=2)
        self.pool = nn.AvgPool2d(2)
        self.up0 = Block(3 * width, width, 64)
        self.last = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x, t, y=None):
        angles = t[:, None] * torch.exp(-torch.arange(self.width // 2, device=x.device))
        emb = self.time(torch.cat((angles.sin(), angles.cos()), 1))
        emb = emb if y is None else emb + self.labels(y)
        h0 = self.down0(self.first(x), emb)
        h = self.down1(self.pool(h0) + self.shrink(h0), emb)
        q, k, v = self.qkv(h).view(len(h), 3, -1, h.shape[2] * h.shape[3]).unbind(1)
        h = h + torch.einsum("ncq,nck->nqk", q, k).softmax(-1).bmm(v.mT).mT.reshape(h.shape)
        return self.last(self.up0(torch.cat((self.grow(h), h0), 1), emb))


def made(cls=HandWritten, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(**options).eval().requires_grad_(False)


def inputs(n=2):
    x = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.linspace(0.5, 3, n), torch.eye(3)[[2, 0, 1][:n]]


def test_inputs_that_the_network_itself_does_not_take():
    net = made()
    fast = accelerate(net)
    x, t, y = inputs()
    with pytest.raises(UserError, match=r"itself takes no inputs of these shapes: .*x \(2, 2, 8, 8\) \(RuntimeError"):
        fast(x[:, :2], t, y)
    torch.testing.assert_close(fast(x, t, y), net(x, t, y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["exact", "fp32"])
def test_hand_written(precision):
    net = made()
    fast, bound = accelerate(net, precision), 1e-5 if precision == "exact" else 1e-4
    x, t, y = inputs()
    with torch.no_grad():
        for args in [(x, t, y), (x, t)]:
            assert (fast(*args) - net(*args)).abs().max() < bound
        assert torch.equal(fast(x=x, t=t, y=y), fast(x, t, y))
        assert torch.equal(fast(x, 0.5, None)[0], fast(x, torch.tensor(0.5))[0])
        again = pickle.loads(pickle.dumps(fast))
        assert torch.equal(again(x, t), fast(x, t)) and torch.equal(copy.deepcopy(fast)(x, t), fast(x, t))
        assert fast.eval() is fast and again.eval() is again
    assert type(fast) is HandWritten and fast.width == 16 and [*fast.state_dict()] == [*net.state_dict()]
    choices = {choice.op: choice for choice in explain()}
    assert {"conv2d", "group_norm_silu", "upfirdn"} <= {name for name, c in choices.items() if "accelerated" in str(c)}


def test_what_becomes_of_the_calls():
    """Of thirteen convolutions one has a stride; every SiLU after a norm and every sum after a convolution is fused."""
    plan = accelerate(made()).forward.args[1]
    graph = plan.graph((("noise_labels", (2,)), ("x", (2, 3, 8, 8))))
    kinds = [type(node.args).__name__.removesuffix("Args") for node in graph.nodes]
    assert kinds.count("Conv2d") == 11 and kinds.count("GroupNormSilu") == 7 and kinds.count("Upfirdn") == 2
    convolutions = [node.args for node in graph.nodes if type(node.args).__name__ == "Conv2dArgs"]
    assert sum(conv.emb is not None for conv in convolutions) == 3
    assert sum(conv.residual is not None for conv in convolutions) >= 3
    assert sum(conv.scale != 1 for conv in convolutions) == 3
    assert all(node.args.silu for node in graph.nodes if type(node.args).__name__ == "GroupNormSiluArgs")
    torch_calls = [node.function.__name__ for node in graph.nodes if type(node.args).__name__ == "TorchArgs"]
    assert torch_calls.count("conv2d") == 1 and "view" not in torch_calls and "dropout" not in torch_calls


def test_gradients():
    net, (x, t, y) = made(), inputs()
    found = []
    for model in (net, accelerate(net)):
        leaf = x.clone().requires_grad_()
        model(leaf, t, y).square().sum().backward()
        found.append(leaf.grad)
    assert (found[0] - found[1]).abs().max() < 1e-4 * found[0].abs().max()


def test_diffusers():
    peers.expect("diffusers")
    from diffusers import UNet2DModel

    net = made(
        UNet2DModel,
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )
    fast, (x, _, _) = accelerate(net), inputs()
    with torch.no_grad():
        found, wanted = fast(x, 7), net(x, 7)
        assert type(found) is type(wanted) and (found.sample - wanted.sample).abs().max() < 1e-4
        (alone,) = fast(x, timestep=torch.tensor([7, 7]), return_dict=False)
    assert torch.equal(alone, found.sample)
    assert fast.config is net.config and fast.dtype == torch.float32
    with pytest.raises(UserError, match="class labels by number are not followed"):
        fast(x, 7, class_labels=torch.tensor([1, 2]))


class Called(nn.Module):
    """forward(x, t) = function(module, x)."""

    def __init__(self, function=None):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 3, 1), function

    def forward(self, x, t):
        return self.function(self, x)


class ThreeInputs(Called):
    def forward(self, x, t, labels, context):
        return x


REFUSED = {
    "one input": (lambda: accelerate(nn.Linear(2, 2)), r"Linear is called as forward.*; expected forward\(x, t\)"),
    "more inputs": (lambda: accelerate(ThreeInputs().eval()), "forward of ThreeInputs needs context"),
    "training": (lambda: accelerate(made().train()), "training mode"),
    "a part in training": (lambda: accelerate(part_in_training()), "training mode"),
    "half": (lambda: accelerate(made().half()), "weights of torch.float16; expected float32"),
    "elsewhere": (lambda: accelerate(made().to("meta")), "not on the CPU"),
    "numbers": (lambda: called(lambda m, x: x * x.mean().item()), "not read numbers of tensors"),
    "branch": (lambda: called(lambda m, x: x if x.sum() > 0 else -x), "not read numbers of tensors"),
    "weights": (lambda: called(lambda m, x: F.conv2d(x, m.conv.weight * x.mean())), None),
    "memory": (lambda: called(lambda m, x: m.conv(x).as_strided((2, 3, 8, 8), (192, 64, 8, 1))), "as_strided reads"),
    "part": (lambda: called(lambda m, x: F.relu(m.conv(x)[:, :2], inplace=True)), "a part of a tensor is written into"),
    "no mean": (lambda: called(lambda m, x: F.avg_pool2d(m.conv(x), 2, divisor_override=1)), None),
    "no image": (lambda: called(lambda m, x: {"x": x}), "gives an object of class dict; expected one image"),
    "two images": (lambda: called(lambda m, x: (x, x)), "gives 2 things; expected one image"),
    "later": (lambda: called(lambda m, x: m.conv(x), lambda net, fast: net.train()), "put in training mode after"),
    "trained": (lambda: accelerate(made()).train(), "cannot be trained; expected the network itself"),
    "float64": (lambda: accelerate(made())(inputs()[0].double(), 1.0), "x is torch.float64; expected images"),
    "rows": (lambda: accelerate(made())(inputs()[0], torch.ones(3)), "noise_labels has 3 rows; expected 2"),
}


def part_in_training():
    net = made()
    net.up0.train()
    return net


def called(function, before=None):
    net = Called(function).eval().requires_grad_(False)
    fast = accelerate(net)
    if before is not None:
        before(net, fast)
    x = inputs()[0]
    with torch.no_grad():
        found = fast(x, 1.0)
    assert torch.allclose(found, net(x, 1.0), atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    function, words = REFUSED[name]
    if words is None:  # torch's own call, which takes computed weights and other divisors
        return function()
    with pytest.raises(UserError, match=words) as caught:
        function()
    assert "\n" not in str(caught.value)
