"""Small networks of every kind that plans are made for, with random weights everywhere; plans for a GPU anywhere."""

import copy

import torch

from edm_fast import accelerate, native
from edm_fast.evaluation._networks import randomise
from edm_fast.networks import ARCHITECTURES, build
from edm_fast.plan import PlannedUNet, _algorithms, _gpu, with_model
from helpers.native_conv import variant

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = {"img_resolution": 8, "img_channels": 3, "model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1}
SMALL |= {"attn_resolutions": [4]}
NETWORKS = {
    "ddpmpp": ("EDMPrecond", {**ARCHITECTURES["ddpmpp"], "label_dim": 4, "augment_dim": 9}),
    "ddpmpp-vp": ("VPPrecond", ARCHITECTURES["ddpmpp"]),
    "ncsnpp": ("EDMPrecond", {**ARCHITECTURES["ncsnpp"], "augment_dim": 9}),
    "ncsnpp-ve": ("VEPrecond", ARCHITECTURES["ncsnpp"]),
    "ncsnpp-skip": ("VEPrecond", {**ARCHITECTURES["ncsnpp"], "encoder_type": "skip", "decoder_type": "skip"}),
    "adm": ("EDMPrecond", {**ARCHITECTURES["adm"], "label_dim": 4, "augment_dim": 9}),
    "adm-iddpm": ("iDDPMPrecond", {**ARCHITECTURES["adm"], "label_dim": 4}),
}


def network(name, **changes):
    class_name, kwargs = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(class_name, {**kwargs, **SMALL, **changes}).eval().requires_grad_(False)
    randomise(net)
    return net


def places(ways):
    """Places in the order of all ways of a call, those with statistics last, as a small part of a second."""
    return {name: 0.001 * i + 0.1 * (("apply" in name) + ("statistics" in name)) for i, name in enumerate(ways)}


def first(key, ways):
    """Seconds that make each call's first way the fastest, which torch's own functions are."""
    return {name: 1 + place for name, place in places(ways).items()}


def planned(net, precision, measure=first, cuda_graph=True):
    """accelerate(net) with plans for a GPU, wherever the network is."""
    net = copy.deepcopy(net).to(DEVICE)
    fast = with_model(net, PlannedUNet(net.raw, "fp32", cuda_graph, choose=measure))
    fast.raw.planner = _gpu.GpuPlanner(precision, DEVICE, cuda_graph, measure)
    return fast


def moved(*tensors):
    return [None if t is None else t.to(DEVICE) for t in tensors]


def on_algorithm(net, name, packed_limit=None):
    """An accelerated network whose convolutions run on one algorithm where it has a kernel for them."""
    fast, algorithm = accelerate(net, "bf16"), native.ALGORITHMS[name]

    def choose(shape):
        """Slower than it, if any, is the same without packing."""
        both = {variant(algorithm, packed=False): 1.0, algorithm: 0.0}
        same = {a: seconds for a, seconds in both.items() if a is not None and _algorithms.fits(a, shape)}
        return same or {native.ALGORITHMS["direct"]: 0.0}

    fast._modules["model"] = PlannedUNet(net.model, "bf16", packed_limit=packed_limit, choose=choose)
    return fast
