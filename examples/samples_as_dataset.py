# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Samples as a data set of torch.utils.data
#
# Images drawn when they are needed, for instance to train a classifier on them. An image depends on its seed alone:
# neither the order, nor the batch, nor the number of workers changes it by more than rounding.

# %%
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import edm_fast


class Digits(Dataset):
    """Item i is the image of seed i, and its class."""

    def __init__(self, count):
        self.net, self.count = edm_fast.accelerate(edm_fast.load("demo")), count

    def __len__(self):
        return self.count

    def __getitem__(self, seed):
        return self.__getitems__([seed])[0]

    def __getitems__(self, seeds):
        """A batch at once: DataLoader asks for it where it is defined."""
        classes = torch.tensor(seeds) % 10
        latents = edm_fast.StackedRandomGenerator("cpu", seeds).randn([len(seeds), 1, 32, 32])
        with torch.no_grad():
            images = edm_fast.sample(self.net, latents, F.one_hot(classes, 10).float(), solver="ipndm", nfe=9)
        return [*zip(images.float().clamp(-1, 1), classes)]


# %%
digits = Digits(64)
batches = DataLoader(digits, batch_size=16, shuffle=True, num_workers=2)
for images, classes in batches:
    print(images.shape, classes.tolist())
