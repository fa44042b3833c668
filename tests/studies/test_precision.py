"""The study of precisions, in miniature."""

import pytest
import torch

from edm_fast import native
from helpers.pages import check_in_a_browser
from helpers.small_studies import killed_and_resumed


@pytest.mark.skipif(native.cpu_reason() is not None, reason="needs the compiled part")
def test_precision(tmp_path, monkeypatch):
    options = ("--seeds=0,1", "--steps=3", "--above=2,1000")
    out, rows = killed_and_resumed(monkeypatch, tmp_path, "precision", *options, img_channels=1)
    found = {(row["precision"], row["above"]): row for row in rows}
    assert all("reason" not in row and len(row["errors"]) == 2 for row in rows)
    assert found["exact", 0]["worst"] < 0.01 < found["plain bfloat16", 0]["worst"]
    # above every level that is evaluated nothing is left of it
    assert found["plain bfloat16", 1000]["errors"] == found["exact", 0]["errors"]
    assert found["bf16", 2]["mean"] < found["bf16", 0]["mean"] < found["256 steps", 0]["mean"]
    check_in_a_browser(out / "precision.html", tmp_path)
    assert torch.is_grad_enabled()
