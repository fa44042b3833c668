"""Data sets and network settings so small that a training run takes a second or two."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import PIL.Image

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


def read_stats(run_dir):
    return [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
