"""The model card: README.md of a folder in the layout of the Hugging Face hub, from what is known about a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edm_fast.checkpoint._digest import weights_digest
from edm_fast.errors import UserError, count

CARD_NAME = "README.md"
SAMPLER_NAME = "model.sampler.json"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # the hub's identifiers: apache-2.0, cc-by-nc-sa-4.0, other
DIGEST = re.compile(r'\| digest of the weights \| (\w+) \||"digest":\s*"(\w+)"')  # in a card, in a sampler file
SECTION = re.compile(r"^## Sampler$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
# of the options of a training run: places and habits of one machine, and what the architecture says already
LEFT_OUT = re.compile(r"(^|_)(path|dir|class_name|dump|pkl|ticks?|benchmark|images)$|^(network|data_loader)_kwargs$")
ERRORS = {"mean": "mean", "median": "median", "p95": "95th percentile", "worst": "worst"}


def is_outdated(text: str, digest: str, others: Mapping[str, str]) -> bool:
    """Whether a card or a sampler would tell what is not true, beside weights of this digest and the texts `others`: it
    names the digest of other weights, or it is a card that tells of another sampler than comes now, or of none."""
    found = DIGEST.search(text)
    if found is None:
        return False  # somebody's own
    new = others.get(CARD_NAME, text) if SAMPLER_NAME in others else text
    before, now = SECTION.search(text), SECTION.search(new)
    return digest not in found.groups() or (before is not None and now is not None and before[0] != now[0])


def left_untold(
    card: str, license: str | None = None, training: Mapping[str, Any] | None = None, sampler: Any = None
) -> list[str]:
    """Which of the keywords that were given to `hub_files` a card, perhaps an older one, does not tell."""
    lines = {
        "license": [f"license: {license}"] if license else [],
        "training": _table(dict(_flat(training))) if training else [],
        "sampler": _sampler(sampler) if sampler is not None else [],
    }
    there = {*card.splitlines()}
    return [name for name, wanted in lines.items() if not there.issuperset(wanted)]


def hub_files(
    net: Any,
    name: str = "USER/REPO",
    license: str | None = None,
    training: Mapping[str, Any] | None = None,
    sampler: Any = None,
) -> dict[str, str]:
    """What lies beside a network on the hub, as text by name of file: its model card and, if there is one, its sampler.

    The card is Markdown with the hub's fields at its head. `training`: the content of a training_options.json;
    `sampler`: what `load_sampler` gave for this network. UserError for a licence that is no identifier of the hub's.
    """
    card = _card(net, name, license, training, sampler)
    return {CARD_NAME: card} if sampler is None else {CARD_NAME: card, SAMPLER_NAME: sampler.text()}


def _card(net: Any, name: str, license: str | None, training: Mapping[str, Any] | None, sampler: Any) -> str:
    if license is not None and not LICENSE.fullmatch(license):
        raise UserError(f"license {license!r}; expected an identifier of the hub such as apache-2.0, or other")
    kwargs: dict[str, Any] = getattr(net, "init_kwargs", {})
    side, inner = net.img_resolution, kwargs.get("model_type")
    fields = ["---", "library_name: edm-fast", *([f"license: {license}"] if license else [])]
    fields += ["pipeline_tag: unconditional-image-generation", "tags:", "- edm", "- diffusion", "---"]
    settings = {
        "network": type(net).__name__ + (f" with {inner}" if inner else ""),
        "images": f"{count(net.img_channels, 'channel')} at {side}x{side}",
        "classes": net.label_dim or "none",
        "parameters": f"{sum(p.numel() for p in net.parameters()):,}",
        "digest of the weights": weights_digest(net),
        **{key: value for key, value in kwargs.items() if key not in ("img_resolution", "img_channels", "model_type")},
    }
    use = ["import torch", "import edm_fast", "", f'net = edm_fast.accelerate(edm_fast.load("{name}"))']
    text = [*fields, "", f"# {name.split('/')[-1]}", "", "A diffusion model in the format of edm-fast.", ""]
    if sampler is None:
        use += ["images = dict(edm_fast.generate(net, range(16)))  # by seed"]
    else:
        use += [f'tuned = edm_fast.load_sampler("{name}", net)']
        use += ["images = dict(edm_fast.generate(net, range(16), **tuned.settings))  # by seed"]
    text += ["```python", *use, 'edm_fast.save_grid("images.png", torch.stack([*images.values()]))', "```", ""]
    text += ["## Architecture", "", *_table(settings), "", "## Training", ""]
    text += _table(dict(_flat(training))) if training else ["The options of the training run are not known."]
    text += ["", "## Sampler", "", *_sampler(sampler)]
    text += ["", "## Licence", "", license or "Not stated: ask the author before you use these weights."]
    return "\n".join(text) + "\n"


def _sampler(sampler: Any) -> list[str]:
    if sampler is None:
        return [
            "No sampler has been tuned to these weights; `edm-fast tune` does it. The default is the published one."
        ]
    error, truth = sampler.error, sampler.truth
    return [
        f"`{SAMPLER_NAME}`: {sampler.settings['solver']}, {sampler.evaluations} evaluations per image in "
        f"{sampler.precision}. Error of {error['images']} held-out images against {truth['num_steps']} steps of "
        f"{truth['solver']}, as RMS difference per image in levels of 255:",
        "",
        *_table({words: f"{error[key]:.3g}" for key, words in ERRORS.items()}),
    ]


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options by dotted name, but for those that name places of the machine."""
    for key, value in options.items():
        if LEFT_OUT.search(str(key)):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(rows: Mapping[str, Any]) -> list[str]:
    def cell(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return " ".join(text.split()).replace("|", r"\|")

    return ["| | |", "|---|---|", *(f"| {cell(key)} | {cell(value)} |" for key, value in rows.items())]
