"""edm-fast: custom kernels for the diffusion models of Karras et al. 2022 (EDM).

Public names load on first use, so that `import edm_fast` is quick, prints nothing and cannot fail.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edm_fast import _checkout

_checkout.install()

__version__ = "0.1.0"

_HOMES = {
    "load": "checkpoint",
    "save": "checkpoint",
    "from_pretrained": "checkpoint",
    "push_to_hub": "checkpoint",
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
    "interop",
    "networks",
    "ops",
    "plan",
    "sampling",
    "studies",
    "training",
)

if TYPE_CHECKING:  # what __getattr__ gives, for programs that read types
    from edm_fast import checkpoint as checkpoint
    from edm_fast import data as data
    from edm_fast import diffusion as diffusion
    from edm_fast import evaluation as evaluation
    from edm_fast import interop as interop
    from edm_fast import networks as networks
    from edm_fast import ops as ops
    from edm_fast import plan as plan
    from edm_fast import sampling as sampling
    from edm_fast import studies as studies
    from edm_fast import training as training
    from edm_fast.backend import explain as explain
    from edm_fast.backend import use_backend as use_backend
    from edm_fast.checkpoint import from_pretrained as from_pretrained
    from edm_fast.checkpoint import load as load
    from edm_fast.checkpoint import push_to_hub as push_to_hub
    from edm_fast.checkpoint import save as save
    from edm_fast.errors import UserError as UserError
    from edm_fast.plan import accelerate as accelerate
    from edm_fast.sampling import Guidance as Guidance
    from edm_fast.sampling import SeedSampler as SeedSampler
    from edm_fast.sampling import StackedRandomGenerator as StackedRandomGenerator
    from edm_fast.sampling import StopSampling as StopSampling
    from edm_fast.sampling import ablation_sampler as ablation_sampler
    from edm_fast.sampling import edm_sampler as edm_sampler
    from edm_fast.sampling import generate as generate
    from edm_fast.sampling import invert as invert
    from edm_fast.sampling import load_sampler as load_sampler
    from edm_fast.sampling import log_likelihood as log_likelihood
    from edm_fast.sampling import sample as sample
    from edm_fast.sampling import sample_seeds as sample_seeds
    from edm_fast.sampling import save_grid as save_grid

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
