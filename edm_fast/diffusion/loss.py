"""Training losses: L(D; sigma) = lambda(sigma) (D(y + n; sigma) - y)^2, n ~ N(0, sigma^2 I), sigma drawn in three ways.

Called as `loss(net, images, labels, augment_pipe=None)` with images (N, C, H, W) in [-1, 1]; the result is the weighted
squared error per pixel (N, C, H, W), unreduced. Draws from the global generator of the device, in this order: noise
level, augmentation, normals (row-major NCHW whatever the layout of the images), then whatever the network draws.
Karras et al. 2022, Table 1 and Section 5; that of EDM2: Karras et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edm_fast.diffusion._processes import vp_sigma
from edm_fast.errors import UserError

Net = Callable[..., Any]  # a Tensor, or with return_logvar two
Augment = Callable[[Tensor], tuple[Tensor, Tensor]]


def weighted_error(
    net: Net, images: Tensor, labels: Tensor | None, augment_pipe: Augment | None, sigma: Tensor, weight: Tensor
) -> Tensor:
    """weight (D(y + sigma n; sigma, labels, a) - y)^2, (y, a) = augment(images), n ~ N(0, I).

    images (N, C, H, W); sigma, weight (N, 1, 1, 1).
    """
    if not images.is_floating_point():
        raise UserError(f"images are {images.dtype}; expected floating-point numbers in [-1, 1]: images / 127.5 - 1")
    y, augment_labels = augment_pipe(images) if augment_pipe is not None else (images, None)
    # not randn_like: it would fill a channels_last tensor in another order
    noise = torch.randn(y.shape, device=y.device, dtype=y.dtype)
    denoised: Tensor = net(y + noise * sigma, sigma, labels, augment_labels=augment_labels)
    return weight * (denoised - y) ** 2


class VPLoss:
    """u ~ U(0, 1), sigma = sigma_VP(1 + u (epsilon_t - 1)), lambda = 1 / sigma^2."""

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5) -> None:
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.epsilon_t = epsilon_t

    def __call__(self, net: Net, images: Tensor, labels: Tensor | None, augment_pipe: Augment | None = None) -> Tensor:
        u = torch.rand([images.shape[0], 1, 1, 1], device=images.device)
        sigma = vp_sigma(1 + u * (self.epsilon_t - 1), self.beta_d, self.beta_min)  # (N, 1, 1, 1)
        return weighted_error(net, images, labels, augment_pipe, sigma, 1 / sigma**2)


class VELoss:
    """u ~ U(0, 1), sigma = sigma_min (sigma_max / sigma_min)^u, lambda = 1 / sigma^2."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def __call__(self, net: Net, images: Tensor, labels: Tensor | None, augment_pipe: Augment | None = None) -> Tensor:
        u = torch.rand([images.shape[0], 1, 1, 1], device=images.device)
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** u  # (N, 1, 1, 1)
        return weighted_error(net, images, labels, augment_pipe, sigma, 1 / sigma**2)


class EDMLoss:
    """ln sigma ~ N(P_mean, P_std^2), lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5) -> None:
        if not 0 <= P_std < math.inf:
            raise UserError(f"P_std {P_std}; expected a finite number, at least 0")
        self.P_mean = P_mean
        self.P_std = P_std
        self.sigma_data = sigma_data

    def __call__(
        self, net: Net, images: Tensor, labels: Tensor | None = None, augment_pipe: Augment | None = None
    ) -> Tensor:
        sigma, weight = self.draw(images)
        return weighted_error(net, images, labels, augment_pipe, sigma, weight)

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """sigma and lambda(sigma), (N, 1, 1, 1)."""
        normal = torch.randn([images.shape[0], 1, 1, 1], device=images.device)
        sigma = (self.P_mean + self.P_std * normal).exp()
        return sigma, (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class EDM2Loss(EDMLoss):
    """lambda e^{-u} (D(y + n; sigma) - y)^2 + u, sigma and lambda as EDM's, u the log-variance that `net` learns.

    Karras et al. 2024, Eq. 14-16 and 21; u counts once for each number of an image. net(x, sigma, labels,
    return_logvar=True) gives (D, u); images are of deviation sigma_data. There is no augmentation.
    """

    def __init__(self, P_mean: float = -0.4, P_std: float = 1.0, sigma_data: float = 0.5) -> None:
        super().__init__(P_mean, P_std, sigma_data)

    def __call__(
        self, net: Net, images: Tensor, labels: Tensor | None = None, augment_pipe: Augment | None = None
    ) -> Tensor:
        if augment_pipe is not None:
            raise UserError("EDM2's networks know no augmentation; expected augment_pipe=None")
        sigma, weight = self.draw(images)
        noise = torch.randn(images.shape, device=images.device, dtype=images.dtype)
        denoised, u = net(images + noise * sigma, sigma, labels, return_logvar=True)
        return weight / u.exp() * (denoised - images) ** 2 + u
