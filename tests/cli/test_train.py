"""edm-fast train: run folders, resuming, and one line for everything that can be wrong."""

import errno
import io
import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import edm_fast
from edm_fast import training
from edm_fast.checkpoint import native
from edm_fast.cli import _console_log, main, train
from helpers import tiny_training as tiny

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
        "training-state-000001.safetensors",
        "training_options.json",
    ]
    assert ": 12 images of 4x4 gray; labels: dataset.json, 3 classes\n" in result.stdout
    assert (out / name / "log.txt").read_text() == result.stdout
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
    base = "digits-uncond-ddpmpp-edm-gpus1-batch20-fp32"
    first = json.loads((out / f"00000-{base}" / "training_options.json").read_text())["seed"]
    assert invoke(*args, "--duration=0.001", "--desc=other").exit_code == 0
    result = invoke(*args, "--duration=0.002", "--resume=auto")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == [f"00000-{base}", f"00001-{base}-other"]
    state = out / f"00000-{base}" / "training-state-000001.safetensors"
    assert f"Resuming from {state}" in result.stdout
    options = json.loads((out / f"00000-{base}" / "training_options.json").read_text())
    assert "resume_state_dump" not in options and options["seed"] == first  # of the whole run
    assert (out / f"00000-{base}" / "training-state-000002.safetensors").exists()
    again = invoke(*args, "--duration=0.002", "--resume=" + str(state))  # by name: a folder of its own
    assert again.exit_code == 0
    assert (out / f"00002-{base}" / "training-state-000002.safetensors").exists()


def test_resume_auto_clears_only_its_own_leftovers(tmp_path, data):
    """With --nosubdir the folder can hold other programs' files."""
    other = [".config.tmp", ".a.png.xyz.tmp", "b.tmp"]
    own = [
        ".training-state-000001.safetensors.x.tmp",
        ".network-snapshot-000001.safetensors.x.tmp",
        ".preview-000001.png.x.tmp",
    ]
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
    junk = tmp_path / "training-state-000001.safetensors"
    junk.write_bytes(b"junk")
    out = f"--outdir={tmp_path / 'out'}"
    source = f"--data={data}"
    assert "does not exist" in fails(out, f"--data={tmp_path / 'none.zip'}", *TINY)
    assert "not a readable zip" in fails(out, f"--data={broken}", *TINY)
    assert "needs labels" in fails(out, f"--data={bare}", "--cond=1", *TINY)
    assert "training-state-<digits>.safetensors" in fails(out, source, f"--resume={wrong_name}", *TINY)
    assert "training-state-<digits>.safetensors" in fails(
        out, source, f"--resume={tmp_path / 'training-state-5.safetensors'}", *TINY
    )
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
    written = []
    real = native.write_safetensors

    def write(file, tensors, metadata):
        written.append(native.STATE_KEY in metadata)  # a state, not a snapshot
        if written[-1] and sum(written) > 1:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, tensors, metadata)

    monkeypatch.setattr(native, "write_safetensors", write)
    out = tmp_path / "out"
    args = [f"--outdir={out}", f"--data={data}", "--nosubdir", "--dump=1", "--preview=0", "--duration=0.003", *TINY]
    assert "No space left" in fails(*args)
    assert [name for name in files(out) if name.startswith((".", "training-state"))] == [
        "training-state-000001.safetensors"
    ]
    assert "No space left" in (out / "log.txt").read_text()
    monkeypatch.undo()
    result = invoke(*args, "--resume=auto")
    assert result.exit_code == 0 and "training-state-000001.safetensors" in result.stdout


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
    assert "training-state-000001.safetensors" in done.stdout and "random numbers start anew" not in done.stdout
    assert [name for name in files(run_dir) if name.startswith("training-state")] == [
        "training-state-000001.safetensors",
        "training-state-000002.safetensors",
    ]


