"""A whole run of EDM2 against the golden one, stopped in the middle and gone on with."""

from itertools import islice

import numpy as np
import pytest
import torch

from edm_fast import checkpoint, networks, training
from edm_fast.data import EpochSampler, mixed_seed
from helpers import golden_cases as g
from helpers import tiny_training as tiny


class Trace:
    """Wraps EDM2Loss; keeps what each call saw."""

    def __init__(self):
        self.call = training.EDM2Loss.__call__
        self.rows = {key: [] for key in ("sigma", "loss", "images", "noisy", "labels", "params")}
        self.initial = self.rng = None

    def __call__(self, loss_fn, net, images, labels, augment_pipe):
        if self.rng is None:
            self.rng = torch.get_rng_state()
            self.initial = {key: value.clone() for key, value in net.state_dict().items()}

        def watched(x, sigma, labels, **kwargs):
            self.rows["sigma"].append(sigma.flatten().numpy())
            self.rows["noisy"].append(x.double().abs().sum().item())
            return net(x, sigma, labels, **kwargs)

        loss = self.call(loss_fn, watched, images, labels, augment_pipe)
        self.rows["loss"].append(loss.detach().double().sum().item())
        self.rows["images"].append(images.double().sum().item())
        self.rows["labels"].append(labels.argmax(1).numpy() if labels.shape[1] else np.zeros(len(labels), np.float32))
        self.rows["params"].append(sum(p.detach().double().abs().sum().item() for p in net.parameters()))
        return loss


def named(files):
    """As the files are called here."""
    return sorted(name.replace(".pt", ".safetensors") for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("entry", g.edm2("training"), ids=g.entry_id)
def test_golden_edm2_trajectory(entry, tmp_path, monkeypatch):
    config, arrays, trace = dict(entry["config"]), g.arrays(entry), Trace()
    monkeypatch.setattr(training.EDM2Loss, "__call__", lambda self, **kwargs: trace(self, **kwargs))
    dataset_kwargs = {**config["dataset_kwargs"], "path": g.path(entry, config["dataset"].split(",")[0])}
    source = {"path": dataset_kwargs["path"], "use_labels": dataset_kwargs["use_labels"]}
    dataset = training.ImageFolderDataset(**source, arrays=True)
    latents = dataset.num_channels == 8
    torch.manual_seed(mixed_seed(config["seed"], 0))
    if latents:
        torch.randn(1, 4, *dataset.image_shape[1:])  # an item is encoded before the network is made
    channels = 4 if latents else dataset.num_channels
    shape = {"img_resolution": dataset.resolution, "img_channels": channels, "label_dim": dataset.label_dim}
    kwargs = {key: value for key, value in config["network_kwargs"].items() if key != "class_name"}
    constructed = networks.build("Precond", {**shape, **kwargs}).state_dict()
    assert list(constructed) == arrays["constructed_keys"].tolist()
    g.check(entry, "constructed_rows", g.heads(constructed.values()))

    def train(images, **more):
        return training.training_loop(
            run_dir=tmp_path,
            dataset_kwargs=dataset_kwargs,
            data_loader_kwargs=config["data_loader_kwargs"],
            network_kwargs=config["network_kwargs"],
            loss_kwargs=config["loss_kwargs"],
            optimizer_kwargs={"class_name": "Adam", "betas": (0.9, 0.99), "eps": 1e-8},
            lr_kwargs=config["lr_kwargs"],
            ema_kwargs=config.get("ema_kwargs"),
            batch_size=config["batch_size"],
            batch_gpu=config["batch_gpu"],
            kimg_per_tick=config["snapshot_nimg"] / 1000,
            snapshot_ticks=1,
            state_dump_ticks=(config["checkpoint_nimg"] or 0) // config["snapshot_nimg"],
            loss_scaling=config.get("loss_scaling", 1),
            total_kimg=images / 1000,
            seed=config["seed"],
            device="cpu",
            snapshot_format="pkl",
            preview_images=0,
            progress=False,
            **more,
        )

    def files():
        """Status lines go to a file here even if the golden run has none."""
        skipped = set() if entry["stats"] else {"stats.jsonl"}
        return sorted({path.name for path in tmp_path.iterdir() if path.is_file()} - skipped)

    state = None
    if entry["resume"]:
        first = entry["resume"]["slice_nimg"]
        train(first)
        assert files() == named(entry["resume"]["files_after_first_slice"])
        state = str(tmp_path / f"training-state-{first // 1000:07d}.safetensors")
    run = train(config["total_nimg"], resume_state_dump=state)
    assert files() == named(entry["run_files"])

    np.testing.assert_array_equal(trace.rng.numpy(), arrays["initial_rng_state"])
    for name, rows in trace.rows.items():
        g.check(entry, f"log/{name}", np.stack(rows), arrays[f"log/{name}"])
    order = EpochSampler(range(len(dataset)), seed=config["seed"])
    assert arrays["log/indices"].flatten().tolist() == list(islice(order, arrays["log/indices"].size))
    states = {"initial": trace.initial, "final": run.net.state_dict()}
    states |= {f"ema{i}": average.state_dict() for i, average in enumerate(run.averages)}
    compared = {name for name in arrays if name.partition("/")[0] in states}
    assert compared == {f"{part}/{key}" for part, state in states.items() for key in state}
    for name in compared:
        part, _, key = name.partition("/")
        g.check(entry, name, states[part][key])
    for file, average in zip(sorted(tmp_path.glob("network*"))[-len(run.averages) :], run.averages, strict=True):
        for key, value in checkpoint.load(file).state_dict().items():
            assert torch.equal(value, average.state_dict()[key].half()), key

    # the row at image 0, which holds no loss, is left out here
    rows = tiny.read_stats(tmp_path) if entry["stats"] else []
    for row, want in zip(rows, entry["stats"][1:], strict=True):
        for key, value in want.items():
            assert float(f"{row[key]['mean']:g}") == pytest.approx(value, rel=2e-5), key
