"""Networks of a few thousand weights, as objects and as checkpoints."""

import torch

from edm_fast import checkpoint, networks
from edm_fast.evaluation import _networks

UNET = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}


def tiny(class_name="EDMPrecond", **changes):
    """A network all of whose terms count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = networks.build(class_name, {**UNET, **changes}).eval().requires_grad_(False)
    _networks.randomise(net)
    return net


def tiny_checkpoint(folder, name="tiny", **changes):
    path = folder / f"{name}.safetensors"
    checkpoint.save(tiny(**changes), path)
    return str(path)