def runs(tmp_path, data, *more):
    """A run of two steps in a folder of its own; its files with what they hold."""
    args = [f"--outdir={tmp_path / 'run'}", f"--data={data}", "--nosubdir", "--preview=0", "--duration=0.001", *TINY]
    result = invoke(*args, *more)
    assert result.exit_code == 0, result.output
    return args, {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != "log.txt"}


def test_a_run_that_is_not_resumed_is_never_touched(tmp_path, data):
    args, before = runs(tmp_path, data)
    other = tmp_path / "other"
    other.mkdir()
    state = other / "training-state-000001.safetensors"
    state.write_bytes(before["training-state-000001.safetensors"])
    for more in ([], [f"--transfer={tmp_path / 'run' / 'network-snapshot-000001.safetensors'}"], [f"--resume={state}"]):
        assert "holds results of a run" in fails(*args, *more)
    (tmp_path / "run" / "training-state-000001.safetensors").write_bytes(b"damaged")
    assert "holds results of a run" in fails(*args, "--resume=auto")
    (tmp_path / "run" / "training-state-000001.safetensors").unlink()
    assert "holds results of a run" in fails(*args, "--resume=auto")
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != "log.txt"}
    del before["training-state-000001.safetensors"]
    assert before == after


def test_another_name_is_said(tmp_path, data):
    """A slip in --desc starts anew, as the first start of a job script must, but not without a word."""
    args = [f"--outdir={tmp_path / 'runs'}", f"--data={data}", "--preview=0", "--duration=0.001", *TINY]
    assert "Warning" not in invoke(*args, "--resume=auto", "--desc=long-run").stderr
    result = invoke(*args, "--resume=auto", "--desc=longrun")
    assert result.exit_code == 0 and result.stderr.count("\n") == 1
    assert "00001-digits-uncond" in result.stderr and "others there: 00000-digits-uncond" in result.stderr
    (tmp_path / "runs" / result.stderr.split()[9].split("/")[-1].replace("00001", "00007")).mkdir()  # a failed start
    result = invoke(*args, "--resume=auto", "--desc=longrun")
    assert "Resuming from" in result.stdout and "Warning" not in result.stderr


@pytest.mark.parametrize("name, code", [("SIGTERM", 0), ("SIGUSR1", 0), ("SIGHUP", 0), ("SIGINT", 130)])
def test_signals_end_with_a_state_and_a_line(tmp_path, data, monkeypatch, name, code):
    real, calls = training.EDMLoss.__call__, []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(getattr(signal, name))
        return real(*args, **kwargs)

    monkeypatch.setattr(training.EDMLoss, "__call__", call)
    args = [f"--outdir={tmp_path / 'run'}", f"--data={data}", "--nosubdir", "--preview=0", "--duration=0.001", *TINY]
    result = invoke(*args)
    assert result.exit_code == code and "Traceback" not in result.output
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("Stopped by"))
    assert "training-state-000000.safetensors" in line and "--resume=auto" in line and "Done." not in result.stdout
    assert line in (tmp_path / "run" / "log.txt").read_text()
    result = invoke(*args, "--resume=auto")
    assert result.exit_code == 0 and len(calls) == 50  # steps, each once


def test_every_option_has_its_default_in_the_help():
    context = click.Context(train.command, info_name="train", **train.command.context_settings)
    for option in train.command.params:
        name, text = option.get_help_record(context)
        assert "default:" in text or "required" in text, name


def test_the_console_says_in_short_what_runs(tmp_path, data):
    args, _ = runs(tmp_path, data)
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "{" not in text and "gpumem" not in text and "12 images of 4x4 gray; labels: not used" in text
    assert "attention at: nowhere but in the middle block, 4x4 (levels are 4; listed: 16)" in text
    assert "Length: 1 kimg in 50 steps of 20 images" in text
    tick = next(line for line in text.splitlines() if line.startswith("tick 0"))
    assert all(f" {word} " in tick for word in ("kimg", "sec/kimg", "cpumem", "loss", "lr", "img/s", "left"))


