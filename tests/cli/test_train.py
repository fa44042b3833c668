"""edm-fast train: run folders, resuming, and one line for everything that can be wrong."""

import errno
import json
import os
import subprocess
import sys

import pytest
import tiny_training as tiny
from click.testing import CliRunner

import edm_fast
from edm_fast.cli import main, train

TINY = ["--cbase=4", "--cres=1", "--num-blocks=1", "--batch=20", "--tick=1", "--device=cpu", "--augment=0"]


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / "digits.zip")


def invoke(*args, **kwargs):
    return CliRunner().invoke(main, ["train", *map(str, args)], **kwargs)


def fails(*args):
    """The single line on stderr of a command that must fail."""
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.output
    return result.stderr


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_run_folder_holds_everything(tmp_path, data):
    out = tmp_path / "runs"
    result = invoke(
        f"--outdir={out}", f"--data={data}", "--cond=1", "--duration=0.001", "--preview=4", "--seed=1", *TINY
    )
    assert result.exit_code == 0, result.output
    name = "00000-digits-cond-ddpmpp-edm-gpus1-batch20-fp32"
    assert files(out / name) == [
        "log.txt",
        "network-snapshot-000000.safetensors",
        "network-snapshot-000001.safetensors",
        "preview-000000.png",
        "preview-000001.png",
        "stats.jsonl",
        "training-state-000001.pt",
        "training_options.json",
    ]
    found, _, rest = result.stdout.partition("\n")
    assert found == "12 images of 4x4 gray; labels: dataset.json, 3 classes"
    assert (out / name / "log.txt").read_text() == rest
    options = json.loads((out / name / "training_options.json").read_text())
    assert options["run_dir"] == str(out / name) and options["seed"] == 1 and options["total_kimg"] == 1
    assert (out / name / "training_options.json").read_text().startswith('{\n  "')
    net = edm_fast.load(out / name / "network-snapshot-000001.safetensors")
    assert (net.img_resolution, net.img_channels, net.label_dim) == (4, 1, 3)


def test_snapshots_as_pkl_and_transfer(tmp_path, data):
    out = tmp_path / "a"
    common = [f"--data={data}", "--nosubdir", "--duration=0.001", "--preview=0", *TINY]
    assert invoke(f"--outdir={out}", "--snapshot-format=pkl", *common).exit_code == 0
    snapshot = out / "network-snapshot-000001.pkl"
    assert edm_fast.load(snapshot).img_resolution == 4
    result = invoke(f"--outdir={tmp_path / 'b'}", f"--transfer={snapshot}", *common)
    assert result.exit_code == 0 and f"Loading weights from {snapshot}" in result.stdout


def test_resume_auto_takes_the_newest_run_of_that_name(tmp_path, data):
    out = tmp_path / "runs"
    args = [f"--outdir={out}", f"--data={data}", "--preview=0", "--dump=1", *TINY]
    assert invoke(*args, "--duration=0.001", "--resume=auto").exit_code == 0  # nothing there yet
    assert invoke(*args, "--duration=0.001", "--desc=other").exit_code == 0
    result = invoke(*args, "--duration=0.002", "--resume=auto")
    assert result.exit_code == 0, result.output
    base = "digits-uncond-ddpmpp-edm-gpus1-batch20-fp32"
    assert sorted(p.name for p in out.iterdir()) == [f"00000-{base}", f"00001-{base}-other"]
    state = out / f"00000-{base}" / "training-state-000001.pt"
    assert f"Resuming from {state}" in result.stdout
    options = json.loads((out / f"00000-{base}" / "training_options.json").read_text())
    first = json.loads((out / f"00000-{base}" / "training_options.json").read_text())["seed"]
    assert options["resume_state_dump"] == str(state) and options["seed"] == first
    assert (out / f"00000-{base}" / "training-state-000002.pt").exists()
    again = invoke(*args, "--duration=0.002", "--resume=" + str(state))  # by name: a folder of its own
    assert again.exit_code == 0
    assert (out / f"00002-{base}" / "training-state-000002.pt").exists()


def test_resume_auto_clears_only_its_own_leftovers(tmp_path, data):
    """With --nosubdir the folder can hold other programs' files."""
    other = [".config.tmp", ".a.png.xyz.tmp", "b.tmp"]
    own = [".training-state-000001.pt.x.tmp", ".network-snapshot-000001.safetensors.x.tmp", ".preview-000001.png.x.tmp"]
    for name in (*other, *own, ".stats.jsonl.x.tmp", ".training_options.json.x.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.tmp").mkdir()
    train.prepare_auto(str(tmp_path))
    assert files(tmp_path) == sorted([*other, data.name])
    assert (tmp_path / ".folder.tmp").is_dir()


