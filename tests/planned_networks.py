"""Small networks of every kind that plans are made for, with random weights everywhere."""

import torch

from edm_fast.evaluation._networks import randomise
from edm_fast.networks import ARCHITECTURES, build

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
