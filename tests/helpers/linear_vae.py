"""The linear stand-in of the golden data for an autoencoder of images."""

import torch


class LinearVAE:
    """Per pixel: mean = We x + be, std = |Ws x| + 0.1; decoded: Wd z + bd. x has 3 channels, z 4."""

    def __init__(self, arrays):
        for name in ("We", "be", "Ws", "Wd", "bd"):
            setattr(self, name, torch.from_numpy(arrays[f"vae/{name}"]).float())

    def encode(self, x):
        mean = torch.einsum("oc,nchw->nohw", self.We, x) + self.be.reshape(1, -1, 1, 1)
        return mean, torch.einsum("oc,nchw->nohw", self.Ws, x).abs() + 0.1

    def decode(self, z):
        return torch.einsum("oc,nchw->nohw", self.Wd, z) + self.bd.reshape(1, -1, 1, 1)