@pytest.mark.parametrize(
    "duration, batch, kimg, line",
    [
        ("0.0115", 20, 11.5, "11.5 kimg in 575 steps of 20 images"),
        ("0.0115", 200, 11.5, "11.5 kimg in 58 steps of 200 images (whole steps: 11.6 kimg)"),
        ("0.29", 1000, 290, "290 kimg in 290 steps of 1,000 images"),
        ("0.0001", 20, 1, "1 kimg in 50 steps of 20 images (the shortest length; --duration=0.0001 asks for less)"),
        ("0.002", 5000, 2, "2 kimg in 1 step of 5,000 images (whole steps: 5 kimg)"),
    ],
)
def test_lengths_to_the_image(tmp_path, data, duration, batch, kimg, line):
    args = ["--outdir=o", f"--data={data}", "--dry-run", f"--duration={duration}", "--ema=0.0005", *TINY]
    output = invoke(*args, f"--batch={batch}").stdout
    settings, _ = json.JSONDecoder().raw_decode(output[output.index("{") :])
    assert (settings["total_kimg"], settings["ema_halflife_kimg"]) == (kimg, 0.5)
    assert type(settings["total_kimg"]) is type(kimg) and f"Length: {line}\n" in output


@pytest.mark.parametrize(
    "size, channels, more, message",
    [
        (30, 3, ["--cres=1,1,1"], "the side 30 is not a power of two from 4 up, nor a multiple of 4 from 16 up"),
        (8, 3, ["--arch=adm", "--cres=1,1,1,1,1"], "multiple of 16"),
        (8, 4, ["--cres=1"], "4"),
        (4, 1, ["--cres=0"], "channel_mult"),
        (4, 1, ["--batch=20", "--batch-gpu=3"], "batch size 20"),
        (4, 1, ["--workers=-1"], "--workers"),
        (4, 1, ["--seed=-1"], "--seed"),
        (4, 1, ["--seed=4294967296"], "--seed"),
        (4, 1, ["--keep-states=0"], "--keep-states"),
        (4, 1, ["--dump-minutes=-1"], "--dump-minutes"),
        (4, 1, ["--dump=0"], "--dump"),
        (4, 1, ["--ls=0"], "--ls"),
        (4, 1, ["--lr=nan"], "--lr"),
        (4, 1, ["--desc=a/b"], "--desc=a/b has a slash"),
        (4, 1, ["--resume=."], "training-state-<digits>.safetensors"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_cannot_be_trained_is_said_before_anything_is_written(tmp_path, size, channels, more, message, dry):
    data = tiny.write_dataset(tmp_path / "d.zip", size=size, channels=channels)
    assert message in fails(f"--outdir={tmp_path / 'out'}", f"--data={data}", *TINY, *more, *dry)
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_square(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "images" / "a.png")
    assert "8x4" in fails(f"--outdir={tmp_path / 'out'}", f"--data={tmp_path / 'images'}", *TINY)


def test_no_loader_processes(tmp_path, data):
    runs(tmp_path, data, "--workers=0")


def test_transfer_from_another_network(tmp_path, data):
    args, _ = runs(tmp_path, data)
    snapshot = tmp_path / "run" / "network-snapshot-000001.safetensors"
    line = fails(*args, f"--outdir={tmp_path / 'b'}", f"--transfer={snapshot}", "--cbase=8")
    assert "has shape" in line


def test_one_process_to_a_folder(tmp_path, data):
    args, _ = runs(tmp_path, data)
    lock = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", lock, str(tmp_path / "run" / "log.txt")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert "another process is training in" in fails(*args, "--resume=auto")
        other.communicate(b"\n")
    assert invoke(*args, "--resume=auto").exit_code == 0


def test_the_log_may_fail_but_the_run_goes_on(capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tee = _console_log.Tee(sys.stdout, Full())
    tee.write("a\n")
    tee.write("b\n")
    tee.flush()
    assert capsys.readouterr().out == "The console is no longer copied to log.txt: No space left on device\na\nb\n"
