"""Files people bring: each is read where that is safe, or said to be what it is, with what to do."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import edm_fast
from edm_fast import checkpoint, networks
from edm_fast.cli import main
from helpers.hostile_checkpoints import refused
from helpers.tiny_networks import UNET, tiny, tiny_checkpoint

OWN_STATE = {"format": "edm-fast training state 1", "optimizer_state": {"state": {}, "param_groups": []}}


@pytest.fixture(scope="module")
def net():
    return tiny()


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(networks.PRESETS, "tiny", ("EDMPrecond", UNET))


def same(a, b, dtype=torch.float32):
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[k].to(dtype).float(), y[k]) for k in x)


def prefixed(net, prefix):
    return {prefix + name: tensor for name, tensor in net.state_dict().items()}


def configured(net):
    return {"class_name": "EDMPrecond", "init_kwargs": net.init_kwargs}


# what is written, and the options of load()
READ = {
    "state_dict": (lambda n: n.state_dict(), {"preset": "tiny"}),
    "plain dict": (lambda n: dict(n.state_dict()), {"preset": "tiny"}),
    "of DataParallel": (lambda n: prefixed(n, "module."), {"preset": "tiny"}),
    "of torch.compile": (lambda n: prefixed(n, "_orig_mod."), {"preset": "tiny"}),
    "of both": (lambda n: prefixed(n, "module._orig_mod."), {"preset": "tiny"}),
    "of a module around it": (lambda n: prefixed(n, "model."), {"preset": "tiny"}),
    "of another": (lambda n: prefixed(n, "trainer.denoiser."), {"preset": "tiny"}),
    "of AveragedModel": (lambda n: torch.optim.swa_utils.AveragedModel(n).state_dict(), {"preset": "tiny"}),
    "float64": (lambda n: {k: t.double() for k, t in n.state_dict().items()}, {"preset": "tiny"}),
    "under a key": (lambda n: {"model": n.state_dict(), "step": 5}, {"preset": "tiny", "key": "model"}),
    "ema": (lambda n: {"ema": n.state_dict(), "net": None}, {"preset": "tiny"}),
    "Lightning": (
        lambda n: {"state_dict": prefixed(n, "net."), "pytorch-lightning_version": "2.1", "callbacks": {}},
        {"preset": "tiny", "key": "state_dict"},
    ),
    "own state": (lambda n: {**OWN_STATE, **configured(n), "net": {}, "ema": n.state_dict()}, {}),
    "own state's net": (lambda n: {**OWN_STATE, **configured(n), "net": n.state_dict(), "ema": {}}, {"key": "net"}),
    "own state without configuration": (lambda n: {**OWN_STATE, "ema": n.state_dict()}, {"preset": "tiny"}),
    "network": (lambda n: n, {}),
    "networks": (lambda n: {"net": n, "optimizer": None}, {"key": "net"}),
    "accelerated": (lambda n: edm_fast.accelerate(n), {}),
    "DataParallel": (lambda n: torch.nn.DataParallel(n), {}),
}
SAVERS = {
    "zip": torch.save,
    "old layout": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
}


@pytest.mark.parametrize("case", READ)
def test_read(case, net, tmp_path):
    make, options = READ[case]
    for saver in SAVERS if case in ("state_dict", "network") else ["zip"]:
        path = tmp_path / f"{saver}.png"  # recognised by content
        SAVERS[saver](make(net), path)
        assert same(net, edm_fast.load(path, **options)), saver
        assert options.get("key", "ema") in checkpoint.inspect(path)["networks"]


def test_state_of_a_run_of_our_own(net, tmp_path):
    torch.save({**OWN_STATE, **configured(net), "net": net.state_dict(), "ema": net.state_dict()}, tmp_path / "x.pt")
    state = checkpoint.load_training_state(tmp_path / "x.pt")
    assert state["class_name"] == "EDMPrecond" and state["init_kwargs"] == net.init_kwargs
    assert list(state["net"]) == list(net.state_dict())


def rewritten(path, change, keep_metadata=True):
    """A safetensors file whose tensors went through `change`."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() if keep_metadata else {}
    tensors = {name: change(i, t) for i, (name, t) in enumerate(safetensors.torch.load_file(path).items())}
    safetensors.torch.save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net."])
