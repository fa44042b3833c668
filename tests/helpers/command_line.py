"""The command line in this process."""

from click.testing import CliRunner

from edm_fast import cli


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def refused(*args):
    """The one line of an error that the user made."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr
