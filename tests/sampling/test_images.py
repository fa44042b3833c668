import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import edm_fast
from edm_fast import pictures
from edm_fast.errors import UserError
from edm_fast.sampling import arrange, images, to_uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_truncated_not_rounded(channels):
    values = torch.tensor([-5.0, -1.0, -1 + 1.9 / 127.5, 0.0, 0.99, 1.0, 5.0], dtype=torch.float64)
    x = values.expand(1, channels, 1, 7)
    assert to_uint8(x).shape == (1, 1, 7, channels)
    assert to_uint8(x)[0, 0, :, -1].tolist() == [0, 0, 2, 128, 254, 255, 255]


def test_names():
    assert images.image_name(42) == "000042.png"
    assert images.image_name(1042, subdirs=True) == "001000/001042.png"
    assert images.image_name(12345678, subdirs=True) == "12345000/12345678.png"


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_round_trip(tmp_path, channels, mode):
    pixels = np.random.default_rng(0).integers(0, 256, [5, 4, channels], dtype=np.uint8)
    path = tmp_path / "deep" / "x.png"
    images.save_png(path, pixels, made_with="abc")
    np.testing.assert_array_equal(images.read_png(path), pixels)
    assert PIL.Image.open(path).mode == mode
    assert images.stored(path.read_bytes) == ("abc", True)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_what_other_files_have_stored(tmp_path):
    PIL.Image.new("L", (2, 2)).save(tmp_path / "y.png")
    plain = (tmp_path / "y.png").read_bytes()
    ours = pictures.encode_png(np.zeros([2, 2], np.uint8), "abc")
    assert [images.stored(lambda data=data: data) for data in (b"nonsense", plain, ours[:-30])] == [
        ("", False),
        ("", True),
        ("abc", False),
    ]


@given(st.integers(1, 2000))
def test_grid_shape(n):
    rows, columns = images.grid_shape(n)
    assert rows <= columns <= 2 * rows + (n < 3)
    assert (rows - 1) * columns < n <= rows * columns


def test_arrange():
    tiles = [np.full([2, 3, 1], i, dtype=np.uint8) for i in range(5)]
    picture = arrange(tiles)
    assert picture.shape == (4, 9, 1)
    assert picture[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
    with pytest.raises(UserError):
        arrange([])
    with pytest.raises(UserError):
        arrange([tiles[0], tiles[0][:1]])


def test_a_grid_of_what_a_sampler_returns(tmp_path):
    x = torch.linspace(-1.2, 1.2, 6 * 3 * 4 * 4, dtype=torch.float64).reshape(6, 3, 4, 4)
    np.testing.assert_array_equal(arrange(x), arrange(list(to_uint8(x))))
    edm_fast.save_grid(tmp_path / "grid.png", x.float().requires_grad_())
    assert PIL.Image.open(tmp_path / "grid.png").size == (12, 8)
    np.testing.assert_array_equal(arrange(x.to(torch.bfloat16))[:4, :4], to_uint8(x.to(torch.bfloat16))[0])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 4, 4),
        torch.zeros(2, 2, 4, 4),
        torch.zeros(2, 4, 4, 3),
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        torch.full((2, 3, 4, 4), float("nan")),
        torch.zeros(0, 3, 4, 4),
        [torch.zeros(3, 4, 4)],
        [np.zeros([4, 4, 3])],
        np.zeros([2, 3, 4, 4], dtype=np.uint8),
        "images",
    ],
)
def test_what_makes_no_grid(tmp_path, images):
    with pytest.raises(UserError, match="images") as caught:
        edm_fast.save_grid(tmp_path / "grid.png", images)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["grid.jpg", "grid", "grid.png.txt"])
def test_a_grid_is_a_png(tmp_path, name):
    with pytest.raises(UserError, match=r"ends in \.png"):
        edm_fast.save_grid(tmp_path / name, torch.zeros(1, 1, 4, 4))
    assert not list(tmp_path.iterdir())
