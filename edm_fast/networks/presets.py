"""The published architectures and models by name. Karras et al. 2022, Tables 2 and 7; Karras et al. 2024, Table 6."""

from __future__ import annotations

from typing import Any

from edm_fast.errors import UserError, near
from edm_fast.networks._build import build
from edm_fast.networks._precond import _Precond

# keywords of the three architectures the training command offers as --arch
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "model_type": "SongUNet",
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": [1, 1],
        "model_channels": 128,
        "channel_mult": [2, 2, 2],
    },
    "ncsnpp": {
        "model_type": "SongUNet",
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "decoder_type": "standard",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
        "model_channels": 128,
        "channel_mult": [2, 2, 2],
    },
    "adm": {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4]},
}


def _model(cls: str, arch: str, resolution: int, **changes: Any) -> tuple[str, dict[str, Any]]:
    return cls, {"img_resolution": resolution, "img_channels": 3, **ARCHITECTURES[arch], **changes}


def _published() -> dict[str, tuple[str, dict[str, Any]]]:
    table = {}
    for suffix, arch in (("vp", "ddpmpp"), ("ve", "ncsnpp")):
        table[f"edm-cifar10-32x32-cond-{suffix}"] = _model("EDMPrecond", arch, 32, augment_dim=9, label_dim=10)
        table[f"edm-cifar10-32x32-uncond-{suffix}"] = _model("EDMPrecond", arch, 32, augment_dim=9)
        for data in ("ffhq", "afhqv2"):
            table[f"edm-{data}-64x64-uncond-{suffix}"] = _model(
                "EDMPrecond", arch, 64, augment_dim=9, channel_mult=[1, 2, 2, 2]
            )
        baseline = "VPPrecond" if suffix == "vp" else "VEPrecond"
        table[f"baseline-cifar10-32x32-uncond-{suffix}"] = _model(baseline, arch, 32, channel_mult=[1, 2, 2, 2])
    table["edm-imagenet-64x64-cond-adm"] = _model("EDMPrecond", "adm", 64, label_dim=1000, use_fp16=True)
    table["baseline-imagenet-64x64-cond-adm"] = _model("iDDPMPrecond", "adm", 64, label_dim=1000, use_fp16=True)
    for size, (channels, dropout, _) in EDM2_SIZES.items():
        model = {"label_dim": 1000, "model_channels": channels, "dropout": dropout}
        latents = {"img_resolution": 64, "img_channels": 4, **model}  # of 512x512 images
        table[f"edm2-img512-{size}"] = ("Precond", latents)
        table[f"edm2-img512-{size}-uncond"] = ("Precond", {**latents, "label_dim": 0})
        if size in EDM2_MILLION_IMAGES["img64"]:
            table[f"edm2-img64-{size}"] = ("Precond", {**latents, "img_channels": 3})
    return table


# size of an EDM2 network -> model_channels, dropout and learning rate in training
EDM2_SIZES = {
    "xxs": (64, 0.0, 0.0170),
    "xs": (128, 0.0, 0.0120),
    "s": (192, 0.0, 0.0100),
    "m": (256, 0.1, 0.0090),
    "l": (320, 0.1, 0.0080),
    "xl": (384, 0.1, 0.0070),
    "xxl": (448, 0.1, 0.0065),
}
# data and size -> length of the training, in 2^20 images
EDM2_MILLION_IMAGES = {
    "img512": {"xxs": 2048, "xs": 2048, "s": 2048, "m": 2048, "l": 1792, "xl": 1280, "xxl": 896},
    "img64": {"xs": 1024, "s": 1024, "m": 2048, "l": 1024, "xl": 640},
}
EDM2_DATA: dict[str, dict[str, float]] = {
    "img512": {"decay": 70_000, "P_mean": -0.4, "P_std": 1.0},
    "img64": {"decay": 35_000, "P_mean": -0.8, "P_std": 1.6},
}


def edm2_training(name: str) -> dict[str, float]:
    """How a published EDM2 network was trained: cbase, dropout, lr, duration, batch, decay, P_mean and P_std, by the
    names of options of edm-fast train.
    """
    _, data, size = name.split("-")
    channels, dropout, lr = EDM2_SIZES[size]
    settings = {"cbase": channels, "dropout": dropout, "lr": lr, "duration": EDM2_MILLION_IMAGES[data][size]}
    return {**settings, "batch": 2048, **EDM2_DATA[data]}


EDM2_TRAININGS = [f"edm2-{data}-{size}" for data, sizes in EDM2_MILLION_IMAGES.items() for size in sizes]

# published model name -> (preconditioner class, keywords); the names are those of the released .pkl files
PRESETS = _published()


def preset(name: str, **changes: Any) -> _Precond:
    """The network of a published model with fresh weights, e.g. preset("edm-cifar10-32x32-cond-vp", dropout=0.13)."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{near(name, PRESETS)}; expected one of {', '.join(sorted(PRESETS))}")
    class_name, kwargs = PRESETS[name]
    return build(class_name, {**kwargs, **changes})
