"""edm-fast train --options: a run once more from the file in its folder, and files of the published programs."""

import json

import click
import pytest

from edm_fast.checkpoint import load_state_file
from edm_fast.cli import _edm2_training, main
from edm_fast.cli._training_file import read_settings
from edm_fast.cli._training_settings import training_settings
from helpers import golden_cases as g
from helpers import tiny_training as tiny
from helpers.command_line import refused, run

TINY = ["--cbase=4", "--cres=1", "--num-blocks=1", "--batch=20", "--tick=1", "--device=cpu"]
EDM2 = ["--arch=edm2", "--cbase=8", "--cres=1", "--num-blocks=1", "--batch=128", "--tick=1", "--device=cpu"]
FILE = "training_options.json"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with a data set."""
    monkeypatch.chdir(tmp_path)
    tiny.write_dataset(tmp_path / "digits.zip")
    return tmp_path


def train(*args):
    result = run("train", *args)
    assert result.exit_code == 0, result.output
    return result


def last(folder, name):
    return sorted(folder.glob(f"{name}-*"))[-1]


def assert_same_end(a, b):
    state, other = (load_state_file(last(folder, "training-state")) for folder in (a, b))
    tiny.same_state(state, other)
    snapshot, other = (last(folder, "network-snapshot") for folder in (a, b))
    assert snapshot.name == other.name and snapshot.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "args",
    [
        [*TINY, "--cond=1", "--duration=0.002", "--xflip=1", "--lr-rampup=0.001", "--precision=bf16"],
        [
            *TINY,
            "--duration=0.001",
            "--precond=ve",
            "--arch=ncsnpp",
            "--augment=0",
            "--snap=1",
        ],
        [*EDM2, f"--duration={2 / 1024}", "--ema-std=0.07,0.2", "--snap=1", "--seed=3"],
    ],
)
def test_a_run_repeats_to_the_bit(place, args):
    train("--outdir=first", "--data=digits.zip", "--preview=0", *args)
    (folder,) = (place / "first").iterdir()
    (place / "digits.zip").rename("moved.zip")
    name = folder.name.replace("digits", "moved") + "-again"
    beside = ["--data=moved.zip", "--desc=again", "--workers=0", "--device=cpu", "--preview=2"]
    train("--outdir=second", f"--options={folder / FILE}", *beside)
    assert_same_end(folder, place / "second" / name)
    assert list((place / "second" / name).glob("preview-*.png"))
    first, second = (json.loads((one / FILE).read_text()) for one in (folder, place / "second" / name))
    for found in (first, second):
        del found["run_dir"], found["preview_images"], found["data_loader_kwargs"], found["dataset_kwargs"]["path"]
    assert first == second


def test_the_file_tells_of_the_whole_run(place):
    """Of one that began from weights and was taken up again, too."""
    train("--outdir=a", "--data=digits.zip", "--nosubdir", "--duration=0.001", "--preview=0", *TINY)
    common = ["--nosubdir", "--preview=0", "--device=cpu"]
    begin = [*TINY, "--data=digits.zip", "--dump=1", *common]
    train("--outdir=b", "--duration=0.001", "--transfer=a/network-snapshot-000001.safetensors", *begin)
    seed = json.loads((place / "b" / FILE).read_text())["seed"]
    train("--outdir=b", "--duration=0.002", "--resume=auto", *begin)
    found = json.loads((place / "b" / FILE).read_text())
    assert (found["seed"], found["total_kimg"], found["ema_rampup_ratio"]) == (seed, 2, None)
    assert found["resume_pkl"] == "a/network-snapshot-000001.safetensors" and "resume_state_dump" not in found
    repeat = train("--outdir=c", f"--options=b/{FILE}", *common)
    assert "Loading weights from a/" in repeat.stdout
    assert_same_end(place / "b", place / "c")
    # in the same folder, and from a state by name
    (place / "c" / "training-state-000002.safetensors").unlink()
    assert "training-state-000001" in train("--outdir=c", f"--options=c/{FILE}", "--resume=auto", *common).stdout
    assert_same_end(place / "b", place / "c")
    state = "--resume=b/training-state-000001.safetensors"
    named = train("--outdir=d", f"--options=b/{FILE}", state, *common)
    assert "Loading weights" not in named.stdout
    tiny.same_state(*(load_state_file(last(place / name, "training-state"))["ema"] for name in "bd"))
    # by name in its own folder, from another place
    (place / "b" / "training-state-000002.safetensors").unlink()
    train(f"--outdir={place / 'b'}", "--duration=0.002", state, *begin)
    again = json.loads((place / "b" / FILE).read_text())
    assert again == {**found, "run_dir": str(place / "b")}
    train("--outdir=e", f"--options=b/{FILE}", *common)
    assert_same_end(place / "b", place / "e")


def test_where_a_run_began_may_not_be_known(place):
    """Its file is damaged when it is taken up: then the new one cannot be repeated, and says so."""
    begin = [*TINY, "--data=digits.zip", "--dump=1", "--nosubdir", "--preview=0"]
    train("--outdir=a", "--duration=0.001", *begin)
    state = "a/training-state-000001.safetensors"
    for how in ("auto", state):
        (place / "a" / FILE).write_text("{")
        train("--outdir=a", "--duration=0.001", f"--resume={how}", *begin)
        assert json.loads((place / "a" / FILE).read_text())["resume_state_dump"] == state
    common = ["--outdir=b", "--nosubdir", "--preview=0", "--device=cpu", f"--options=a/{FILE}"]
    for more in ([], ["--resume=auto"]):
        line = refused("train", *common, *more)
        assert f"a/{FILE}: the run went on from {state} in its own folder, and where it began is not told" in line
    assert not (place / "b").exists()
    assert f"Resuming from {state}" in train(*common, f"--resume={state}").stdout


def test_a_run_that_ended_before_its_first_state_begins_where_it_began(place):
    train("--outdir=a", "--data=digits.zip", "--nosubdir", "--duration=0.001", "--preview=0", *TINY)
    begin = ["--outdir=b", *TINY, "--data=digits.zip", "--nosubdir", "--preview=0", "--duration=0.001"]
    train("--transfer=a/network-snapshot-000001.safetensors", *begin)
    whole = {path.name: path.read_bytes() for path in (place / "b").iterdir()}
    for name in whole:
        if name != FILE:
            (place / "b" / name).unlink()
    seed = json.loads(whole[FILE])["seed"]
    assert "Loading weights from a/" in train("--resume=auto", f"--seed={seed}", *begin).stdout
    assert json.loads((place / "b" / FILE).read_text()) == json.loads(whole[FILE])
    snapshot = "network-snapshot-000001.safetensors"
    assert (place / "b" / snapshot).read_bytes() == whole[snapshot]


@pytest.mark.parametrize("published", [False, True])
def test_another_number_of_processes_is_said(place, published):
    """Our files have it, published ones the name of their folder."""
    train("--outdir=a", "--data=digits.zip", "--duration=0.001", "--preview=0", "--nosubdir", *TINY)
    options = json.loads((place / "a" / FILE).read_text())
    assert options["processes"] == 1

    def warned():
        (place / "o.json").write_text(json.dumps(options))
        result = run("train", "-n", "--outdir=b", "--options=o.json", "--device=cpu")
        assert result.exit_code == 0, result.output
        return result.stderr

    assert warned() == ""
    options["processes"] = 8
    if published:
        del options["processes"]
        options["run_dir"] = "runs/00000-digits-uncond-ddpmpp-edm-gpus8-batch20-fp32"
    assert warned() == "Warning: the run of o.json had 8 process(es), this one has 1: random numbers differ\n"


def golden(entries):
    cases = [case for entry in entries for case in entry["config"]["train_options"]]
    return [pytest.param(case, id=" ".join(case["args"])[-60:]) for case in cases]


@pytest.mark.parametrize("case", golden(g.entries("cli", lambda entry: "train_options" in entry["config"])))
def test_files_of_the_published_program(place, case):
    (place / FILE).write_text(json.dumps(case["options"]))
    want = {name: value for name, value in case["options"].items() if name != "run_dir"}
    found = read_settings({"options": FILE, "data": "data.zip", "resume": None}, {"options", "data"})
    assert found == {**want, "dataset_kwargs": {**want["dataset_kwargs"], "path": "data.zip"}}


def edm2_settings(args):
    ctx = main.get_command(None, "train").make_context("train", ["--arch=edm2", *args])
    typed = {name for name in ctx.params if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}
    return training_settings(_edm2_training.checked(ctx.params, typed))


EDM2_CASES = golden(g.edm2("cli", lambda entry: "train_options" in entry["config"]))


@pytest.mark.parametrize("case", EDM2_CASES)
def test_files_of_the_published_program_of_edm2(place, case):
    """They say what our options of the same names say."""
    (place / FILE).write_text(json.dumps(case["options"]))
    found = read_settings({"options": FILE, "data": None, "resume": None}, {"options"})
    want = edm2_settings(case["args"])
    for one in (found, want):
        one["optimizer_kwargs"] = one["optimizer_kwargs"]["betas"]  # lr follows from lr_kwargs; eps is the default
        one["lr_kwargs"] = [one["lr_kwargs"][name] for name in ("ref_lr", "ref_batches")]
        for name in ("cache", "xflip", "encoder"):  # defaults, and what a file can tell
            one["dataset_kwargs"].pop(name, None)
    # loader processes change no image; as published these are two, where our options start one
    assert found.pop("data_loader_kwargs") == {**want.pop("data_loader_kwargs"), "num_workers": 2}
    assert found == want


def test_what_a_file_of_edm2_leaves_out(place):
    """Intervals are as published; an object that is there is not mixed with one that is usual."""
    (case,) = EDM2_CASES[0].values
    options = {name: value for name, value in case["options"].items() if not name.endswith("_nimg")}
    options |= {"total_nimg": 1 << 30, "optimizer_kwargs": {"class_name": "torch.optim.SGD", "lr": 1}}
    options["ema_kwargs"] = {"class_name": "training.phema.TraditionalEMA", "halflife_Mimg": 5}

    def read(**changes):
        (place / FILE).write_text(json.dumps({**options, **changes}))
        return read_settings({"options": FILE, "data": None, "resume": None}, {"options"})

    found = read()
    assert (found["kimg_per_tick"], found["snapshot_ticks"], found["state_dump_ticks"]) == (131.072, 64, 1024)
    assert all(found[name] == options[name] for name in ("optimizer_kwargs", "ema_kwargs"))
    found = read(status_nimg=None, snapshot_nimg=0, checkpoint_nimg=1 << 21)
    assert (found["kimg_per_tick"], found["snapshot_ticks"], found["state_dump_ticks"]) == (2097.152, None, 1)
    # which recipe it is follows from the network, not from what else is there
    (place / "training-state-0000004.pt").touch()
    found = {name: value for name, value in found.items() if name != "ema_kwargs"}
    (place / FILE).write_text(json.dumps(found))
    by_name = {"options": FILE, "data": None, "resume": "training-state-0000004.pt"}
    assert "resume_pkl" not in read_settings(by_name, {"options", "resume"})


@pytest.fixture
def options(place):
    """The file of a run that was not begun, as a function of changes: a dotted name and a value, none to remove it."""
    output = run("train", "-n", "--outdir=a", "--data=digits.zip", "--seed=1", "--duration=0.001", *TINY).stdout
    found, _ = json.JSONDecoder().raw_decode(output[output.index("{") :])

    def write(name, *value):
        inside = found
        *groups, last = name.split(".")
        for group in groups:
            inside = inside[group]
        inside.pop(last, None)
        inside.update({last: value[0]} if value else {})
        (place / "o.json").write_text(json.dumps(found))

    return write


REPEAT = ("train", "--outdir=out", "--options=o.json", "--device=cpu")
OBJECT = "expected an object (dict)"


@pytest.mark.parametrize(
    "change, message",
    [
        (("colour", 1), "o.json: colour is no setting of a training run"),
        (("batchsize", 1), "o.json: batchsize is no setting of a training run (near names: batch_size"),
        (("device", "cpu"), "o.json: device is no setting of a file; expected --device"),
        (("measure", None), "o.json: measure is no setting of a file; expected --quality"),
        (("total_kimg",), "o.json: has no total_kimg; expected"),
        (("network_kwargs",), "o.json: has no network_kwargs; expected"),
        (("network_kwargs", None), "o.json: has no network_kwargs; expected"),
        (("dataset_kwargs", None), "o.json: has no dataset_kwargs; expected"),
        (("optimizer_kwargs", None), "o.json: has no optimizer_kwargs; expected"),
        (("batch_size", "20"), "o.json: batch_size is '20'; expected int\n"),
        (("batch_size", True), "o.json: batch_size is True; expected int\n"),
        (("batch_size", 0), "o.json: batch_size 0; expected a finite number, at least 1"),
        (("batch_gpu", 7), "o.json: batch size 20 cannot be dealt"),
        (("kimg_per_tick", "1"), "o.json: kimg_per_tick is '1'; expected float"),
        (("total_kimg", float("inf")), "o.json is not valid JSON (Infinity; expected a finite number)"),
        (("augment_kwargs.scale", float("nan")), "o.json is not valid JSON (NaN; expected a finite number)"),
        (("loss_scaling", 0), "o.json: loss_scaling 0; expected a finite number above 0"),
        (("resume_kimg", -1), "o.json: resume_kimg -1; expected"),
        (("seed", 1 << 32), "o.json: seed 4294967296; expected"),
        (("dataset_kwargs", [1]), f"o.json: dataset_kwargs is [1]; {OBJECT}"),
        (("dataset_kwargs.path",), "required positional argument: 'path'"),
        (("dataset_kwargs.path", "gone.zip"), "gone.zip does not exist"),
        (("dataset_kwargs.path", 5), "path is 5; expected"),
        (("dataset_kwargs.hue", 5), "unexpected keyword argument 'hue'"),
        (("dataset_kwargs.use_labels", 1), "use_labels is 1; expected bool"),
        (("dataset_kwargs.max_size", 13), "max_size is 12, in o.json it is 13; expected the data set of that run"),
        (("dataset_kwargs.resolution", 8), "resolution is 4, in o.json it is 8"),
        (("dataset_kwargs.xflip", "yes"), "xflip is 'yes'; expected bool"),
        (("network_kwargs.class_name", "x.Net"), "'Net'"),
        (("network_kwargs.class_name",), "o.json: network_kwargs has no class_name"),
        (("network_kwargs.channel_mult",), "o.json: network_kwargs has no channel_mult"),
        (("network_kwargs.channel_mult", 3), "channel_mult='3'"),
        (("network_kwargs.depth", 3), "depth"),
        (("loss_kwargs.class_name", "x.Loss"), "o.json: unknown loss Loss; expected one of"),
        (("loss_kwargs.class_name", "x.EDM2Loss"), "o.json: loss EDM2Loss for a network of EDM; expected"),
        (("loss_kwargs.P_std", "1"), "o.json: P_std is '1'; expected float"),
        (("loss_kwargs.P_std", -1), "o.json: P_std -1; expected"),
        (("loss_kwargs.hue", 1), "o.json: loss EDMLoss: EDMLoss.__init__() got an unexpected keyword argument 'hue'"),
        (("optimizer_kwargs.class_name", "torch.optim.Lion"), "o.json: unknown optimizer Lion; expected one of"),
        (("optimizer_kwargs.lr", "fast"), "o.json: optimizer Adam: "),
        (("optimizer_kwargs.betas", [0.9]), "o.json: optimizer Adam: "),
        (("optimizer_kwargs.betas", [0.9, 0.9, 0.9]), "optimizer: too many values to unpack"),
        (("augment_kwargs.p", None), "o.json: p is None; expected float"),
        (("augment_kwargs.p", 7), "o.json: p 7 of the augmentation; expected a probability"),
        (("data_loader_kwargs.num_workers", "2"), "o.json: num_workers is '2'; expected int"),
        (("data_loader_kwargs.threads", 2), "o.json: data loader: "),
        (("precision", "fp8"), "precision 'fp8'; expected one of"),
        (("snapshot_format", "onnx"), "o.json: snapshot format onnx; expected"),
        (("snapshot_ticks", -1), "o.json: snapshot_ticks -1; expected"),
        (("log_to", "no_such_module"), "no_such_module"),
        (("lr_kwargs", {"speed": 1}), "o.json: lr_kwargs are settings of EDM2's networks"),
        (("ema_kwargs", {"stds": [0.1]}), "o.json: ema_kwargs are settings of EDM2's networks"),
        (
            ("resume_state_dump", "training-state-000001.safetensors"),
            "training-state-000001.safetensors does not exist",
        ),
        (("resume_pkl", "gone.pkl"), "gone.pkl: no such file"),
    ],
)
def test_what_a_file_may_not_say(options, place, change, message):
    options(*change)
    assert message in refused(*REPEAT)
    late = change[0] in ("log_to", "resume_state_dump", "resume_pkl")  # what they name is looked for by the run
    assert not (place / "out").exists() or (late and not list(place.glob("out/*/network*")))


def test_labels_that_are_not_there(options, place):
    tiny.write_dataset(place / "digits.zip", classes=0)
    options("dataset_kwargs.use_labels", True)
    assert "Error: use_labels in o.json needs labels; digits.zip has none" in refused(*REPEAT)


@pytest.mark.parametrize("name", ["augment_kwargs", "lr_kwargs", "ema_kwargs", "data_loader_kwargs"])
def test_an_object_that_may_be_null(options, place, name):
    options(name, None)
    if name == "augment_kwargs":
        options("network_kwargs.augment_dim", 0)
    assert run(*REPEAT, "-n", "--workers=0").exit_code == 0


def test_a_network_without_a_type(options, place):
    """It is that of its class, which is no network of EDM2."""
    options("network_kwargs.model_type")
    for name in ("embedding_type", "encoder_type", "decoder_type", "resample_filter", "channel_mult_noise"):
        options(f"network_kwargs.{name}")
    result = run(*REPEAT, "-n")
    assert result.exit_code == 0 and "-uncond-edmprecond-edm-gpus1-" in result.stdout


@pytest.mark.parametrize(
    "change, message",
    [
        ({"slice_nimg": 1024}, "slice_nimg is 1024; expected null"),
        ({"force_finite": False}, "force_finite is false; expected true"),
        (
            {"encoder_kwargs": {"class_name": "a.StabilityVAEEncoder", "vae_name": "x"}},
            'encoder_kwargs are {"class_name": "a.StabilityVAEEncoder", "vae_name": "x"}; expected',
        ),
        (
            {"encoder_kwargs": {"class_name": "a.StandardRGBEncoder"}},
            "encoder is StabilityVAEEncoder, in o.json it is StandardRGBEncoder",
        ),
        ({"encoder_kwargs": 3}, "encoder_kwargs are 3; expected"),
        ({"total_nimg": "512Mi"}, 'has "512Mi" for a number of images; expected'),
        ({"total_nimg": None}, "has null for a number of images; expected"),
        ({"total_nimg": 0}, "has 0 for a number of images; expected an integer from 1 on"),
        ({"total_nimg": True}, "has true for a number of images; expected"),
        ({"total_kimg": 3}, "has total_kimg beside total_nimg; expected one"),
        ({"status_nimg": -1}, "has -1 for a number of images; expected an integer from 0 on"),
        ({"lr_kwargs": {"func_name": "a.cosine", "ref_lr": 0.1}}, "unknown learning rate cosine"),
        ({"lr_kwargs": {"ref_lr": "1"}}, "ref_lr is '1'; expected float"),
        ({"lr_kwargs": {"warmup": 1}}, "unexpected keyword argument 'warmup'"),
        ({"ema_kwargs": {"class_name": "a.Mean"}}, "unknown average Mean; expected one of"),
        ({"ema_kwargs": {"class_name": "a.PowerFunctionEMA", "stds": ["wide"]}}, "stds is ['wide']; expected a list"),
        ({"ema_kwargs": {"class_name": "a.PowerFunctionEMA", "stds": []}}, "no width of an average (stds)"),
        ({"ema_kwargs": {"class_name": "a.PowerFunctionEMA", "stds": [0.5]}}, "the width of an average is 0.5"),
        ({"ema_kwargs": 3}, "ema_kwargs is 3; expected an object"),
        ({"ema_kwargs": None}, "ema_kwargs is null; expected an object"),
        ({"augment_kwargs": {"p": 0.1}}, "EDM2's networks know no augmentation"),
        ({"status_nimg": 1000, "snapshot_nimg": None, "checkpoint_nimg": None}, "a tick of 1000 images"),
        ({"wandb_kwargs": {}}, "wandb_kwargs is no setting"),
    ],
)
def test_what_a_file_of_edm2_may_not_say(place, change, message):
    (case,) = EDM2_CASES[0].values
    tiny.write_latents(place / "img512-sd.zip", size=8)
    (place / "o.json").write_text(json.dumps({**case["options"], **change}))
    assert message in refused("train", "-n", "--outdir=out", "--options=o.json", "--device=cpu")
    assert not (place / "out").exists()


def test_what_is_no_file_of_options(place):
    def refusal(*args):
        return refused("train", "--outdir=out", "--options=o.json", *args)

    assert "Error: o.json cannot be read (No such file" in refusal()
    for text, message in [
        ("{", "not valid JSON"),
        ("[1]", "no JSON object"),
        ("{}", "has no dataset_kwargs"),
        ("\xff", "o.json is not valid JSON"),
        ('{"a": [1e999]}', "o.json is not valid JSON (1e999; expected a finite number)"),
    ]:
        (place / "o.json").write_bytes(text.encode("latin-1"))
        assert message in refusal()
    (place / "o.json").write_text("[" * 100_000)
    assert "not valid JSON" in refusal()
    for option in ("--lr=1", "--seed=1", "--cond=1", "--transfer=a.pkl", "--P_mean=1", "--duration=1", "--fp16=0"):
        name = option.partition("=")[0]
        line = refusal(option)
        assert f"{name} does not go with --options" in line and "--outdir, --data, --desc, --nosubdir, --resume" in line
    assert "Missing option '--data'" in run("train", "--outdir=out").stderr