def test_wrapped_names_beside_our_configuration(prefix, net, tmp_path):
    """As somebody writes who saves the state_dict of a wrapped network with the metadata it was loaded with."""
    path = tiny_checkpoint(tmp_path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(prefixed(net, prefix), path, metadata=metadata)
    assert same(net, edm_fast.load(path))
    # two networks in one file: neither is taken for the other
    both = {name: tensor.clone() for name, tensor in (*prefixed(net, prefix).items(), *net.state_dict().items())}
    safetensors.torch.save_file(both, tmp_path / "both.safetensors", metadata=metadata)
    assert "tensors too many" in refused(tmp_path / "both.safetensors")


DTYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_safetensors_of_other_types(dtype, folder, net, tmp_path, capsys):
    path = tmp_path / ("net" if folder else "net.safetensors")
    edm_fast.save(net, path)
    rewritten(path / "model.safetensors" if folder else path, lambda _, tensor: tensor.to(dtype))
    again = edm_fast.load(path)
    assert same(net, again, dtype) and all(p.dtype == torch.float32 for p in again.parameters())
    for args in ([path, tmp_path / "b.safetensors"], ["--inspect", path]):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", *map(str, args)])
        assert not stopped.value.code, capsys.readouterr().err
    assert same(again, edm_fast.load(tmp_path / "b.safetensors"))


def test_safetensors_mixed_and_integers(net, tmp_path):
    path = tmp_path / "net.safetensors"
    edm_fast.save(net, path)
    rewritten(path, lambda i, tensor: tensor.to((torch.float32, *DTYPES)[i % 4]))
    assert all(t.dtype == torch.float32 for t in edm_fast.load(path).state_dict().values())
    rewritten(path, lambda i, tensor: tensor.to(torch.int32) if i == 3 else tensor)
    assert "is I32; expected one of F32, F16, BF16, F64" in refused(path)
    edm_fast.save(net, path)
    rewritten(path, lambda _, tensor: tensor, keep_metadata=False)
    assert "without edm-fast's configuration" in refused(path) and "--preset" in refused(path)
    assert same(net, edm_fast.load(path, preset="tiny"))


def zip_of(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"1")

    return write


def folder_of(**files):
    def write(path):
        path.mkdir()
        for name, text in files.items():
            (path / name.replace("__", ".").replace("_0", "-0")).write_text(text)

    return write


def transformers(path):
    folder_of(config__json='{"architectures": ["ViT"]}')(path)
    safetensors.torch.save_file({"w": torch.zeros(1)}, path / "model.safetensors")


def torch_file(value):
    return lambda path: torch.save(value, path)


def script(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


RUN = ("network-snapshot-000100__pkl", "network-snapshot-000200__pkl", "training-state-000200__pt")
# how it is written (or its bytes), a part of the one line it is refused with
SAID = {
    "state_dict": (torch_file(tiny().state_dict()), "a state_dict of 146 tensors without edm-fast's configuration"),
    "of another network": (torch_file({"conv.weight": torch.zeros(3)}), "edm-fast convert --preset=NAME"),
    "published state": (torch_file({"net": tiny()}), 'pass key="net"'),
    "other key": (torch_file({"model": tiny()}), "networks in it: 'model' (choose with key=..., or --key)"),
    "no network": (torch_file({"epoch": 3}), "holds no 'ema'; networks in it: none"),
    "layer": (torch_file(torch.nn.Linear(2, 2)), "'torch.nn.modules.linear' 'Linear', which edm-fast does not know"),
    "module": (torch_file({"ema": torch.nn.Linear(2, 2)}), "expected its weights: torch.save(net.state_dict(), NEW)"),
    "tensor": (torch_file(torch.zeros(3)), "holds a tensor; expected a dict"),
    "TorchScript": (script, "a TorchScript program"),
    "npz": (lambda path: np.savez(open(path, "wb"), a=np.zeros(3)), "NumPy arrays, .npz"),
    "npy": (lambda path: np.save(open(path, "wb"), np.zeros(3)), "a NumPy array"),
    "data set": (zip_of("00000/img00000000.png", "dataset.json"), "pictures: a data set?"),
    "packed": (zip_of("runs/network-snapshot-000100.pkl"), "packed checkpoints: unpack it first"),
    "other zip": (zip_of("x.txt"), "a zip archive without a pickled object"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX model"),
    "PDF": (b"%PDF-1.7", "a PDF document"),
    "picture": (b"\x89PNG\r\n\x1a\n", "a picture"),
    "gzip": (b"\x1f\x8b\x08\0", "unpack it first"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "a tar archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "JSON": (b'{"error": "no access"}', "JSON text"),
    "web page": (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
    "Python": (b"class Net:\n    pass\n", "not a checkpoint"),
    "YAML": (b"channels: 3\nsize: 32\n", "not a checkpoint"),
    "empty": (b"", "is empty"),
    "diffusers": (folder_of(model_index__json="{}"), "a folder of diffusers"),
    "diffusers network": (
        folder_of(config__json='{"_class_name": "UNet2DModel"}', diffusion_pytorch_model__safetensors=""),
        "a folder of diffusers",
    ),
    "transformers": (transformers, "its configuration is that of diffusers or transformers"),
    "run": (folder_of(**dict.fromkeys(RUN, "")), "a folder of a training run; expected one of its files, such as"),
    "the newest snapshot": (folder_of(**dict.fromkeys(RUN, "")), "network-snapshot-000200.pkl"),
    "files": (folder_of(net__pth=""), "expected a file in it, such as"),
    "configuration": (folder_of(config__json="{}"), "a configuration but no weights"),
    "pictures": (folder_of(a__png=""), "a folder of pictures"),
    "nothing": (folder_of(), "an empty folder"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("case", SAID)
def test_said(case, tmp_path):
    """One line that names it, and never as if it were an attack."""
    path = tmp_path / "file.pt"
    write, message = SAID[case]
    path.write_bytes(write) if isinstance(write, bytes) else write(path)
    said = refused(path)
    assert message in said and "refused" not in said
    try:  # and a look inside says as much, or shows it
        assert checkpoint.inspect(path)["format"]
    except checkpoint.CheckpointError as error:
        assert message in str(error)


def test_presets(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "x.pt")
    assert "expected one of baseline-" in str(
        pytest.raises(edm_fast.UserError, edm_fast.load, tmp_path / "x.pt", preset="x").value
    )
    assert "misses" in refused(tmp_path / "x.pt", preset="edm-cifar10-32x32-cond-vp")
    path = tiny_checkpoint(tmp_path)
    assert "expected no preset" in refused(path, preset="tiny")
    assert "holds no 'net'; networks in it: 'ema'" in refused(path, key="net")


def test_cached_download(net, tmp_path, monkeypatch):
    """What is wrong with a download names the file that is kept."""
    kept = tmp_path / "abc-net.pkl"
    kept.write_bytes(b"\x80\x04}")
    monkeypatch.setattr(checkpoint, "fetch", lambda *_, **__: kept)
    said = refused("https://example.com/net.pkl")
    assert f"(kept as {kept}; delete it to download again): the file is cut short" in said


PROGRAM = """
import sys
from edm_fast import checkpoint
assert checkpoint.load(sys.argv[1]).img_resolution == 8
try:
    checkpoint.load(sys.argv[2])
except checkpoint.CheckpointError as error:
    print(error)
"""


def test_optimised_python_in_the_c_locale(tmp_path):
    """Nothing hangs on assert statements or on the encoding of the terminal."""
    folder = tmp_path / "é"
    folder.mkdir()
    (folder / "bad.pkl").write_bytes(b"\x80\x02cos\nsystem\n.")
    done = subprocess.run(
        [sys.executable, "-O", "-c", PROGRAM, tiny_checkpoint(folder), str(folder / "bad.pkl")],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0 and "refused: it asks for 'os' 'system'" in done.stdout, done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes(method, tmp_path):
    """A process of its own that loads: the target is a function that the child can import."""
    child = multiprocessing.get_context(method).Process(target=checkpoint.load, args=(tiny_checkpoint(tmp_path),))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_inspect_is_plain_data(net, tmp_path):
    for name, value in {
        "a.pt": net.state_dict(),
        "b.pt": net,
        "c.pt": {"net": net, "x": torch.nn.Linear(2, 2)},
    }.items():
        torch.save(value, tmp_path / name)
        json.dumps(checkpoint.inspect(tmp_path / name))
