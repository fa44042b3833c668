"""Golden options of EDM2's published programs: parsed, refused, and what follows from them, by their counterparts."""

import inspect
import json
import re
from pathlib import Path

import click
import pytest
from click.core import ParameterSource

from edm_fast import cli
from edm_fast.cli import _edm2_presets, _edm2_training
from edm_fast.cli._options import parse_images
from edm_fast.cli._sampler import sampler_for
from edm_fast.cli._widths import parse_widths
from edm_fast.errors import UserError
from edm_fast.networks import preset
from edm_fast.sampling import edm2_sampler
from edm_fast.training import images_of, stored_averages
from helpers import golden_cases as g
from helpers import tiny_training as tiny
from helpers.command_line import refused, run

PAGE = (Path(__file__).parents[2] / "docs/migrate.md").read_text(encoding="utf-8")
VERBS = {
    "train_edm2": ("train", "--arch=edm2"),
    "generate_images": ("generate",),
    "reconstruct_phema": ("ema", "reconstruct"),
    "calculate_metrics calc": ("fid", "calc"),
    "calculate_metrics ref": ("fid", "ref"),
    "dataset_tool convert": ("dataset", "convert"),
}
NAMES = {  # of parameters that are called otherwise here
    "channels": "cbase",
    "net": "network_pkl",
    "in_dir": "indir",
    "out_dir": "outdir",
    "in_prefix": "prefix",
    "in_std": "instd",
    "out_std": "stds",
    "out_kimg": "kimg",
    "out_prefix": "outprefix",
    "num_images": "num_expected",
    "max_batch_size": dict.fromkeys(["reconstruct_phema", "calculate_metrics calc", "calculate_metrics ref"], "batch"),
    "image_path": {"calculate_metrics ref": "dataset_path"},
}
ELSEWHERE = {"metrics", "num_workers"}  # FID alone; images are read by the process itself
# defaults that differ, and are said in the table of docs/migrate.md
OURS = {"generate_images": {"seeds": [*range(64)], "max_batch_size": 64}}


def cases(key, where=lambda case: True):
    found = []
    for entry in g.edm2("cli", lambda entry: key in entry["config"]):
        found += [pytest.param(entry, c, id=f"{key}{i}") for i, c in enumerate(entry["config"][key]) if where(c)]
    return found


def command_of(words):
    found = cli.main
    for word in (word for word in words if not word.startswith("-")):
        found = found.get_command(click.Context(found), word)
    return found


def context(command, args):
    """What the command line makes of published arguments."""
    words = VERBS[command]
    return command_of(words).make_context(words[-1], [*(word for word in words if word.startswith("-")), *args])


