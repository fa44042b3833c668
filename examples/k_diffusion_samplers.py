# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Samplers of k-diffusion
#
# They call `model(x, sigma, **extra_args)`, and so are networks called here: no adapter is needed
# (`pip install k-diffusion`).

# %%
import k_diffusion.sampling
import torch

import edm_fast

net = edm_fast.accelerate(edm_fast.load("demo"))
labels = torch.eye(10)
latents = edm_fast.StackedRandomGenerator("cpu", range(10)).randn([10, 1, 32, 32])

# %%
sigmas = k_diffusion.sampling.get_sigmas_karras(12, sigma_min=0.002, sigma_max=80.0, rho=7.0)
with torch.no_grad():
    digits = k_diffusion.sampling.sample_dpmpp_2m(
        net, latents * sigmas[0], sigmas, extra_args={"class_labels": labels}, disable=True
    )
edm_fast.save_grid("digits.png", digits)

# %% [markdown]
# The same solver of this package, along the same noise levels:

# %%
with torch.no_grad():
    own = edm_fast.sample(net, latents, labels, solver="dpmpp", order=2, levels=sigmas.tolist())
print(f"largest difference: {(digits - own).abs().max():.0e}")
