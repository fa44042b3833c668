"""The preconditioners VPPrecond, VEPrecond, iDDPMPrecond, EDMPrecond and Precond: D(x; sigma) from a raw network F.

Karras et al. 2022, Eq. 7 and Table 1; Karras et al. 2024. One call for all:

    D = net(x, sigma, class_labels=None, force_fp32=False, augment_labels=None)

x: (N, C, R, R), any dtype; sigma: one level per image or a single one for all; class_labels: (N or 1, label_dim),
None means all zeros, and a network without classes passes over them; augment_labels: (N or 1, augment_dim) or None;
D: (N, C, R, R) float32. Inputs of other shapes raise UserError. Positions and names of the keywords are those of the
published classes. EDM2's Precond takes no augment_labels, and has one more: return_logvar.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from edm_fast.diffusion import precond as formulas
from edm_fast.errors import UserError
from edm_fast.networks import _inputs
from edm_fast.networks._dhariwal import DhariwalUNet
from edm_fast.networks._edm2 import MPConv, MPFourier, UNet
from edm_fast.networks._songunet import SongUNet
from edm_fast.ops import solver_update

UNETS: dict[str, type[torch.nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class _Precond(torch.nn.Module):
    """What all have in common. Subclasses build the raw network, and give the levels it knows and the coefficients."""

    raw_name = "model"
    """The attribute that holds the raw network."""
    half_weights = False
    """Whether weights stored in half precision stay so: the rounding of its factors is part of an EDM2 network."""
    img_resolution: int
    img_channels: int
    label_dim: int
    use_fp16: bool
    sigma_min: float
    sigma_max: float
    init_kwargs: dict[str, Any]
    """The constructor's keywords as given, without those left at their default: enough to build the network again."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        raw_kwargs: dict[str, Any],
        **own: Any,
    ) -> None:
        """`own`: the other keywords of the subclass, of which those of the raw network are no attributes."""
        super().__init__()
        arguments = {
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "label_dim": label_dim,
            "use_fp16": use_fp16,
            **own,
        }
        for name, value in arguments.items():
            if name not in ("model_type", "logvar_channels"):
                setattr(self, name, value)
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        changed = {name: value for name, value in arguments.items() if value != defaults.get(name)}
        self.init_kwargs = {**changed, **raw_kwargs}

    @property
    def raw(self) -> Any:
        """The raw network F."""
        return getattr(self, self.raw_name)

    def coefficients(self, sigma: torch.Tensor) -> formulas.Coefficients:
        """c_skip, c_out, c_in, c_noise for sigma (N or 1, 1, 1, 1) float32."""
        raise NotImplementedError

    def labels(self, class_labels: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
        """Labels of x as the network wants them: None without label_dim, otherwise (N or 1, label_dim) float32."""
        if self.label_dim == 0:
            return None
        if class_labels is None:
            return torch.zeros([1, self.label_dim], device=x.device)
        return _inputs.checked_labels(class_labels, x.shape[0], self.label_dim, x.device)

    def forward(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        force_fp32: bool = False,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        _inputs.check_images(x, self.img_channels)
        x = x.to(torch.float32)
        sigma = _inputs.checked_levels(sigma, x.shape[0], x.device).reshape(-1, 1, 1, 1)
        labels, augment_dim = self.labels(class_labels, x), self.init_kwargs.get("augment_dim", 0)
        if augment_dim and model_kwargs.get("augment_labels") is not None:
            _inputs.check_augment_labels(model_kwargs["augment_labels"], x.shape[0], augment_dim, x.device)
        half = self.use_fp16 and not force_fp32 and x.is_cuda
        dtype = torch.float16 if half else torch.float32
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        c_in_x = (c_in * x).to(dtype)
        F_x = self.raw(c_in_x, c_noise.flatten(), class_labels=labels, **model_kwargs)
        F_x = F_x[:, : self.img_channels].to(torch.float32)
        D_x, _ = solver_update(x, terms=[F_x], weights=[c_out], a=c_skip)
        return D_x

    def round_sigma(self, sigma: torch.Tensor | float) -> torch.Tensor:
        """The nearest noise level the network was trained at: sigma itself, unless a subclass has a table."""
        return torch.as_tensor(sigma)


class _ModelPrecond(_Precond):
    """The four of 2022: the raw network is `model`, of the class that model_type names."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        model_type: str,
        model_kwargs: dict[str, Any],
        outputs_per_channel: int = 1,
        **own: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_kwargs, model_type=model_type, **own)
        self.model = _unet_named(model_type)(
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels * outputs_per_channel,
            label_dim=label_dim,
            **model_kwargs,
        )


class VPPrecond(_ModelPrecond):
    """Variance preserving (Song et al. 2021): c_skip 1, c_out -sigma, c_in 1/sqrt(sigma^2 + 1)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"beta_d": beta_d, "beta_min": beta_min, "M": M, "epsilon_t": epsilon_t}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, **own)
        self.sigma_min = float(self.sigma(epsilon_t))
        self.sigma_max = float(self.sigma(1))

    beta_d: float
    beta_min: float
    M: int

    def sigma(self, t: torch.Tensor | float) -> torch.Tensor:
        """sigma(t); a Python number gives a float32 tensor."""
        return formulas.vp_sigma(_tensor(t), self.beta_d, self.beta_min)

    def sigma_inv(self, sigma: torch.Tensor | float) -> torch.Tensor:
        """t(sigma); a Python number gives a float32 tensor."""
        return formulas.vp_t(_tensor(sigma), self.beta_d, self.beta_min)

    def coefficients(self, sigma: torch.Tensor) -> formulas.Coefficients:
        return formulas.vp(sigma, self.beta_d, self.beta_min, self.M)


