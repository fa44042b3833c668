"""Augmentation: gates, labels, and transformations whose result is known."""

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.training import AugmentPipe
from edm_fast.training import _warp as geo

GEOMETRIC = {"scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}


@pytest.fixture
def images():
    """Smooth, so that resampling can be compared with exact mirrors."""
    y, x = torch.meshgrid(torch.linspace(-2, 2, 32), torch.linspace(-2, 2, 32), indexing="ij")
    return torch.stack([torch.sin(x + k) * torch.cos(0.7 * y - k) for k in range(4)])[:, None]


def test_nothing_on_returns_the_images(images):
    state = torch.get_rng_state()
    out, labels = AugmentPipe()(images)
    assert out is images and labels.shape == (4, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_gates_that_fail_leave_the_images_nearly_alone(images):
    out, labels = AugmentPipe(p=0, **GEOMETRIC)(images)
    assert labels.shape == (4, 7) and not labels.any()
    assert (out - images).abs().max() < 1e-3  # two filters around an identity


def test_failed_pixel_and_colour_gates_are_exact(images):
    pipe = AugmentPipe(p=0, xflip=1, yflip=1, rotate_int=1, translate_int=1, brightness=1, contrast=1, lumaflip=1)
    out, labels = pipe(images)
    assert not labels.any() and torch.equal(out, images)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -5), (-2, 4)])
def test_warp_by_whole_pixels_agrees_with_shifting(images, shift):
    tx, ty = (torch.full([4], float(s)) for s in shift)
    # G maps output to input pixels: x - tx, and the other way round in y
    warped = geo.warp(images, geo.translation(-tx, ty))
    shifted = geo.shift_mirrored(images, tx.reshape(4, 1, 1, 1), ty.reshape(4, 1, 1, 1))
    inner = slice(8, -8)
    assert (warped - shifted)[..., inner, inner].abs().max() < 5e-3


def test_warp_half_turn_is_two_flips(images):
    half = geo.rotation(torch.full([4], torch.pi))
    # the filter is only nearly symmetric, and mirrored borders have kinks
    assert (geo.warp(images, half) - images.flip(2, 3)).abs().max() < 0.03


def test_one_batch_warps_images_independently(images):
    """The common margins must not show."""
    angles = torch.tensor([0.0, 0.5, 2.0, -1.0])
    together = geo.warp(images, geo.rotation(angles))
    for i in range(4):
        alone = geo.warp(images[i : i + 1], geo.rotation(angles[i : i + 1]))
        assert (together[i : i + 1] - alone).abs().max() < 1e-4


def test_mirror_repeats_no_edge():
    positions = geo._mirror(torch.arange(-4, 9), 4).tolist()
    assert positions == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert geo._mirror(torch.tensor([-1, 0, 5]), 1).tolist() == [0, 0, 0]


def test_probability_scales_with_p():
    images = torch.zeros(4000, 1, 4, 4)
    _, labels = AugmentPipe(p=0.25, scale=1, brightness=0.5, xflip=1e8)(images)
    rates = (labels != 0).float().mean(dim=0).tolist()
    assert rates[0] == pytest.approx(0.5, abs=0.04)  # xflip: the gate always passes, the coin remains
    assert rates[1] == pytest.approx(0.25, abs=0.04)
    assert rates[2] == pytest.approx(0.125, abs=0.03)


def test_colour_needs_one_or_three_channels():
    with pytest.raises(UserError, match="2 channels"):
        AugmentPipe(hue=1)(torch.zeros(2, 2, 4, 4))
    AugmentPipe(scale=1)(torch.zeros(2, 2, 4, 4))  # geometry takes any number


def test_rectangular_images_keep_their_shape():
    out, _ = AugmentPipe(**GEOMETRIC, xflip=1, yflip=1, translate_int=1)(torch.zeros(2, 3, 8, 12))
    assert out.shape == (2, 3, 8, 12)
