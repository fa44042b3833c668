"""EDM2's encoders against the golden data, the autoencoder replaced by a linear one."""

import numpy as np
import pytest
import torch

from edm_fast.data import encoders
from edm_fast.errors import UserError
from helpers import golden_cases as g
from helpers.linear_vae import LinearVAE


@pytest.mark.parametrize("entry", g.edm2("encoders", lambda e: "class" in e["config"]), ids=g.entry_id)
def test_golden_edm2_encoder(entry):
    arrays, config = {name: torch.from_numpy(array) for name, array in g.arrays(entry).items()}, entry["config"]
    encoder = getattr(encoders, config["class"])(**config.get("kwargs", {}))
    if "vae" in config:
        with pytest.raises(UserError, match="no autoencoder"):
            encoder.decode(arrays["z"])
        encoder.vae = LinearVAE(g.arrays(entry))
        g.check(entry, "scale", encoder.scale)
        g.check(entry, "bias", encoder.bias)
        with pytest.raises(UserError, match="expected 8 channels"):
            encoder.encode_latents(arrays["z"])
    raw = encoder.encode_pixels(arrays["pixels"])
    g.check(entry, "raw_latents", raw)
    torch.manual_seed(config.get("torch_manual_seed", 0))
    g.check(entry, "latents", encoder.encode_latents(arrays["raw_latents"]))
    decoded = encoder.decode(arrays["z"])
    assert decoded.dtype == torch.uint8
    atol = entry["tolerance"].get("decoded_atol", 0)
    assert np.abs(decoded.numpy().astype(int) - arrays["decoded"].numpy().astype(int)).max() <= atol
