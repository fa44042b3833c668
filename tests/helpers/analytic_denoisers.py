"""Denoisers in closed form (float64), so that a test sees the sampler's error and nothing else."""

import math

import torch


class Analytic:
    """What the samplers ask of a network; records the level of each evaluation."""

    img_channels, img_resolution = 1, 1
    dtype = torch.float64  # of the run

    def __init__(self, sigma_min=0.0, sigma_max=math.inf, label_dim=0, table=None):
        self.sigma_min, self.sigma_max, self.label_dim, self.table = sigma_min, sigma_max, label_dim, table
        self.sigmas = []

    def round_sigma(self, sigma):
        sigma = torch.as_tensor(sigma)
        if self.table is None:
            return sigma
        index = (sigma.reshape(-1, 1) - self.table).abs().argmin(dim=1)
        return self.table[index].reshape(sigma.shape)

    def __call__(self, x, sigma, class_labels=None):
        assert x.dtype == self.dtype and sigma.dtype == self.dtype and sigma.shape == ()
        self.sigmas.append(float(sigma))
        return self.denoise(x, sigma, class_labels)


class Gauss(Analytic):
    """Data N(m, sd^2): D = m + sd^2 / (sigma^2 + sd^2) (x - m); m by class where there are labels."""

    def __init__(self, means, sd, **kwargs):
        super().__init__(**kwargs)
        self.means, self.sd = means, sd  # (K, C, H, W)

    def denoise(self, x, sigma, labels):
        m = self.means[0] if labels is None else self.means[labels.argmax(dim=1)]
        return m + self.sd**2 / (sigma**2 + self.sd**2) * (x - m)

    def solution(self, x, sigma):
        """Where the ODE dx/dsigma = (x - D)/sigma, which is linear, takes x at level sigma."""
        return self.means[0] + (x - self.means[0]) * self.sd / math.sqrt(self.sd**2 + sigma**2)


class Mixture(Analytic):
    """Data sum_k w_k N(m_k, sd_k^2)."""

    def __init__(self, means, sds, weights, **kwargs):
        super().__init__(**kwargs)
        self.means, self.sds, self.weights = means, sds, weights  # (K, C, H, W), (K,), (K,)

    def denoise(self, x, sigma, labels):
        n = x[0].numel()
        variance = sigma**2 + self.sds**2  # (K,)
        diff = x[:, None] - self.means  # (N, K, C, H, W)
        squares = diff.flatten(2).square().sum(dim=2)  # (N, K)
        r = (self.weights.log() - n / 2 * variance.log() - squares / (2 * variance)).softmax(dim=1)
        shrink = (self.sds**2 / variance)[:, None, None, None]
        return (r[:, :, None, None, None] * (self.means + shrink * diff)).sum(dim=1)
