"""What edm-fast generate writes about all images together: a page, and an animation. The grid: test_generate.py."""

import base64

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from edm_fast import checkpoint, use_backend
from edm_fast.cli import main
from edm_fast.sampling import sample, sample_seeds, seed_inputs, to_uint8
from helpers import pages
from helpers.tiny_networks import tiny, tiny_checkpoint


@pytest.fixture(autouse=True)
def reference():
    with use_backend("reference"):
        yield


def succeed(*args):
    result = CliRunner().invoke(main, ["generate", "--device=cpu", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_page(tmp_path):
    network, page, out = tiny_checkpoint(tmp_path, "<script>", label_dim=4), tmp_path / "a/<b>.html", tmp_path / "out"
    options = (f"--network={network}", f"--outdir={out}", "--steps=2", "--skip-existing")
    succeed(*options, "--seeds=1")
    output = succeed(*options, "--seeds=0-2,1", "--batch=2", f"--html={page}")
    text = page.read_text()
    for seed, idx in enumerate(seed_inputs(tiny(label_dim=4), range(3))[1].argmax(1).tolist()):
        source = base64.b64encode((out / f"{seed:06d}.png").read_bytes()).decode()
        assert f'base64,{source}" width="96" height="96" alt="seed {seed}, class {idx}"' in text
    assert "3 images of &lt;script&gt;.safetensors" in text and "<script>" not in text
    assert "<dt>num_steps</dt><dd>2</dd>" in text and "<dt>batch</dt><dd>2</dd>" in text
    line = output.splitlines()[-1].rpartition(":")[0]
    assert line in text and line.endswith("3 evaluations per image, 1 kept from before") and "images/s" in line
    pages.check_text(page)
    assert "will be replaced" in succeed(*options[:-1], "--seeds=0", "--class=3", f"--html={page}")
    assert 'alt="seed 0, class 3"' in page.read_text()
    pages.check_in_a_browser(page, tmp_path)


@pytest.mark.parametrize("changes", [{"img_channels": 1}, {"label_dim": 4}])
def test_trajectory(changes, tmp_path):
    """The denoised images after each step, then those that were written."""
    network, film = tiny_checkpoint(tmp_path, **changes), tmp_path / "film.gif"
    options = (f"--network={network}", f"--outdir={tmp_path / 'out'}", "--seeds=0-2", "--batch=2")
    succeed(*options, "--levels=40,3,0.5,0.1", f"--trajectory={film}", f"--html={tmp_path / 'page.html'}")
    assert ('alt="seed 2"' in (tmp_path / "page.html").read_text()) == ("label_dim" not in changes)
    frames = []
    watch = {"levels": [40, 3, 0.5, 0.1], "callback": lambda i, sigma, x, D: frames.append(to_uint8(D))}
    sample_seeds(checkpoint.load(network), sample, [0, 1], **watch)
    written = [np.atleast_3d(np.asarray(PIL.Image.open(tmp_path / f"out/{i:06d}.png"))) for i in (0, 1)]
    with PIL.Image.open(film) as animation:
        assert animation.n_frames == len(frames) + 1 == 4 and animation.info["loop"] == 0
        for i, want in enumerate([*frames, np.stack(written)]):
            animation.seek(i)
            shown = np.asarray(animation.convert("RGB")).astype(int)[:8, :16].reshape(8, 2, 8, 3).swapaxes(0, 1)
            # a frame has 256 colours; gray images need no more
            assert np.abs(shown - want).mean() <= (0 if want.shape[-1] == 1 else 8)
