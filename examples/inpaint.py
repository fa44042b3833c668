# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Fill in the missing part of an image
#
# Posterior sampling with azula (`pip install azula`): moment matching (Rozet et al. 2024) asks the denoiser for its
# value and three gradients at each step, all on an accelerated network.

# %%
import math

import torch
from azula.guidance import MMPSDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.sample import DDIMSampler

import edm_fast

net = edm_fast.accelerate(edm_fast.load("demo"))
seeds, classes = range(8), torch.arange(8)
labels = torch.nn.functional.one_hot(classes, 10)
latents = edm_fast.StackedRandomGenerator("cpu", seeds).randn([8, 1, 32, 32])

# %% [markdown]
# Eight digits, of which six columns in the middle are hidden, under a little noise.

# %%
with torch.no_grad():
    truth = edm_fast.sample(net, latents, labels, solver="ipndm", nfe=18).float().clamp(-1, 1)
mask = torch.ones(1, 1, 32, 32)
mask[..., 13:19] = 0
deviation = 0.01
torch.manual_seed(0)


def hide(x):
    return x * mask


seen = hide(truth) + deviation * torch.randn(truth.shape) * mask

# %%
denoiser = MMPSDenoiser(edm_fast.interop.azula(net), seen, hide, IsotropicCovariance(torch.tensor(deviation**2)))
sampler = DDIMSampler(denoiser, steps=16, silent=True)
with torch.no_grad():
    start = 80 * torch.randn(truth.shape)
    filled = sampler(start, class_labels=labels).clamp(-1, 1)


# %%
def psnr(images):
    """Of each image, in decibels: the range is 2."""
    error = (images - truth).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


before, after = psnr(seen), psnr(filled)
print(f"PSNR: {before.median():.1f} dB with the gap, {after.median():.1f} dB filled in (medians of {len(truth)})")
kept = math.sqrt((hide(filled) - hide(truth)).square().sum() / mask.sum() / len(truth)) * 127.5
print(f"what was seen is kept within {kept:.1f} levels of 255")
edm_fast.save_grid("inpainted.png", torch.cat([truth, seen, filled]))
