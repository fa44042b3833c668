# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Your own U-Net
#
# A network of torch's layers is accelerated as it is. What it must look like: docs/accelerate.md.

# %%
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.benchmark import Timer

import edm_fast


class Block(nn.Module):
    def __init__(self, inputs, outputs, width):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.embed = nn.Linear(width, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x))) + self.embed(emb)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.skip(x)


class UNet(nn.Module):
    def __init__(self, channels=3, width=64):
        super().__init__()
        self.frequencies = nn.Buffer(torch.logspace(0, 3, width // 2))
        self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList([Block(width, width, width), Block(width, 2 * width, width)])
        self.middle = Block(2 * width, 2 * width, width)
        self.up = nn.ModuleList([Block(4 * width, width, width), Block(2 * width, width, width)])
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, t):
        phase = t.reshape(-1, 1) * self.frequencies
        emb = self.embed(torch.cat([phase.sin(), phase.cos()], dim=1)).expand(len(x), -1)
        x, skips = self.first(x), []
        for block in self.down:
            x = block(x, emb)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x, emb)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2)
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.last(F.silu(x))


# %%
torch.manual_seed(0)
unet = UNet().eval()
fast = edm_fast.accelerate(unet)
x, t = torch.randn(8, 3, 32, 32), torch.tensor(0.5)
with torch.no_grad():
    difference = (fast(x, t) - unet(x, t)).abs().max()
    print(f"largest difference: {difference:.0e}")
    for name, network in (("PyTorch", unet), ("accelerated", fast)):
        timer = Timer("network(x, t)", globals={"network": network, "x": x, "t": t})
        print(f"{name}: {timer.blocked_autorange(min_run_time=0.5).median * 1e3:.1f} ms")
for choice in edm_fast.explain():
    print(choice)

# %% [markdown]
# Or call the ops, with gradients, in training: each chooses the fastest implementation that is here.

# %%
from edm_fast.ops import conv2d, group_norm_silu  # noqa: E402

block = Block(64, 64, 64)
h, emb = torch.randn(8, 64, 32, 32, requires_grad=True), torch.randn(8, 64)
y = group_norm_silu(h, block.norm1.weight, block.norm1.bias, groups=8)
y = conv2d(y, block.conv1.weight, block.conv1.bias, emb=block.embed(emb))
y = group_norm_silu(y, block.norm2.weight, block.norm2.bias, groups=8)
y = conv2d(y, block.conv2.weight, block.conv2.bias, residual=h)
print(f"largest difference: {(y - block(h, emb)).abs().max():.0e}")
y.square().mean().backward()
