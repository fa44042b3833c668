"""A program of a user who checks types: `make lint` holds it to what mypy --strict asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

import edm_fast


def batches(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def draw(path: str, count: int) -> torch.Tensor:
    """Images of seeds, the first ones twice: by a sampler, and by the loop of edm_fast.generate."""
    net = edm_fast.load(path)
    sampler = edm_fast.SeedSampler(net, solver="heun", num_steps=2)
    images: torch.Tensor = torch.cat([sampler(seeds) for seeds in batches(count, 2)])
    for seed, image in edm_fast.generate(net, range(2), batch=2, solver="heun", num_steps=2):
        assert torch.equal(images[seed], image)
    return images


def by_hand(path: str, count: int) -> torch.Tensor:
    net = edm_fast.load(path)
    rnd = edm_fast.StackedRandomGenerator("cpu", range(count))
    shape: list[int] = [count, net.img_channels, net.img_resolution, net.img_resolution]
    latents = rnd.randn(shape)
    labels = torch.eye(net.label_dim)[rnd.randint(net.label_dim, size=[count])] if net.label_dim else None
    try:
        with edm_fast.use_backend("reference"), torch.no_grad():
            return edm_fast.edm_sampler(net, latents, labels, randn_like=rnd.randn_like, num_steps=2)
    except edm_fast.UserError as error:
        sys.exit(f"{error}")


def main(path: str, picture: str) -> None:
    images = draw(path, 4)
    difference: float = (images - by_hand(path, 4)).abs().max().item()
    edm_fast.save_grid(picture, images)
    chosen: list[str] = [choice.backend for choice in edm_fast.explain()]
    print(f"edm-fast {edm_fast.__version__}: {difference:.0e}, {', '.join(sorted({*chosen}))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
