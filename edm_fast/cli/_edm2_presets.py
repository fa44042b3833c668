"""The published ways to sample with EDM2's networks, by name: network, the one to guide away from, weight of guidance.

Karras et al. 2024 (arXiv 2312.02696), Tables 2, 3 and 5, and Karras et al. 2024 (arXiv 2406.02507), Table 1: the widths
of the averages and the weights of guidance that gave the best FID and the best FD-DINOv2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from edm_fast.errors import UserError, near

ROOT = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions"
METRICS = ("fid", "dino")

# network -> thousands of images it has seen, and by metric the width of its average
PLAIN: dict[str, tuple[int, tuple[float, ...]]] = {
    "img512-xs": (2147483, (0.135, 0.200)),
    "img512-s": (2147483, (0.130, 0.190)),
    "img512-m": (2147483, (0.100, 0.155)),
    "img512-l": (1879048, (0.085, 0.155)),
    "img512-xl": (1342177, (0.085, 0.155)),
    "img512-xxl": (939524, (0.070, 0.150)),
    "img64-s": (1073741, (0.075,)),
    "img64-m": (2147483, (0.060,)),
    "img64-l": (1073741, (0.040,)),
    "img64-xl": (671088, (0.040,)),
}
# by metric (width, weight), guided by the unconditional XS network of the same width
GUIDED = {
    "img512-xs": ((0.045, 1.4), (0.150, 1.7)),
    "img512-s": ((0.025, 1.4), (0.085, 1.9)),
    "img512-m": ((0.030, 1.2), (0.015, 2.0)),
    "img512-l": ((0.015, 1.2), (0.035, 1.7)),
    "img512-xl": ((0.020, 1.2), (0.030, 1.7)),
    "img512-xxl": ((0.015, 1.2), (0.015, 1.7)),
}
# autoguidance -> (reference, thousands of images it has seen), and by metric (width, width of the reference, weight)
AUTOGUIDED = {
    "img512-s": (("img512-xs", 134217), ((0.070, 0.125, 2.10), (0.120, 0.165, 2.45))),
    "img512-xxl": (("img512-m", 268435), ((0.075, 0.155, 2.05), (0.130, 0.205, 2.30))),
    "img512-s-uncond": (("img512-xs-uncond", 134217), ((0.070, 0.110, 2.85), (0.090, 0.125, 2.90))),
    "img64-s": (("img64-xs", 134217), ((0.045, 0.110, 1.70), (0.105, 0.175, 2.20))),
}


class Preset(NamedTuple):
    network: str
    gnet: str | None
    guidance: float | None


def _file(network: str, kimg: int, std: float) -> str:
    return f"{ROOT}/edm2-{network}-{kimg:07d}-{std:.3f}.pkl"


def _presets() -> dict[str, Preset]:
    found = {}
    for name, (kimg, widths) in PLAIN.items():
        for metric, std in zip(METRICS, widths):
            found[f"edm2-{name}-{metric}"] = Preset(_file(name, kimg, std), None, None)
    for name, rows in GUIDED.items():
        for metric, (std, weight) in zip(METRICS, rows):
            reference = _file("img512-xs-uncond", PLAIN["img512-xs"][0], std)
            found[f"edm2-{name}-guid-{metric}"] = Preset(_file(name, PLAIN[name][0], std), reference, weight)
    for name, ((reference, seen), settings) in AUTOGUIDED.items():
        kimg = PLAIN[name.removesuffix("-uncond")][0]
        for metric, (std, other, weight) in zip(METRICS, settings):
            network = _file(name, kimg, std)
            found[f"edm2-{name}-autog-{metric}"] = Preset(network, _file(reference, seen, other), weight)
    return found


PRESETS = _presets()


def parse_preset(text: str) -> str:
    if text not in PRESETS:
        raise UserError(f"{text!r} is no preset{near(text, PRESETS)}; expected one of {', '.join(PRESETS)}")
    return text


def expect_pixels(preset: str | None) -> None:
    """UserError for networks of latents, before they are downloaded."""
    if preset is not None and "img512" in preset:
        raise UserError(
            f"--preset={preset} makes latents, and their decoder is no part of this package; in Python "
            f"edm_fast.generate(edm_fast.load({PRESETS[preset].network!r}), seeds) gives them"
        )


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """The options of generate with those of --preset where no other was typed, and no network that does not count."""
    name = options["preset"]
    if name is not None:
        published = PRESETS[name]._asdict()
        given = {"network": options["network_pkl"], "gnet": options["gnet"], "guidance": options["guidance"]}
        chosen = {key: published[key] if value is None else value for key, value in given.items()}
        options = {**options, "network_pkl": chosen.pop("network"), **chosen}
        options["explicit"] = options["explicit"] | {key for key in chosen if chosen[key] is not None}
    return {**options, "gnet": None} if options["guidance"] in (None, 1) else options
