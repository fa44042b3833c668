"""The program as a whole: verbs, one-line errors, exit codes."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import edm_fast
from edm_fast import cli
from edm_fast.errors import UserError, UserOSError
from helpers import tiny_detector
from helpers.tiny_networks import tiny_checkpoint


def test_every_verb_is_listed_and_exists():
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    for verb in cli.main.list_commands(None):
        assert verb in result.output
        assert isinstance(cli.main.get_command(None, verb), click.Command)


def test_help_imports_no_torch():
    code = (
        "import sys; from edm_fast.cli import main; main(['-h'], standalone_mode=False); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("False\n"), result.stderr


@pytest.mark.parametrize("args", [["nope"], ["generate", "--nope"], ["--nope"], ["generate", "--outdir"]])
def test_usage_errors_are_one_line(args):
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_no_verb_shows_the_verbs():
    result = CliRunner().invoke(cli.main, [])
    assert result.exit_code == 2 and "generate" in result.stderr


def test_version():
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.exit_code == 0 and result.output == f"edm-fast, version {edm_fast.__version__}\n"


ERRORS = [
    (UserError("a\n b"), "a b"),
    (UserOSError("c"), "c"),
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    (FileNotFoundError(errno.ENOENT, "No such file", "x.png"), "x.png: No such file"),
    (MemoryError(), "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory."), "out of memory: CUDA out of memory."),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't"),
        "out of memory: [enforce fail] DefaultCPUAllocator: can't",
    ),
    (OSError(), "OSError"),
]


@pytest.mark.parametrize(("error", "line"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_a_user_can_cause(monkeypatch, error, line):
    def fail():
        raise error

    monkeypatch.setattr(cli.main, "get_command", lambda ctx, name: click.Command(name, callback=fail))
    result = CliRunner().invoke(cli.main, ["x"])
    assert (result.exit_code, result.stderr) == (2, f"Error: {line}\n")


def test_interrupted(monkeypatch):
    def fail():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.main, "get_command", lambda ctx, name: click.Command(name, callback=fail))
    result = CliRunner().invoke(cli.main, ["x"])
    assert result.exit_code == 130 and result.stderr.strip() == "Error: interrupted"


def program(command, redirect, **env):
    """(exit code, stdout, stderr) of a shell command in which $EDM stands for the program."""
    env = {**os.environ, "EDM": f"{sys.executable} -m edm_fast", "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(["sh", "-c", f"$EDM {command} {redirect}"], capture_output=True, env=env)
    return done.returncode, done.stdout, done.stderr


def test_closed_streams(tmp_path):
    """What a library prints on a closed stream must not end up in the file that is opened next."""
    options = f"--outdir={tmp_path}/out --grid={tmp_path}/grid.png --seeds=0,1 --steps=2 --device=cpu"
    assert program(f"generate --network={tiny_checkpoint(tmp_path)} {options}", "<&- >&- 2>&-") == (0, b"", b"")
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["000000.png", "000001.png", "grid.png"]
    for redirect in ("2>&-", ">&-"):
        assert program("nope", redirect)[0] == 2
        code, _, err = program("--help", redirect)
        assert (code, err) == (0, b"")


def test_undecodable_paths(tmp_path):
    """A Latin-1 name, on an ASCII terminal."""
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/b\xe9")
    os.mkdir(latin)
    images = Path(latin, "images")
    images.mkdir()
    for i in range(2):
        PIL.Image.new("RGB", (8, 8), (i, 0, 0)).save(images / f"{i}.png")
    network = tiny_checkpoint(Path(latin))
    tiny_detector.save(tmp_path / "detector.pt")
    detector = shutil.move(tmp_path / "detector.pt", Path(latin, "detector.pt"))
    commands = [
        ["generate", f"--network={network}", f"--outdir={latin}/out", "--seeds=0", "--steps=2", "--device=cpu"],
        ["convert", network, f"{latin}/net.pkl"],
        ["convert", network, f"{latin}/folder"],
        ["convert", "--inspect", f"{latin}/folder"],
        ["dataset", f"--source={images}", f"--dest={latin}/set.zip"],
        ["dataset", "check", f"{latin}/set.zip"],
        ["fid", "ref", f"--data={images}", f"--dest={latin}/ref.npz", f"--detector={detector}", "--device=cpu"],
        ["fid", "calc", f"--images={images}", f"--ref={latin}/ref.npz", f"--detector={detector}", "--num=2"],
        ["fid", "calc", f"--images={latin}", f"--ref={latin}/none.npz"],
    ]
    code = "import sys, json; from edm_fast.cli import main\nfor args in json.load(sys.stdin):\n"
    code += "    try: main(args)\n    except SystemExit as end: print('exit', end.code)\n"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(commands).encode(), env=env, capture_output=True)
    ends = [line for line in done.stdout.decode("ascii").splitlines() if line.startswith("exit")]
    assert ends == ["exit 0"] * 8 + ["exit 2"], done.stderr.decode(errors="replace")
    assert rb"b\udce9" in done.stdout and b"Traceback" not in done.stderr


def test_full_and_broken_output(tmp_path):
    for redirect in (">/dev/full", "2>/dev/full >/dev/full"):
        code, _, err = program("--help", redirect)
        assert code == 2 and b"Traceback" not in err and b"Exception" not in err
    assert program("--help", "2>/dev/null | true") == (0, b"", b"")


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(cli.main, "get_command", lambda ctx, name: click.Command(name, callback=fail))
    assert isinstance(CliRunner().invoke(cli.main, ["x"]).exception, ZeroDivisionError)
