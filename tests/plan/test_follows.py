"""What users hang on networks or put into them: an accelerated network follows it as the network itself does."""

import contextlib
import copy
import types
import warnings

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

from edm_fast import accelerate
from edm_fast.errors import UserError
from edm_fast.evaluation._networks import inputs, relative_error
from edm_fast.networks import EDMPrecond, SongUNet
from edm_fast.ops import conv2d
from helpers import native_conv as nc
from helpers.planned_networks import network

pytestmark = nc.needs_native


def outputs(net, batch=2):
    with torch.no_grad():
        return net(*inputs(net, batch, 0.7))


def parts(net, kind):
    return [m for m in net.model.modules() if type(m).__name__ == kind and getattr(m, "weight", m) is not None]


def louder(module, args, output):
    return 1.2 * output


def louder_input(module, args):
    return 1.2 * args[0], *args[1:]


def louder_in_place(module, args, output):
    output.mul_(1.2)


def louder_by_a_mask(module, args, output):
    return torch.where(output > 0, output, 0.8 * output)


def louder_in_a_part(module, args, output):
    output[:, :3] = 1.2 * output[:, :3]
    output[output < 0] = torch.zeros(())


def constant(module, args, output):
    return torch.linspace(-1, 1, output[0].numel()).expand(len(output), -1).reshape(output.shape)


def mixed_by_a_layer(net):
    """A layer that is no part of the network, and so no tensor of it."""
    torch.manual_seed(0)
    other = torch.nn.Linear(4, 4).requires_grad_(False)  # along a row of pixels
    parts(net, "UNetBlock")[2].register_forward_hook(lambda m, args, out: out + other(out))


class Adapter(torch.nn.Module):
    """W x + B A x in place of a linear layer or a convolution of one pixel: LoRA (Hu et al. 2022)."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base, (outputs, inputs) = base, base.weight.shape[:2]
        generator = torch.Generator().manual_seed(0)
        self.lora_a = torch.nn.Parameter(0.3 * torch.randn(rank, inputs, generator=generator))
        self.lora_b = torch.nn.Parameter(0.3 * torch.randn(outputs, rank, generator=generator))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x, *args, **kwargs):
        change = (x.flatten(2).transpose(1, 2) if x.ndim == 4 else x) @ self.lora_a.t() @ self.lora_b.t()
        change = change.transpose(1, 2).unflatten(2, x.shape[2:]) if x.ndim == 4 else change
        return self.base(x, *args, **kwargs) + change


def adapt(net, wanted):
    for name, module in list(net.model.named_modules()):
        if wanted(name, module):
            parent, _, own = name.rpartition(".")
            setattr(net.model.get_submodule(parent), own, Adapter(module))
    net.eval().requires_grad_(False)


def old_weight_norm(net):
    for module in parts(net, "Conv2d"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.nn.utils.weight_norm(module)
        module.weight_g.data.mul_(1.1)
    outputs(net.requires_grad_(False))  # torch copies such modules only once their weights were made without gradients


class Larger(torch.nn.Module):
    def forward(self, weight):
        return 1.1 * weight


class Guided(EDMPrecond):
    """Classifier-free guidance (Ho & Salimans 2022) of one network."""

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **kwargs):
        with_class = super().forward(x, sigma, class_labels, force_fp32, **kwargs)
        return 2 * with_class - super().forward(x, sigma, None, force_fp32, **kwargs)


class OtherCoefficients(EDMPrecond):
    def coefficients(self, sigma):
        c_skip, c_out, c_in, c_noise = super().coefficients(sigma)
        return c_skip, 0.9 * c_out, c_in, c_noise + 0.1


class OtherUNet(SongUNet):
    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        return 0.5 * super().forward(1.5 * x, noise_labels, class_labels, augment_labels)


class AnyUNet(SongUNet):
    def forward(self, *args, **kwargs):
        return 0.5 * super().forward(*args, **kwargs)


class Wrapper(torch.nn.Module):
    """Takes the place of a raw network and passes on what it is given."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *args, **kwargs):
        return 0.5 * self.inner(1.5 * x, *args, **kwargs)