def settled(ctx):
    """The parameters of train, those of the preset included."""
    typed = {name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    return _edm2_training.checked(ctx.params, typed)


def flags(command):
    """(published flags, ours) of each row in a program's table on the page."""
    table = PAGE.partition(f"### {command.split()[0]}.py")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`-.*?) \|(.*?)\|", table, re.M)
    return [tuple(re.findall(r"`(-[^`]+)`", cell) for cell in row) for row in rows]


@pytest.mark.parametrize("command", [*VERBS, "calculate_metrics gen"])
def test_the_page_names_every_flag_and_its_counterpart(command):
    entry = g.index("edm2.json")["edm2/cli/commands"]
    used = {
        arg.partition("=")[0]
        for case in (*entry["config"]["parsed"], *entry["config"]["rejected"])
        if case["command"] == command
        for arg in case["args"]
    }
    table = flags(command)
    assert used - {flag for published, _ in table for flag in published} == set()
    known = {flag for words in VERBS.values() for param in command_of(words).params for flag in param.opts}
    for published, ours in table:
        assert {flag.partition("=")[0] for flag in ours} <= known, f"{published}: {ours}"


@pytest.mark.parametrize(("entry", "case"), cases("parsed", lambda case: case["command"] in VERBS))
def test_golden_edm2_parsed(entry, case):
    command, want = case["command"], {k: v for k, v in case["params"].items() if k not in ELSEWHERE}
    args = [arg for arg in case["args"] if not arg.startswith("--metrics")]
    ctx = context(command, args)
    got = settled(ctx) if command == "train_edm2" else {**OURS.get(command, {}), **ctx.params}
    typed = {name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    for name, value in want.items():
        ours = NAMES.get(name, name)
        ours = ours.get(command, name) if isinstance(ours, dict) else ours
        if command == "train_edm2" and name in (*_edm2_training.INTERVALS, "duration"):
            continue  # in other units: test_golden_edm2_settings
        if value is None and ours not in typed:
            assert ctx.params[ours] is None or command == "train_edm2", name  # by preset
        elif ours not in typed and ours in OURS.get(command, {}):
            assert ctx.params[ours] == OURS[command][ours]
        elif name in ("num_steps", "sigma_min", "sigma_max", "rho") and ours not in typed:
            assert of_sampler(ctx.params)[name] == value
        elif name == "batch_gpu":
            assert (got[ours] or 0) == value
        else:
            same = pytest.approx(value, rel=entry["tolerance"]["floats_rtol"]) if isinstance(value, float) else value
            same = pytest.approx(value, rel=1e-12) if isinstance(value, list) and name != "seeds" else same
            assert (list(got[ours]) if isinstance(value, list) else got[ours]) == same, name


def of_sampler(params):
    """What the sampler of EDM2's networks runs with."""
    net = preset("edm2-img64-xs", model_channels=8)
    sampler, kwargs = sampler_for({**params, "explicit": set()}, net)
    assert sampler is edm2_sampler
    solver = edm2_sampler.solver(net, None, **kwargs)
    defaults = {name: param.default for name, param in inspect.signature(edm2_sampler).parameters.items()}
    found = {**defaults, **kwargs, "sigma_max": solver.levels[0], "sigma_min": solver.levels[-2]}
    names = ("num_steps", "sigma_min", "sigma_max", "rho")
    return {name: pytest.approx(found[name], rel=1e-6) for name in names}


ALLOWED = {"--channels=32"}  # tiny networks; the published program stops at 64


@pytest.mark.parametrize(("entry", "case"), cases("rejected"))
def test_golden_edm2_rejected(entry, case):
    if ALLOWED & {*case["args"]}:
        assert context(case["command"], case["args"]).params["cbase"] == 32
        return
    refused(*VERBS[case["command"]], *case["args"])


@pytest.mark.parametrize(("entry", "case"), cases("generate_calls"))
def test_golden_edm2_generate_calls(entry, case):
    ctx = context("generate_images", ["--outdir=out", *case["args"]])
    options = _edm2_presets.settled({**ctx.params, "explicit": set()})
    want = case["call"]
    for ours, name in (("network_pkl", "net"), ("gnet", "gnet")):
        assert (options[ours] and options[ours].rpartition("/")[2]) == want[name]
    assert (1 if options["guidance"] is None else options["guidance"]) == want["guidance"]
    assert {name: options[name] for name in ("S_churn", "S_min", "S_max", "S_noise", "class_idx", "subdirs")} == {
        name: want[name] for name in ("S_churn", "S_min", "S_max", "S_noise", "class_idx", "subdirs")
    }


@pytest.mark.parametrize(("entry", "case"), cases("generate_errors"))
def test_golden_edm2_generate_errors(entry, case, tmp_path):
    args = [arg.replace("a.pkl", str(g.path(entry, "edm2/checkpoints/rgb_cond.pkl"))) for arg in case["args"]]
    args += [f"--outdir={tmp_path / 'out'}", "--device=cpu"]
    if case["args"]:
        refused("generate", *args)
    else:  # without a network it is the demo model here
        assert context("generate_images", args).params["network_pkl"] is None


def test_presets_of_latents_are_refused_before_a_download(tmp_path):
    line = refused("generate", "--preset=edm2-img512-s-fid", f"--outdir={tmp_path / 'out'}")
    assert "--preset=edm2-img512-s-fid makes latents" in line and "edm2-img512-s-2147483-0.130.pkl" in line


@pytest.mark.parametrize(("entry", "case"), cases("image_counts"))
def test_golden_edm2_image_counts(entry, case):
    text, number = case
    assert parse_images(str(text)) == number


@pytest.mark.parametrize("text", ["2.5Ki", "1K", "-1", "", "Mi"])
def test_no_image_counts(text):
    with pytest.raises(UserError):
        parse_images(text)


@pytest.mark.parametrize(("entry", "case"), cases("std_lists"))
def test_golden_edm2_std_lists(entry, case):
    if "error" in case:
        with pytest.raises(UserError):
            parse_widths(case["text"])
    else:
        assert parse_widths(case["text"]) == pytest.approx(case["values"], rel=entry["tolerance"]["floats_rtol"])


@pytest.mark.parametrize(("entry", "case"), cases("kimg_to_nimg"))
def test_golden_edm2_times(entry, case):
    kimg, nimg = case
    assert images_of(kimg) == nimg


@pytest.mark.parametrize(("entry", "case"), cases("input_listing"))
def test_golden_edm2_input_listing(entry, case, tmp_path):
    (config,) = (entry["config"] for entry in g.edm2("cli"))
    for name in {name for other in config["input_listing"] for name, _, _ in other["found"]}:
        (tmp_path / name).touch()
    for name in ("network-snapshot-0000001.pkl", "training-state-0000001.pt", "x-1-0.pkl", "a-b-0.1.pkl"):
        (tmp_path / name).touch()
    found = stored_averages(tmp_path, case["kwargs"].get("in_prefix"), case["kwargs"].get("in_std"))
    assert [[one.path.name, one.nimg, one.std] for one in found] == case["found"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The stand-in data sets, in the current folder."""
    monkeypatch.chdir(tmp_path)
    tiny.write_latents(tmp_path / "img512-sd.zip", size=8)
    for name, channels, classes in (("img64", 3, 2), ("nolabels", 3, 0), ("gray", 1, 2)):
        tiny.write_dataset(tmp_path / f"{name}.zip", count=8, size=16, channels=channels, classes=classes)
    return tmp_path


@pytest.mark.parametrize(("entry", "case"), cases("train_options"))
def test_golden_edm2_settings(entry, case, folder):
    result = run("train", "--arch=edm2", "--device=cpu", *case["args"])
    assert result.exit_code == 0, result.output
    got, _ = json.JSONDecoder().raw_decode(result.output[result.output.index("{") :])
    want = case["options"]
    tick = round(got["kimg_per_tick"] * 1000)
    images = {"snapshot_nimg": got["snapshot_ticks"], "checkpoint_nimg": got["state_dump_ticks"]}
    found = {**got, **{name: ticks and ticks * tick for name, ticks in images.items()}}
    found |= {"total_nimg": round(got["total_kimg"] * 1000), "status_nimg": tick}
    if want["status_nimg"] is None:  # with nothing else to do, the end of the run is the one tick
        assert (found["snapshot_nimg"], found["status_nimg"]) == (None, found["total_nimg"])
        found["status_nimg"] = None
    rest = {k: v for k, v in want.items() if k not in ("encoder_kwargs", "lr_kwargs")}
    for name, value in rest.items():
        if isinstance(value, dict):  # and more, such as what was found in the data set
            assert {key: found[name][key] for key in value} == value
        else:
            assert found[name] == value, name
    assert got["lr_kwargs"] == {
        "ref_lr": want["lr_kwargs"]["ref_lr"],
        "ref_batches": want["lr_kwargs"]["ref_batches"],
        "rampup_Mimg": 10,
    }


@pytest.mark.parametrize(("entry", "case"), cases("train_errors"))
def test_golden_edm2_train_errors(entry, case, folder):
    args = ["train", "--arch=edm2", "--outdir=run", "-n", "--device=cpu", *case["args"]]
    if "--data=gray.zip" in case["args"]:  # gray images are welcome here
        assert run(*args).exit_code == 0
    else:
        refused(*args)


def test_intervals_are_those_of_ticks_or_of_images(folder):
    common = ["train", "--arch=edm2", "--outdir=run", "-n", "--device=cpu", "--data=img64.zip"]
    assert "--snap does not go with --status" in refused(*common, "--snap=2", "--status=64Ki")
    assert "common part of --status, --snapshot and --checkpoint, 1,024 images, is no multiple" in refused(
        *common, "--status=1Ki", "--snapshot=2Mi"
    )
    assert "--checkpoint needs --arch=edm2" in refused(*common, "--arch=ddpmpp", "--checkpoint=1Mi")
    result = run(*common, "--status=96Ki", "--snapshot=128Ki", "--checkpoint=0", "--duration=1Gi", "--batch=1Ki")
    assert "Ticks: every 32.768 kimg; a snapshot every 4, a training state every 10 minutes" in result.output
    assert "1.07374e+06 kimg in 1,048,576 steps of 1,024 images" in result.output
