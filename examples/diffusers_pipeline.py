# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # A pipeline of diffusers
#
# The raw network as a UNet, and a scheduler of diffusers that preconditions it (`pip install diffusers`).

# %%
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler, ImagePipelineOutput

import edm_fast


class ClassConditionalPipeline(DiffusionPipeline):
    """Images of given classes."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, class_labels, generator=None, num_inference_steps=18):
        config = self.unet.config
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        self.scheduler.set_timesteps(num_inference_steps, device=self.unet.device)
        x = torch.randn(shape, generator=generator).to(self.unet.device) * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            F = self.unet(self.scheduler.scale_model_input(x, t), t, class_labels=class_labels).sample
            x = self.scheduler.step(F, t, x).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(images))


# %% [markdown]
# The scheduler's `prediction_type="epsilon"`, its default, is the network's own preconditioning.

# %%
net = edm_fast.accelerate(edm_fast.load("demo-solids"))
scheduler = EDMDPMSolverMultistepScheduler(sigma_data=net.sigma_data)
pipeline = ClassConditionalPipeline(edm_fast.interop.diffusers(net), scheduler)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(torch.arange(net.label_dim), torch.Generator().manual_seed(0)).images
for number, image in enumerate(images):
    image.save(f"solid-{number}.png")
