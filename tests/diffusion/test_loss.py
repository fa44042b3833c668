"""Losses: what the noise and weights must satisfy whatever the random numbers."""

import math

import pytest
import torch

from edm_fast.training import EDMLoss, VELoss, VPLoss

LOSSES = [VPLoss(), VELoss(), EDMLoss()]


class Net:
    def __call__(self, x, sigma, labels, augment_labels=None):
        self.x, self.sigma, self.labels, self.augment_labels = x, sigma, labels, augment_labels
        return torch.zeros_like(x)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_noise_does_not_depend_on_memory_layout(loss):
    images = torch.rand(3, 2, 4, 5) * 2 - 1
    nets = []
    for y in (images, images.to(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        nets.append(Net())
        loss(nets[-1], y, None)
    assert torch.equal(nets[0].x, nets[1].x)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_shapes_and_labels_pass_through(loss):
    net, labels = Net(), torch.eye(3)
    out = loss(net, torch.zeros(3, 1, 4, 4), labels, lambda y: (y, labels * 2))
    assert out.shape == (3, 1, 4, 4) and out.dtype == torch.float32
    assert net.sigma.shape == (3, 1, 1, 1) and net.labels is labels
    assert torch.equal(net.augment_labels, labels * 2)


def test_levels_stay_in_their_range():
    images = torch.zeros(4000, 1, 1, 1)
    for loss, low, high in [(VPLoss(), 1e-4, 152.2), (VELoss(), 0.02, 100.0)]:
        net = Net()
        loss(net, images, None)
        assert low <= net.sigma.min() and net.sigma.max() <= high * 1.0001
    net = Net()
    EDMLoss(P_mean=-0.5, P_std=2.0)(net, images)  # labels may be left out
    assert net.labels is None
    assert net.sigma.log().mean().item() == pytest.approx(-0.5, abs=0.15)
    assert net.sigma.log().std().item() == pytest.approx(2.0, abs=0.1)


def test_weight_normalises_the_error_of_a_useless_denoiser():
    """With D = c_skip x + c_out F, F = 0 and data of variance sigma_data^2, the EDM loss is 1 at every noise level."""
    sigma_data = 0.5
    torch.manual_seed(0)

    def net(x, sigma, labels, augment_labels=None):
        return x * sigma_data**2 / (sigma**2 + sigma_data**2)

    for P_mean in (-2.0, 0.0, 2.0):
        y = torch.randn(64, 1, 32, 32) * sigma_data
        loss = EDMLoss(P_mean, P_std=0.0)(net, y)
        assert loss.mean().item() == pytest.approx(1, rel=5 / math.sqrt(y.numel()))