class VEPrecond(_ModelPrecond):
    """Variance exploding (Song et al. 2021): c_skip 1, c_out sigma, c_in 1."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, **own)

    def coefficients(self, sigma: torch.Tensor) -> formulas.Coefficients:
        return formulas.ve(sigma)


class iDDPMPrecond(_ModelPrecond):
    """Improved DDPM (Nichol & Dhariwal 2021): trained at the levels u_j; the network also predicts unused variances."""

    u: torch.Tensor
    M: int

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"C_1": C_1, "C_2": C_2, "M": M}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, 2, **own)
        u = formulas.iddpm_table(C_1, C_2, M)
        self.register_buffer("u", u)
        self.sigma_min = float(u[M - 1])
        self.sigma_max = float(u[0])

    def coefficients(self, sigma: torch.Tensor) -> formulas.Coefficients:
        index = formulas.iddpm_index(sigma, self.u).to(torch.float32)
        return formulas.iddpm(sigma, index, self.M)

    def round_sigma(self, sigma: torch.Tensor | float, return_index: bool = False) -> torch.Tensor:
        """The nearest u_j in the dtype of sigma, or its index j (int64)."""
        sigma = torch.as_tensor(sigma)
        index = formulas.iddpm_index(sigma, self.u)
        return index if return_index else self.u.to(sigma.device)[index].to(sigma.dtype)


class EDMPrecond(_ModelPrecond):
    """Karras et al. 2022: unit variance at the input and target of the network at every noise level."""

    sigma_data: float

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs, **own)

    def coefficients(self, sigma: torch.Tensor) -> formulas.Coefficients:
        return formulas.edm(sigma, self.sigma_data)


class Precond(_Precond):
    """EDM2 (Karras et al. 2024): the coefficients of EDM, a magnitude-preserving network, and its log-variance u.

    With return_logvar the call gives (D, u), u: (N or 1, 1, 1, 1) float32, the learned uncertainty of Eq. 21. Any noise
    level is allowed. Weights and buffers may be in half precision, as published snapshots hold them.
    """

    raw_name = "unet"
    half_weights = True
    sigma_min = 0.0
    sigma_max = math.inf
    sigma_data: float

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet_kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"sigma_data": sigma_data, "logvar_channels": logvar_channels}
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, unet_kwargs, **own)
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet_kwargs)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1, kernel=[])

    def coefficients(self, sigma: torch.Tensor) -> formulas.Coefficients:
        return formulas.edm(sigma, self.sigma_data)

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        force_fp32: bool = False,
        return_logvar: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        D_x = super().forward(x, sigma, class_labels, force_fp32)
        if not return_logvar:
            return D_x
        c_noise = self.coefficients(_inputs.checked_levels(sigma, x.shape[0], x.device).flatten()).c_noise
        return D_x, self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)


def _unet_named(model_type: str) -> type[torch.nn.Module]:
    if model_type not in UNETS:
        raise UserError(f"model_type={str(model_type)[:80]!r}; expected one of {', '.join(UNETS)}")
    return UNETS[model_type]


def unet_class(cls: type[torch.nn.Module], kwargs: Mapping[str, Any]) -> type[torch.nn.Module]:
    """The class of the raw network that `cls` builds from these keywords."""
    parameter = inspect.signature(cls).parameters.get("model_type")
    return UNet if parameter is None else _unet_named(kwargs.get("model_type", parameter.default))


def _tensor(value: torch.Tensor | float) -> torch.Tensor:
    """Python numbers become float32 on the CPU, whatever default device is set."""
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float32, device="cpu")


PRECONDS: dict[str, type[_Precond]] = {c.__name__: c for c in (VPPrecond, VEPrecond, iDDPMPrecond, EDMPrecond, Precond)}
