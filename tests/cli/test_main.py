"""The program as a whole: verbs, one-line errors, exit codes."""

import errno
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner

from edm_fast import cli
from edm_fast.errors import UserError, UserOSError


def test_only_verbs_that_exist_are_listed():
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    assert "generate" in result.output
    listed = cli.main.list_commands(None)
    assert set(listed) <= set(cli.VERBS)
    for verb in listed:
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
    assert result.exit_code == 0 and cli.version() in result.output


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


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(cli.main, "get_command", lambda ctx, name: click.Command(name, callback=fail))
    assert isinstance(CliRunner().invoke(cli.main, ["x"]).exception, ZeroDivisionError)
