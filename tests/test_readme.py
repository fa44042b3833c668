"""README.md's Python runs as pasted, on a CPU, in an empty folder."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from edm_fast import native, use_backend

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_the_first_python_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = {"__name__": "__main__"}
    with use_backend("auto"):
        exec(compile(code, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert float(re.search(r"largest difference: (\S+)", out)[1]) < 1e-3
    assert "conv2d: " in out
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]
    with PIL.Image.open("digits.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (128, 128)
    # white strokes on black, in each of the 16 fields
    fields = pixels.reshape(4, 32, 4, 32).transpose(0, 2, 1, 3).reshape(16, -1)
    assert (fields.max(axis=1) > 200).all() and (np.median(fields, axis=1) < 20).all()
    assert names["images"].shape == (16, 1, 32, 32)
