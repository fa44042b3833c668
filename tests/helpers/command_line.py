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


def arguments(command, options):
    """The command line that gives a command these parameters."""
    flags = {param.name: param.opts[0] for param in command.params}
    for name, value in options.items():
        if value is True:
            yield flags[name]
        elif value is not None and value is not False:
            yield f"{flags[name]}={','.join(map(str, value)) if isinstance(value, list) else value}"
