"""Data sets and network settings so small that a training run takes a second or two."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import PIL.Image
import torch

from edm_fast import training

NETWORK = {
    "class_name": "EDMPrecond",
    "model_type": "SongUNet",
    "model_channels": 4,
    "channel_mult": [1],
    "channel_mult_emb": 1,
    "num_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.1,
}


def write_dataset(path, count=12, size=4, channels=1, classes=3, seed=0):
    """A zip of random images; labels 0, 1, ... in turn, or none if classes is 0."""
    random = np.random.RandomState(seed)
    names = [f"{i:03d}.png" for i in range(count)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            pixels = random.randint(256, size=[size, size, channels], dtype=np.uint8)
            data = io.BytesIO()
            PIL.Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(data, format="PNG")
            archive.writestr(name, data.getvalue())
        labels = [[name, i % classes] for i, name in enumerate(names)] if classes else None
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def write_latents(path, count=4, size=8, classes=2, seed=0):
    """A zip of random means and deviations (8, size, size), as of encoded images."""
    random = np.random.RandomState(seed)
    names = [f"{i:03d}.npy" for i in range(count)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            data = io.BytesIO()
            np.save(data, random.uniform(size=(8, size, size)).astype(np.float32))
            archive.writestr(name, data.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": [[name, i % classes] for i, name in enumerate(names)]}))
    return path


def read_stats(run_dir):
    return [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]


def losses(run_dir):
    """(tick, mean and spread of the loss) of each tick."""
    return [(row["Progress/tick"]["mean"], row["Loss/loss"]) for row in read_stats(run_dir)]


def same_state(a, b, path="state"):
    """Equal to the bit, but for the time that a run took."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key != "elapsed_sec":
                same_state(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same_state(x, y, f"{path}/{i}")
    else:
        assert a == b, path


def run_loop(data, run_dir, **changes):
    """Ten steps in five ticks on the CPU."""
    settings = {
        "dataset_kwargs": {"path": str(data), "use_labels": True},
        "network_kwargs": NETWORK,
        "batch_size": 10,
        "kimg_per_tick": 0.02,
        "snapshot_ticks": None,
        "state_dump_ticks": 2,
        "lr_rampup_kimg": 0.02,
        "total_kimg": 0.1,
        "seed": 2,
        "preview_images": 0,
        "progress": False,
        "device": "cpu",
    }
    return training.training_loop(run_dir=run_dir, **{**settings, **changes})
