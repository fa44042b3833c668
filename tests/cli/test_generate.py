"""edm-fast generate: files, continued runs, several processes, bad input."""

import errno
import importlib.resources
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from edm_fast import accelerate, checkpoint, native, use_backend
from edm_fast.cli import _networks, main
from edm_fast.errors import UserError
from edm_fast.networks import build
from edm_fast.sampling import (
    Guidance,
    ablation_sampler,
    edm_sampler,
    images,
    sample,
    sample_seeds,
    save_solver,
    to_uint8,
)
from edm_fast.sampling.solvers import _generate

UNET = {
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


@pytest.fixture
def one_thread():
    """As in ENVIRONMENT: the fastest algorithm of a layer depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(label_dim=0, channels=3, **kwargs):
    torch.manual_seed(0)
    net = build("EDMPrecond", {"img_resolution": 8, "img_channels": channels, "label_dim": label_dim, **UNET, **kwargs})
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.03 * torch.randn_like(p))  # layers that start at zero would hide what enters them
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "conditional.safetensors"
    checkpoint.save(make(label_dim=4), path)
    return str(path)


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "gray.safetensors"
    checkpoint.save(make(channels=1), path)
    return str(path)


def run(*args):
    return CliRunner().invoke(main, ["generate", "--device=cpu", *map(str, args)])


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def pixels(folder):
    return np.stack([np.asarray(PIL.Image.open(path)).astype(int) for path in sorted(folder.rglob("*.png"))])


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]


def test_images_are_those_of_the_sampler(conditional, tmp_path):
    result = succeed(f"--network={conditional}", f"--outdir={tmp_path}", "--seeds=2,0,1002", "--steps=3", "--subdirs")
    assert "3 images in" in result.output and "images/s" in result.output
    assert sorted(contents(tmp_path)) == ["000000/000000.png", "000000/000002.png", "001000/001002.png"]
    want = to_uint8(sample_seeds(checkpoint.load(conditional), edm_sampler, [0, 2, 1002], num_steps=3))
    assert np.abs(pixels(tmp_path) - want).max() <= 1


@pytest.mark.parametrize(
    ("args", "sampler", "settings", "cost"),
    [
        ([], edm_sampler, {}, "35 evaluations per image"),
        (["--solver=heun"], ablation_sampler, {"solver": "heun"}, "35 evaluations per image"),
        (["--solver=euler", "--disc=ve"], ablation_sampler, {"solver": "euler", "discretization": "ve"}, "18 eval"),
        (["--solver=heun", "--nfe=7"], sample, {"solver": "heun", "nfe": 7}, "7 evaluations per image"),
        (["--solver=dpmpp", "--steps=5", "--order=2"], sample, {"solver": "dpmpp", "order": 2, "num_steps": 5}, "5 ev"),
        (["--solver=ipndm", "--levels=logsnr"], sample, {"solver": "ipndm", "levels": "logsnr"}, "18 evaluations"),
        (["--levels=40,3,0.5,0"], sample, {"levels": [40, 3, 0.5, 0]}, "5 evaluations per image"),
        (["--solver=unipc", "--nfe=6", "--rho=5"], sample, {"solver": "unipc", "nfe": 6, "rho": 5}, "6 evaluations"),
        (["--guidance=2"], edm_sampler, {"guidance": Guidance(2)}, "35 evaluations per image and 35 for guidance"),
        (["--guidance=1"], edm_sampler, {}, "35 evaluations per image: "),
        (
            ["--solver=dpmpp", "--nfe=8", "--guidance=2", "--guidance-interval=0.1,5"],
            sample,
            {"solver": "dpmpp", "nfe": 8, "guidance": Guidance(2, None, (0.1, 5))},
            "8 evaluations per image and 3 for guidance: ",
        ),
    ],
)
def test_every_sampler(args, sampler, settings, cost, conditional, tmp_path):
    with use_backend("reference"):
        result = succeed(f"--network={conditional}", f"--outdir={tmp_path}", "--seeds=0-2", *args)
        if sampler is edm_sampler and settings:  # it has no guidance; Heun's bits are the same
            sampler = sample
        want = to_uint8(sample_seeds(checkpoint.load(conditional), sampler, [0, 1, 2], **settings))
    assert cost in result.output
    np.testing.assert_array_equal(pixels(tmp_path), want)


def test_a_solver_in_a_file(conditional, tmp_path):
    options = (f"--network={conditional}", f"--outdir={tmp_path / 'out'}", "--seeds=0-2", "--skip-existing")
    settings = {"solver": "ipndm", "levels": [80, 6, 0.5, 0.01]}
    for name in ("a", "b"):
        save_solver(sample.solver(checkpoint.load(conditional), None, **settings), tmp_path / f"{name}.json")
    with use_backend("reference"):
        assert "3 evaluations per image" in succeed(*options, f"--solver={tmp_path / 'a.json'}").output
        want = to_uint8(sample_seeds(checkpoint.load(conditional), sample, [0, 1, 2], **settings))
        np.testing.assert_array_equal(pixels(tmp_path / "out"), want)
        assert "3 kept" in succeed(*options, f"--solver={tmp_path / 'b.json'}").output  # what it says counts
        (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("80.0", "79.0"))
        result = run(*options, f"--solver={tmp_path / 'a.json'}")
    assert result.exit_code == 2 and "was not made" in result.stderr


def test_a_second_network_guides(conditional, tmp_path):
    other = make(label_dim=4, model_channels=8)
    checkpoint.save(other, tmp_path / "other.safetensors")
    options = (f"--network={conditional}", "--seeds=0-2", "--nfe=7", "--skip-existing", "--guidance=2")
    with use_backend("reference"):
        succeed(*options, f"--outdir={tmp_path / 'out'}", f"--gnet={tmp_path / 'other.safetensors'}")
        want = sample_seeds(checkpoint.load(conditional), sample, [0, 1, 2], nfe=7, guidance=Guidance(2, other))
        np.testing.assert_array_equal(pixels(tmp_path / "out"), to_uint8(want))
        for changed in ([], [f"--gnet={conditional}"], [f"--gnet={tmp_path / 'other.safetensors'}", "--guidance=3"]):
            result = run(*options, f"--outdir={tmp_path / 'out'}", *changed)
            assert result.exit_code == 2 and "was not made" in result.stderr


def test_one_channel_is_saved_as_gray(gray, tmp_path):
    succeed(f"--network={gray}", f"--outdir={tmp_path}", "--seeds=-5", "--steps=2")
    assert PIL.Image.open(tmp_path / "-00005.png").mode == "L"


def test_the_class_changes_the_image(conditional, tmp_path):
    for idx in (0, 3):
        succeed(
            f"--network={conditional}", f"--outdir={tmp_path / str(idx)}", "--seeds=1", "--steps=3", f"--class={idx}"
        )
    assert (pixels(tmp_path / "0") != pixels(tmp_path / "3")).any()


def test_an_image_depends_on_its_batch_by_less_than_a_level(conditional, tmp_path):
    net = checkpoint.load(conditional)
    together = sample_seeds(net, edm_sampler, range(7), num_steps=6)
    alone = torch.cat([sample_seeds(net, edm_sampler, [seed], num_steps=6) for seed in range(7)])
    # float32 convolutions may sum in another order: measured 1.5e-6 of the largest value, on the CPU
    assert (together - alone).abs().max() <= 2e-5 * together.abs().max()
    for batch in (7, 3, 1):
        succeed(
            f"--network={conditional}",
            f"--outdir={tmp_path / str(batch)}",
            "--seeds=0-6",
            "--steps=6",
            f"--batch={batch}",
        )
    for batch in (3, 1):
        assert np.abs(pixels(tmp_path / "7") - pixels(tmp_path / str(batch))).max() <= 1


def test_the_same_command_writes_the_same_bytes(conditional, tmp_path):
    for name in ("a", "b"):
        succeed(f"--network={conditional}", f"--outdir={tmp_path / name}", "--seeds=0-4", "--steps=3", "--S_churn=2")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_grid(gray, tmp_path):
    grid = tmp_path / "pictures" / "grid.png"
    succeed(f"--network={gray}", f"--outdir={tmp_path / 'out'}", "--seeds=0-5", "--steps=2", f"--grid={grid}")
    picture = np.asarray(PIL.Image.open(grid)).astype(int)
    assert picture.shape == (16, 24)
    np.testing.assert_array_equal(picture[8:, 8:16], pixels(tmp_path / "out")[4])


def test_the_demo_model_is_used_and_named(gray, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "demo_path", lambda name: gray)
    result = succeed(f"--outdir={tmp_path / 'unnamed'}", "--seeds=0", "--steps=2")
    assert "demo model" in result.output.splitlines()[0]
    succeed("--network=demo", f"--outdir={tmp_path / 'named'}", "--seeds=0", "--steps=2")
    assert contents(tmp_path / "unnamed") == contents(tmp_path / "named")


def test_a_missing_demo_model_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="--network"):
        checkpoint.demo_path()


def ways(monkeypatch):
    """A list to which each accelerate() adds its precision."""
    found = []

    def recorded(net, precision):
        found.append(precision)
        return accelerate(net, precision)

    monkeypatch.setattr(_networks, "accelerate", recorded)
    return found


@needs_native
def test_networks_are_accelerated_on_the_cpu(conditional, tmp_path, monkeypatch):
    found, options = ways(monkeypatch), (f"--network={conditional}", "--seeds=0-2", "--steps=4")
    with use_backend("auto"):
        succeed(*options, f"--outdir={tmp_path / 'default'}")
        for precision in ("exact", "fp32", "bf16"):
            succeed(*options, f"--outdir={tmp_path / precision}", f"--precision={precision}")
    assert found == ["fp32", "exact", "fp32", "bf16"]
    assert contents(tmp_path / "default") == contents(tmp_path / "fp32")
    with use_backend("reference"):
        succeed(*options, f"--outdir={tmp_path / 'plain'}")
    assert len(found) == 4
    for name in ("default", "exact", "fp32"):
        assert np.abs(pixels(tmp_path / name) - pixels(tmp_path / "plain")).max() <= 1
    assert np.abs(pixels(tmp_path / "bf16") - pixels(tmp_path / "plain")).mean() < 1
    marks = {images.stored((folder / "000000.png").read_bytes).text for folder in tmp_path.iterdir()}
    assert len(marks) == 4  # of five folders: the default is fp32


def test_plain_where_nothing_is_compiled(conditional, tmp_path, monkeypatch):
    found = ways(monkeypatch)
    monkeypatch.setattr(native, "cpu_reason", lambda: "no compiler")
    result = run(f"--network={conditional}", f"--outdir={tmp_path}", "--seeds=0", "--steps=2", "--precision=exact")
    assert result.exit_code == 2 and "no compiler" in result.stderr and result.stderr.count("\n") == 1
    assert not contents(tmp_path)
    with use_backend("reference"):
        succeed(f"--network={conditional}", f"--outdir={tmp_path}", "--seeds=0", "--steps=2")
    assert not found


@needs_native
def test_a_backend_asked_for_by_name_is_not_mixed(conditional, tmp_path):
    options = (f"--network={conditional}", f"--outdir={tmp_path}", "--seeds=0", "--steps=2", "--skip-existing")
    with use_backend("auto"):
        succeed(*options)
        assert "1 kept" in succeed(*options, "--precision=fp32").output
        result = run(*options, "--precision=bf16")
        assert result.exit_code == 2 and "was not made" in result.stderr
    with use_backend("reference"):
        result = run(*options)
        assert result.exit_code == 2 and "was not made" in result.stderr
        result = run(*options, "--precision=fp32")
        assert result.exit_code == 2 and "asked for by name" in result.stderr and result.stderr.count("\n") == 1


def test_ways_to_draw_on_a_gpu():
    device = torch.device("cuda")
    assert _networks.way_to_draw(None, device) == "stored"
    for precision in ("exact", "fp32", "tf32", "bf16", "fp16"):
        assert _networks.way_to_draw(precision, device) == f"accelerated {precision}"
    net = make(use_fp16=True)
    assert _networks.prepared(net, "stored") is net
    with use_backend("reference"), pytest.raises(UserError, match="asked for by name"):
        _networks.way_to_draw("bf16", device)


def test_continued_runs_keep_what_is_there(conditional, tmp_path):
    options = (f"--network={conditional}", "--seeds=0-11", "--batch=4", "--steps=3")
    succeed(*options, f"--outdir={tmp_path / 'whole'}")
    out = tmp_path / "out"
    succeed(*options, f"--outdir={out}")
    for seed in (2, 4, 5, 6, 7, 8):
        (out / images.image_name(seed)).unlink()
    (out / ".000005.png.abc.tmp").write_bytes(b"left by a killed run")
    (out / ".notes.tmp").write_bytes(b"not ours")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    result = succeed(*options, f"--outdir={out}", "--skip-existing")
    assert "6 images in" in result.output and "6 kept" in result.output
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert leftovers(out) == [".notes.tmp"]
    assert "0 images in" in succeed(*options, f"--outdir={out}", "--skip-existing").output


def test_a_grid_never_replaces_an_image_that_is_kept(gray, tmp_path):
    options = (f"--network={gray}", f"--outdir={tmp_path}", "--seeds=0-1", "--steps=1", "--skip-existing")
    succeed(*options)
    before = contents(tmp_path)
    result = run(*options, f"--grid={tmp_path / '000000.png'}")
    assert result.exit_code == 2 and "000000.png" in result.stderr and contents(tmp_path) == before


def damage(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("first", "change", "second", "parts"),
    [
        ("--seeds=0-7", lambda out: (out / "000004.png").unlink(), "--seeds=0-7", [[3, 4, 5]]),
        ("--seeds=0-7", lambda out: damage(out / "000003.png"), "--seeds=0-7", [[3, 4, 5]]),
        ("--seeds=0-3", lambda out: None, "--seeds=0-7", [[3, 4, 5], [6, 7]]),
        ("--seeds=0-3", lambda out: None, "--seeds=7-0,5,5,4,3,4", [[5, 4, 3]]),  # 7-0 is empty; each once
        ("--seeds=0-7", lambda out: None, "--seeds=2-8", [[7, 8]]),  # dealt as 2-4, 5-6, 7-8
    ],
)
def test_continued_runs_draw_what_is_missing(conditional, tmp_path, monkeypatch, first, change, second, parts):
    options = (f"--network={conditional}", f"--outdir={tmp_path}", "--batch=3", "--steps=1")
    succeed(*options, first)
    change(tmp_path)
    found = []

    def recorded(net, sampler, seeds, *args, **kwargs):
        found.append(list(seeds))
        return sample_seeds(net, sampler, seeds, *args, **kwargs)

    monkeypatch.setattr(_generate, "sample_seeds", recorded)
    succeed(*options, second, "--skip-existing")
    assert found == parts
    pixels(tmp_path)  # every file can be read


@pytest.mark.parametrize("change", ["--steps=4", "--class=1", "--solver=heun", "--network"])
def test_images_made_otherwise_are_not_kept(conditional, gray, tmp_path, change):
    succeed(f"--network={conditional}", f"--outdir={tmp_path}", "--seeds=0", "--steps=3")
    network = gray if change == "--network" else conditional
    extra = [] if change == "--network" else [change]
    before = contents(tmp_path)
    result = run(f"--network={network}", f"--outdir={tmp_path}", "--seeds=0", "--steps=3", "--skip-existing", *extra)
    assert result.exit_code == 2 and "000000.png was not made" in result.stderr
    assert contents(tmp_path) == before


def test_a_killed_run_goes_on_to_the_same_images(conditional, tmp_path, one_thread):
    options = [f"--network={conditional}", "--seeds=0-11", "--batch=3", "--steps=25"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edm_fast", "generate", *options, f"--outdir={out}", "--device=cpu"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.png"))) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    partial = contents(out)
    assert 4 <= len(partial) < 12
    pixels(out)  # every file can be read
    succeed(*options, f"--outdir={out}", "--skip-existing")
    succeed(*options, f"--outdir={tmp_path / 'whole'}")
    assert contents(out) == contents(tmp_path / "whole")
    assert leftovers(out) == []


@pytest.mark.slow
def test_two_processes(conditional, tmp_path, one_thread):
    options = [f"--network={conditional}", "--seeds=0-6", "--steps=3", "--device=cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "edm_fast", "generate", *options, f"--outdir={tmp_path / 'two'}", "--batch=2"]
    result = subprocess.run(
        [*command, f"--grid={tmp_path / 'grid.png'}"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("7 images in") == 1
    # 7 seeds on 2 ranks at batch 2 are cut into 2, 2, 2, 1, as on one rank
    succeed(*options, f"--outdir={tmp_path / 'one'}", "--batch=2", f"--grid={tmp_path / 'one.png'}")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    succeed(*options, f"--outdir={tmp_path / 'other'}", "--batch=7")
    assert np.abs(pixels(tmp_path / "two") - pixels(tmp_path / "other")).max() <= 1


class Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


BAD = {
    "no such network": (["--network={tmp}/none.pkl"], "none.pkl"),
    "malicious network": (["--network={tmp}/malicious.pkl"], "malicious.pkl"),
    "truncated network": (["--network={tmp}/truncated.safetensors"], "truncated.safetensors"),
    "empty network": (["--network={tmp}/empty.pkl"], "empty.pkl"),
    "class out of range": (["--class=4"], "expected 0 to 3"),
    "class without classes": (["--network={gray}", "--class=0"], "unconditional"),
    "unknown solver": (["--solver=huen"], "huen"),
    "no such solver file": (["--solver={tmp}/none.json"], "none.json"),
    "solver file that is empty": (["--solver={tmp}/empty.pkl"], "empty.pkl is no solver"),
    "solver file and steps": (["--solver={tmp}/solver.json", "--steps=3"], "num_steps does not go with a solver that"),
    "solver file and churn": (["--solver={tmp}/solver.json", "--S_churn=3"], "--S_churn does not go with"),
    "disc of another solver": (["--solver=dpmpp", "--disc=vp"], "--disc does not go with --solver=dpmpp"),
    "schedule with nfe": (["--nfe=5", "--schedule=vp"], "--schedule does not go with"),
    "churn of another solver": (["--solver=dpmpp", "--S_churn=3"], "--S_churn does not go with --solver=dpmpp"),
    "steps and nfe": (["--steps=18", "--nfe=9"], "expected one of them"),
    "nfe that cannot be spent": (["--solver=heun", "--nfe=8"], "expected 7 or 9"),
    "order of a solver without": (["--solver=heun", "--order=2"], "no option order"),
    "unknown levels": (["--levels=cosine"], "'cosine' is no list of numbers"),
    "levels that rise": (["--levels=1,2,0"], "sigma_min < sigma_max"),
    "levels and steps": (["--levels=9,1,0", "--steps=18"], "num_steps is 18; with these 3 levels it is 2"),
    "rho of levels without": (["--levels=logsnr", "--rho=5"], "--rho does not go with --levels=logsnr"),
    "levels and sigma_max": (["--levels=9,1,0", "--sigma_max=9"], "--sigma_max does not go with a list"),
    "interval without guidance": (["--guidance-interval=1,2"], "--guidance-interval needs --guidance"),
    "interval of one": (["--guidance=2", "--guidance-interval=1"], "'1' is not LO,HI"),
    "interval upside down": (["--guidance=2", "--guidance-interval=2,1"], "sigma_lo < sigma_hi"),
    "guidance nan": (["--guidance=nan"], "not a finite number"),
    "solver of no name": (["--solver=  "], "is no solver"),
    "guidance without classes": (["--network={gray}", "--guidance=2"], "unconditional"),
    "gnet of other images": (["--gnet={gray}", "--guidance=2"], "1 channels and the network of 3"),
    "no such gnet": (["--gnet={tmp}/none.pkl", "--guidance=2"], "none.pkl"),
    "empty seeds": (["--seeds=5-2"], "empty list"),
    "no seeds": (["--seeds=a"], "'a' is not an integer"),
    "too many seeds": (["--seeds=0-99999999999"], "more than"),
    "no steps": (["--steps=0"], "0"),
    "rho too small": (["--rho=1e-10"], "rho is 1e-10"),
    "rho too large": (["--rho=1e300"], "rho is 1e+300"),
    "too many steps": (["--steps=1000000000000"], "num_steps"),
    "range of noise upside down": (["--S_min=2", "--S_max=1"], "S_min"),
    "range upside down": (["--sigma_min=3", "--sigma_max=2"], "sigma_min"),
    "range empty": (["--sigma_min=2", "--sigma_max=2"], "sigma_min"),
    "range against the default": (["--sigma_min=90"], "sigma_min"),
    "rho nan": (["--rho=nan"], "not a finite number"),
    "no batch": (["--batch=0"], "0"),
    "outdir is a file": (["--outdir={tmp}/file"], "file"),
    "outdir below a file": (["--outdir={tmp}/file/deeper"], "file"),
    "grid of another type": (["--grid=grid.jpg"], ".png"),
    "page of another type": (["--html=page.png"], "expected the name of a .html file"),
    "film of another type": (["--trajectory=film.mp4"], "expected the name of a .gif file"),
    "film of many images": (["--trajectory=film.gif", "--seeds=0-64"], "--trajectory takes at most 64 images"),
    "film of a continued run": (["--trajectory=film.gif", "--skip-existing"], "expected one process, and no --skip-"),
    "grid below a file": (["--grid={tmp}/file/grid.png"], "file"),
    "unknown device": (["--device=toaster"], "toaster"),
    "device without float64": (["--device=mps"], "mps"),
    "precision of another device": (["--precision=tf32"], "tf32"),
    "half precision of another device": (["--precision=fp16"], "expected exact, fp32, bf16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, conditional, gray, tmp_path):
    args, words = BAD[name]
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty.pkl").write_bytes(b"")
    (tmp_path / "solver.json").write_text('{"levels": [9, 1], "keeps": "slope", "weights": [[-8]]}')
    (tmp_path / "malicious.pkl").write_bytes(pickle.dumps({"ema": Payload(str(tmp_path / "canary"))}))
    with open(conditional, "rb") as file:
        (tmp_path / "truncated.safetensors").write_bytes(file.read()[:-1000])
    args = [arg.format(tmp=tmp_path, gray=gray) for arg in args]
    result = run(f"--network={conditional}", f"--outdir={tmp_path / 'out'}", "--seeds=0-1", *args)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "canary").exists()


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch, conditional):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run(f"--network={conditional}", f"--outdir={tmp_path}", "--device=cuda")
    assert result.exit_code == 2 and "0 CUDA devices" in result.stderr


def test_a_network_whose_images_are_no_png(tmp_path):
    checkpoint.save(make(channels=2), tmp_path / "two.safetensors")
    result = run(f"--network={tmp_path / 'two.safetensors'}", f"--outdir={tmp_path / 'out'}")
    assert result.exit_code == 2 and "2 channels" in result.stderr


def test_an_image_that_is_not_finite_is_refused(tmp_path):
    net = make()
    next(net.parameters()).fill_(float("nan"))
    checkpoint.save(net, tmp_path / "nan.safetensors")
    result = run(f"--network={tmp_path / 'nan.safetensors'}", f"--outdir={tmp_path / 'out'}", "--seeds=3", "--steps=2")
    assert result.exit_code == 2 and "seed 3: the image is not finite" in result.stderr
    assert not contents(tmp_path / "out")


def test_disk_full(conditional, tmp_path, monkeypatch):
    succeed(f"--network={conditional}", f"--outdir={tmp_path / 'first'}", "--seeds=0-4", "--steps=2")  # measures
    real, calls = os.fsync, []

    def full(fd):
        calls.append(fd)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    result = run(f"--network={conditional}", f"--outdir={tmp_path / 'full'}", "--seeds=0-4", "--steps=2")
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert lines == [f"Error: cannot write {tmp_path / 'full' / '000002.png'}: No space left on device"]
    assert sorted(contents(tmp_path / "full")) == ["000000.png", "000001.png"] and leftovers(tmp_path) == []
    pixels(tmp_path)