def test_numbers_of_run_folders(tmp_path):
    for name in ("00003-old", "12", "notarun", "7-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "00099-file").write_text("")
    assert train.pick_run_dir(str(tmp_path), "new", nosubdir=False, auto=False) == str(tmp_path / "00013-new")
    assert train.pick_run_dir(str(tmp_path / "none"), "n", False, False) == str(tmp_path / "none" / "00000-n")
    assert train.pick_run_dir(str(tmp_path), "old", False, True) == str(tmp_path / "00003-old")
    assert train.pick_run_dir(str(tmp_path), "new", True, True) == str(tmp_path)


def test_random_seeds_differ(tmp_path, data):
    seeds = set()
    for _ in range(3):
        result = invoke("--outdir=o", f"--data={data}", "--dry-run", *TINY)
        seeds.add(json.JSONDecoder().raw_decode(result.output[result.output.index("{") :])[0]["seed"])
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_bad_input(tmp_path, data):
    bare = tiny.write_dataset(tmp_path / "bare.zip", classes=0)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(data.read_bytes()[:300])
    wrong_name = tmp_path / "state.pt"
    wrong_name.write_bytes(b"")
    junk = tmp_path / "training-state-000001.pt"
    junk.write_bytes(b"junk")
    out = f"--outdir={tmp_path / 'out'}"
    source = f"--data={data}"
    assert "does not exist" in fails(out, f"--data={tmp_path / 'none.zip'}", *TINY)
    assert "not a readable zip" in fails(out, f"--data={broken}", *TINY)
    assert "needs labels" in fails(out, f"--data={bare}", "--cond=1", *TINY)
    assert "training-state-<digits>.pt" in fails(out, source, f"--resume={wrong_name}", *TINY)
    assert "training-state-<digits>.pt" in fails(out, source, f"--resume={tmp_path / 'training-state-5.pt'}", *TINY)
    assert "cannot be used together" in fails(out, source, "--resume=auto", "--transfer=x.pkl", *TINY)
    assert "--device" in fails(out, source, *TINY, "--device=toaster")
    assert "seed" in fails(out, source, "--seed=many", *TINY)
    assert not (tmp_path / "out").exists()
    fails(out, source, f"--resume={junk}", "--nosubdir", *TINY)
    fails(out, source, f"--transfer={tmp_path / 'none.pkl'}", "--nosubdir", *TINY)
    assert "batch size 20" in fails(out, source, "--batch-gpu=3", "--nosubdir", *TINY)
    assert not any(name.endswith((".pt", ".safetensors", ".tmp")) for name in files(tmp_path / "out"))


def test_image_of_another_size(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (4, 4)).save(folder / "a.png")
    Image.new("L", (6, 6)).save(folder / "b.png")
    line = fails(f"--outdir={tmp_path / 'out'}", f"--data={folder}", *TINY)
    assert "b.png" in line and "[1, 6, 6]" in line


def test_output_folder_that_cannot_be_made(tmp_path, data):
    (tmp_path / "file").write_text("")
    line = fails(f"--outdir={tmp_path / 'file'}", f"--data={data}", *TINY)
    assert "cannot write to" in line


def test_disk_full_leaves_nothing_half_written(tmp_path, data, monkeypatch):
    """The second dump meets a full disk: one line, and the files before it are whole."""
    from edm_fast.training import _state

    written = []
    real = _state.torch.save

    def save(value, file):
        written.append(1)
        if len(written) > 1:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(value, file)

    monkeypatch.setattr(_state.torch, "save", save)
    out = tmp_path / "out"
    args = [f"--outdir={out}", f"--data={data}", "--nosubdir", "--dump=1", "--preview=0", "--duration=0.003", *TINY]
    assert "No space left" in fails(*args)
    assert [name for name in files(out) if name.startswith((".", "training-state"))] == ["training-state-000001.pt"]
    assert "No space left" in (out / "log.txt").read_text()
    monkeypatch.undo()
    result = invoke(*args, "--resume=auto")
    assert result.exit_code == 0 and "training-state-000001.pt" in result.stdout


def test_two_processes_share_seed_folder_and_state(tmp_path, data):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "edm_fast"]
    args = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", "--preview=2", "--dump=1", "--resume=auto", *TINY]
    for kimg in (1, 2):
        done = subprocess.run(
            [*command, "train", *args, f"--duration={kimg / 1000}"], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Done.") == 1  # rank 0 speaks for all
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name == "00000-digits-uncond-ddpmpp-edm-gpus2-batch20-fp32"
    assert "training-state-000001.pt" in done.stdout and "random numbers start anew" not in done.stdout
    assert [name for name in files(run_dir) if name.startswith("training-state")] == [
        "training-state-000001.pt",
        "training-state-000002.pt",
    ]
