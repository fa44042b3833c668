"""The study of precisions, in miniature."""

import functools

import pytest

from edm_fast import native
from edm_fast.evaluation import accuracy
from edm_fast.studies import precision
from helpers.pages import check_in_a_browser
from helpers.small_studies import killed_and_resumed


@pytest.mark.skipif(native.cpu_reason() is not None, reason="needs the compiled part")
def test_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "converged", functools.partial(accuracy.converged, steps=20))
    options = ("--seeds=0,1", "--steps=3", "--above=1000")
    out, rows = killed_and_resumed(monkeypatch, tmp_path, "precision", *options, img_channels=1)
    found = {(row["precision"], row["above"]): row for row in rows}
    assert all("reason" not in row and len(row["errors"]) == 2 for row in rows)
    means = [found[name, 0]["mean"] for name in ("exact", "bf16", "plain bfloat16", "256 steps")]
    assert means == sorted(means) and means[0] < 1e-3 * means[3]
    # above every level that is evaluated nothing is left of it
    assert found["plain bfloat16", 1000]["errors"] == found["exact", 0]["errors"]
    check_in_a_browser(out / "precision.html", tmp_path)
