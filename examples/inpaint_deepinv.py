# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Inpainting with deepinv
#
# DDRM (Kawar et al. 2022), a posterior sampler of deepinv (`pip install deepinv`), on an accelerated network. Like all
# of deepinv it works on images in [0, 1].

# %%
import deepinv
import torch

import edm_fast

net = edm_fast.accelerate(edm_fast.load("demo"))
denoiser = edm_fast.interop.deepinv(net)
labels = torch.eye(10)[:8]
latents = edm_fast.StackedRandomGenerator("cpu", range(8)).randn([8, 1, 32, 32])


class OfTheseClasses(torch.nn.Module):
    """deepinv's algorithms call denoiser(x, sigma), without classes."""

    def forward(self, x, sigma):
        return denoiser(x, sigma, class_labels=labels)


# %% [markdown]
# Eight digits, of which six columns in the middle are hidden, under a little noise.

# %%
with torch.no_grad():
    truth = (edm_fast.sample(net, latents, labels, solver="ipndm", nfe=18).float().clamp(-1, 1) + 1) / 2
mask = torch.ones(1, 1, 32, 32)
mask[..., 13:19] = 0
torch.manual_seed(0)
noise_model = deepinv.physics.GaussianNoise(0.01)
physics = deepinv.physics.Inpainting((1, 32, 32), mask=mask, noise_model=noise_model)
seen = physics(truth)

# %%
levels = torch.linspace(8, 0.01, 40).tolist()
filled = deepinv.sampling.DDRM(OfTheseClasses(), sigmas=levels, eta=0.85)(seen, physics).clamp(0, 1)


# %%
def psnr(images):
    """Of each image, in decibels."""
    return -10 * torch.log10((images - truth).square().flatten(1).mean(1))


before, after = psnr(seen), psnr(filled)
print(f"PSNR: {before.median():.1f} dB with the gap, {after.median():.1f} dB filled in (medians of {len(truth)})")
kept = ((filled - truth) * mask).square().sum().div(mask.sum() * len(truth)).sqrt() * 255
print(f"what was seen is kept within {kept:.1f} levels of 255")
edm_fast.save_grid("inpainted.png", 2 * torch.cat([truth, seen, filled]) - 1)
