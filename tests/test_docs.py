"""README.md and the pages of docs/: their Python runs as pasted, on a CPU, in an empty folder; their commands exist."""

import re
import shlex
import sys
from pathlib import Path

import click
import numpy as np
import PIL.Image
import pytest

from edm_fast import native, use_backend
from edm_fast.cli import main
from helpers import peers
from helpers.hub_folder import Hub
from helpers.pages import check_site
from helpers.scripts import load

ROOT = Path(__file__).parents[1]
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"(?:^ {4}|`|\bm )(edm-fast|edm_fast) ([^`\n]*)", re.MULTILINE)
WITH_PYTHON = [name for name, text in PAGES.items() if PYTHON.search(text)]


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python(name, tmp_path, monkeypatch, capsys):
    """The blocks of a page one after the other, as a reader runs them."""
    if name == "interop.md":
        peers.expect("azula")
        peers.expect("diffusers")
    if name == "accelerate.md":
        peers.expect("diffusers")
    monkeypatch.chdir(tmp_path)
    if name == "checkpoints.md":
        Hub(tmp_path / "hub", monkeypatch)
    names = {"__name__": "__main__"}
    for number, code in enumerate(PYTHON.findall(PAGES[name])):
        with use_backend("auto"):
            exec(compile(code, f"{name}, block {number}", "exec"), names)
    if name == "README.md":
        out = capsys.readouterr().out
        assert float(re.search(r"largest difference: (\S+)", out)[1]) < 1e-3 and "conv2d: " in out
        with PIL.Image.open("digits.png") as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (128, 128)
        # white strokes on black, in each of the 16 fields
        fields = pixels.reshape(4, 32, 4, 32).transpose(0, 2, 1, 3).reshape(16, -1)
        assert (fields.max(axis=1) > 200).all() and (np.median(fields, axis=1) < 20).all()


def commands():
    for name, text in PAGES.items():
        text = re.sub("<!--.*?-->", "", text, flags=re.DOTALL)
        for _, line in COMMAND.findall(text):
            line = line.partition(" #")[0].partition('"')[0].rstrip(" \\")
            if line and "..." not in line and not line.startswith(("VERB", ";")):
                yield pytest.param(line, id=f"{name}: {line}")


@pytest.mark.parametrize("line", [*commands()])
def test_commands(line):
    """Verbs and options are those of the command line."""
    found, args = main, shlex.split(line)
    context = click.Context(found)
    while isinstance(found, click.Group) and args:
        published = args[0].startswith("--source")  # edm-fast dataset without a verb
        found = found.get_command(context, "convert" if published else args.pop(0))
        assert found is not None, line
        context = click.Context(found, parent=context)
    found.make_parser(context).parse_args(args)


def test_links_and_pages_exist():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) + re.findall(r'src="([^":]+)"', text):
            assert (folder / link).exists(), f"{name}: {link}"
        assert name == "README.md" or f"- {name}\n" in site, f"{name} is not in mkdocs.yml"


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_pictures_of_the_cpu_engine(tmp_path, monkeypatch):
    """Each is drawn, by the errors that the page tells of: rising with the outputs of a tile, far below bfloat16's."""
    draw = load(ROOT / "benchmarks/draw_engine.py")
    found = draw.relative_errors(channels=64, side=16)
    monkeypatch.setattr(draw, "relative_errors", lambda: found)
    monkeypatch.setattr(sys, "argv", ["draw_engine.py", f"--outdir={tmp_path}"])
    draw.main()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "docs").glob("*.svg")}
    assert found["direct"] < found["F(2x2)"] < found["F(4x4)"] < found["F(4x8)"] < found["PyTorch, bfloat16"] / 100
    for name in ("F(4x4)", "F(4x8)"):
        assert 0.5 < found[f"{name} in pairs"] / found[name] < 2


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("docs") / "site"
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))  # strict: a warning is an error
    return folder


def test_the_site_builds_without_a_warning(site):
    reference = (site / "reference/index.html").read_text(encoding="utf-8")
    for name in ("checkpoint.load", "plan.accelerate", "sampling.generate", "ops.conv2d.conv2d", "training.EDMLoss"):
        assert f'id="edm_fast.{name}"' in reference, name
    for page in site.rglob("*.html"):
        assert not re.search(r'<(?:script|link)[^>]*(?:src|href)="https?://', page.read_text(encoding="utf-8")), page


def test_the_site_on_a_phone(site, tmp_path):
    """No message on the console, nothing beside the screen, all pictures; the first page's bar and text are there."""
    pixels = np.asarray(check_site(site, tmp_path))
    bar, text = pixels[4, 8:300], pixels[64:440, 16:320]
    assert (bar == bar[0]).all() and bar[0, 2] > bar[0, 0] + 50  # one blue
    assert np.median(text) == 255 and 0.02 < (text < 128).all(axis=-1).mean() < 0.4
