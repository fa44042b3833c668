# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Draw a data set on many machines
#
# Ray Data (`pip install 'ray[data]'`) deals seeds to workers: two processes here, the machines of a cluster with
# `ray.init(address="auto")`. An image depends on its seed alone, whoever draws it.

# %%
import os

import numpy as np
import ray

import edm_fast

ray.init(num_cpus=3, include_dashboard=False)  # two workers draw, a third one reads and writes
net = edm_fast.accelerate(edm_fast.load("demo"))
sampler = edm_fast.SeedSampler(net, solver="ipndm", nfe=9)


# %% [markdown]
# Each worker gets the sampler with its network once, and then batches of seeds.


# %%
class Draw:
    def __init__(self, sampler):
        self.sampler = sampler

    def __call__(self, batch):
        images = self.sampler(batch["id"].tolist())
        pixels = edm_fast.sampling.to_uint8(images)
        return {"seed": batch["id"], "pixels": pixels, "worker": np.full(len(pixels), os.getpid())}


seeds = ray.data.range(128, override_num_blocks=8)
workers = ray.data.ActorPoolStrategy(size=2)
digits = seeds.map_batches(Draw, fn_constructor_args=[sampler], batch_size=16, compute=workers)
digits.write_parquet("digits")

ray.shutdown()