class OtherEmbedding(SongUNet):
    def embed(self, *args):
        return 1.5 * super().embed(*args)


def on_all(kind, function):
    return lambda net: [function(module) for module in parts(net, kind)]


def becomes(kind, inner=False):
    def change(net):
        (net.model if inner else net).__class__ = kind

    return change


def other_forward(net):
    block = parts(net, "UNetBlock")[2]
    block.forward = types.MethodType(lambda self, x, emb: 1.2 * type(self).forward(self, x, emb), block)


def closes_over(kind):
    """A replaced method that still knows the module itself, not the copy that is looked at."""

    def change(net):
        for module in parts(net, kind)[:1] if kind else [net.model]:
            module.forward = (lambda old: lambda *args, **kwargs: 1.2 * old(*args, **kwargs))(module.forward)

    return change


CHANGES = {
    "forward hook": lambda net: net.register_forward_hook(louder),
    "forward pre-hook": lambda net: net.register_forward_pre_hook(louder_input),
    "hook of the raw network": lambda net: net.model.register_forward_hook(louder),
    "pre-hook of the raw network": lambda net: net.model.register_forward_pre_hook(louder_input),
    "hook of a block": lambda net: parts(net, "UNetBlock")[2].register_forward_hook(louder),
    "hook that writes into its image": lambda net: parts(net, "UNetBlock")[2].register_forward_hook(louder_in_place),
    "pre-hook of a block": lambda net: parts(net, "UNetBlock")[2].register_forward_pre_hook(louder_input),
    "hooks of convolutions": on_all("Conv2d", lambda conv: conv.register_forward_hook(louder)),
    "LoRA of attention": lambda net: adapt(net, lambda name, module: name.endswith(("qkv", "proj"))),
    "LoRA of linear layers": lambda net: adapt(net, lambda name, module: type(module).__name__ == "Linear"),
    "weight_norm": on_all(
        "Conv2d", lambda conv: parametrizations.weight_norm(conv).parametrizations.weight.original0.data.mul_(1.1)
    ),
    "weight_norm of old": old_weight_norm,
    "spectral_norm": lambda net: [parametrizations.spectral_norm(conv) for conv in parts(net, "Conv2d")] and net.eval(),
    "parametrization": on_all("Conv2d", lambda conv: parametrize.register_parametrization(conv, "weight", Larger())),
    "pruning masks": on_all("Conv2d", lambda conv: prune.l1_unstructured(conv, "weight", 0.3)),
    "pruning made permanent": on_all(
        "Conv2d", lambda conv: prune.remove(prune.l1_unstructured(conv, "weight", 0.3), "weight")
    ),
    "subclass with guidance": becomes(Guided),
    "subclass with coefficients": becomes(OtherCoefficients),
    "subclass of the raw network": becomes(OtherUNet, inner=True),
    "subclass that passes anything on": becomes(AnyUNet, inner=True),
    "wrapper of the raw network": lambda net: setattr(net, "model", Wrapper(net.model).eval()),
    "subclass with another embedding": becomes(OtherEmbedding, inner=True),
    "a method replaced": other_forward,
    **{f"forward of {kind or 'the raw network'} replaced": closes_over(kind) for kind in ("", "UNetBlock", "Linear")},
    "hook with a mask": lambda net: parts(net, "UNetBlock")[2].register_forward_hook(louder_by_a_mask),
    "hook that sets a part": lambda net: parts(net, "UNetBlock")[2].register_forward_hook(louder_in_a_part),
    "hook with a layer of its own": mixed_by_a_layer,
    "hooks that give a constant vector": on_all("Linear", lambda layer: layer.register_forward_hook(constant)),
    "hooks that give a constant image": lambda net: [
        module.register_forward_hook(constant) for name, module in net.model.named_modules() if name.endswith("skip")
    ],
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_network(name):
    net = network("ddpmpp")
    before = outputs(net)
    CHANGES[name](net)
    want = outputs(net)
    assert relative_error([want], [before]) > 1e-2, "the change counts"
    assert relative_error([outputs(accelerate(net))], [want]) <= 1e-5


def zero_a_view(module, args, output):
    output[:, 0].mul_(0)


def by_new_data(module, args, output):
    output.data = 1.2 * output.data


REFUSED = {
    "only looks on": [lambda m, args, out: print(out.shape), "hook of enc.8x8_block0 only looks on"],
    "reads a number": [lambda m, args, out: out / float(out.std()), "not read numbers of tensors"],
    "decides by numbers": [lambda m, args, out: out if out.max() > 0 else 2 * out, "not read numbers of tensors"],
    "writes into a view": [zero_a_view, "a part of a tensor is written into"],
    "replaces data": [by_new_data, "a part of a tensor, or its data, is replaced"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_hooks_that_a_plan_cannot_follow_are_refused(name):
    hook, message = REFUSED[name]
    net = network("ddpmpp")
    handle = net.model.enc["8x8_block0"].register_forward_hook(hook)
    fast = accelerate(net)
    with pytest.raises(UserError, match=f"cannot follow this network.*{message}"):
        outputs(fast)
    handle.remove()
    assert relative_error([outputs(fast)], [outputs(net)]) <= 1e-5


def test_a_hook_before_a_layer_that_only_looks_on():
    net = network("adm")
    net.model.register_forward_pre_hook(lambda module, args: print(args[0].shape))
    with pytest.raises(UserError, match="hook of the raw network only looks on"):
        outputs(accelerate(net))


@pytest.mark.parametrize("name", ["forward hook", "forward pre-hook"])
def test_hooks_of_the_accelerated_network_come_and_go(name):
    net, same = network("adm"), network("adm")
    fast = accelerate(net)
    before = outputs(fast)
    handles = [CHANGES[name](each) for each in (fast, same)]
    assert relative_error([outputs(fast)], [outputs(same)]) <= 1e-5
    assert relative_error([outputs(copy.deepcopy(fast))], [outputs(same)]) <= 1e-5
    assert relative_error([outputs(fast)], [before]) > 1e-2
    handles[0].remove()
    assert torch.equal(outputs(fast), before)


def on_preconditioners(function):
    return lambda module, *args: function(module, *args) if isinstance(module, EDMPrecond) else None


@pytest.mark.parametrize(
    ("register", "hook"),
    [
        (torch.nn.modules.module.register_module_forward_hook, louder),
        (torch.nn.modules.module.register_module_forward_pre_hook, louder_input),
    ],
)
def test_hooks_of_all_modules(register, hook):
    net = network("ncsnpp")
    fast = accelerate(net)
    before = outputs(fast)
    with contextlib.closing(types.SimpleNamespace(close=register(on_preconditioners(hook)).remove)):
        want = outputs(net)
        assert relative_error([outputs(fast)], [want]) <= 1e-5 and relative_error([want], [before]) > 1e-2
    assert torch.equal(outputs(fast), before)


def test_weights_that_depend_on_inputs_are_refused_in_one_line():
    net = network("ddpmpp-vp")

    class Modulated(type(parts(net, "Conv2d")[1])):
        def forward(self, x, emb=None, residual=None, scale=1.0):
            return conv2d(x, self.weight * x.mean(), self.bias, emb, residual, scale)

    parts(net, "Conv2d")[1].__class__ = Modulated
    with pytest.raises(
        UserError, match="a weight of conv2d depends on its inputs; expected the network itself"
    ) as told:
        outputs(accelerate(net))
    assert "\n" not in str(told.value)
