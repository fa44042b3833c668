"""The study of training configurations, in miniature."""

import pytest

from edm_fast.studies import design
from helpers.pages import check_in_a_browser
from helpers.small_studies import killed_and_resumed, run
from helpers.tiny_training import write_dataset


@pytest.fixture
def short(tmp_path):
    path = write_dataset(tmp_path / "data.zip", size=8)
    return (f"--data={path}", "--seconds=0.1", "--width=4", "--seeds=0,1")


def test_design(tmp_path, monkeypatch, short):
    """Trained in parts, killed between two configurations and between two parts, and resumed."""
    calls, loop = [], design.training_loop

    def killed(**settings):
        calls.append(settings)
        if len(calls) == seen + 1:
            raise KeyboardInterrupt
        return loop(**settings)

    args = ("design", *short, "--configs=F", f"--outdir={tmp_path / 'out'}")
    seen = -2
    monkeypatch.setattr(design, "training_loop", killed)
    for name, value in {"FIRST": 2, "STEPS": 2, "LEVELS": (0.1, 1.0)}.items():
        monkeypatch.setattr(design, name, value)
    out, rows = killed_and_resumed(monkeypatch, tmp_path, "design", *short, "--configs=A,F", points=1)
    assert [row["config"] for row in rows] == ["A", "F"] and all("reason" not in row for row in rows)
    before = len(calls)
    assert all("resume_state_dump" not in calls[0] and "resume_state_dump" in call for call in calls[1:2])
    networks = [call["network_kwargs"] for call in (calls[0], calls[-1])]
    assert [net["class_name"] for net in networks] == ["VPPrecond", "EDMPrecond"]
    assert [net["channel_mult"] for net in networks] == [[1, 2, 2, 2], [2, 2, 2]]
    assert [len(row["by_level"]) for row in rows] == [len(design.LEVELS)] * 2
    for row in rows:
        assert row["images"] > 0 and row["curve"][-1][0] == row["training_seconds"]
        assert (out / "design-runs" / row["config"] / "network.safetensors").exists()
        assert len(list((out / "design-runs" / row["config"]).glob("training-state-*.safetensors"))) == 1
    check_in_a_browser(out / "design.html", tmp_path)

    # stopped between two parts: the next run goes on with the first part's images
    seen = before + 1
    assert run(*args).exit_code == 130 and len(calls) == before + 2
    assert run(*args, "--resume").exit_code == 0
    assert "Resuming from" in (tmp_path / "out/design-runs/F/log.txt").read_text()
    assert calls[before + 1]["resume_state_dump"] == calls[before + 2]["resume_state_dump"]


@pytest.mark.parametrize(
    ("option", "message"),
    [("--configs=A,G", "configuration 'G'"), ("--arch=adm", "--arch is 'adm'"), ("--data=nothing.zip", "nothing.zip")],
)
def test_bad_input(tmp_path, option, message):
    result = run("design", option, f"--outdir={tmp_path / 'out'}")
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_the_demo_digits_at_half_their_size():
    images, classes = design.small_digits("heldout")
    assert images.shape == (1000, 16, 16) and sorted(set(classes.tolist())) == list(range(10))
