"""edm-fast: custom kernels for the diffusion models of Karras et al. 2022 (EDM).

Public names load on first use, so that `import edm_fast` is quick, prints nothing and cannot fail.
"""

from __future__ import annotations

import importlib
from typing import Any

from edm_fast import _checkout

_checkout.install()

__version__ = "0.1.0"

_HOMES = {
    "load": "checkpoint",
    "save": "checkpoint",
    "accelerate": "plan",
    "edm_sampler": "sampling",
    "ablation_sampler": "sampling",
    "sample": "sampling",
    "Guidance": "sampling",
    "load_sampler": "sampling",
    "generate": "sampling",
    "invert": "sampling",
    "log_likelihood": "sampling",
    "sample_seeds": "sampling",
    "SeedSampler": "sampling",
    "StopSampling": "sampling",
    "save_grid": "sampling",
    "StackedRandomGenerator": "sampling",
    "use_backend": "backend",
    "explain": "backend",
    "UserError": "errors",
}
_PACKAGES = (
    "checkpoint",
    "data",
    "diffusion",
    "evaluation",
    "networks",
    "ops",
    "plan",
    "sampling",
    "studies",
    "training",
)

__all__ = ["__version__", *_HOMES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"edm_fast.{_HOMES[name]}"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"edm_fast.{name}")
    text = f"module 'edm_fast' has no attribute {name!r}"
    if not name.startswith("_"):  # as probed for by many tools
        text += importlib.import_module("edm_fast.errors").near(name, __all__)
    raise AttributeError(text)


def __dir__() -> list[str]:
    return sorted(__all__)
