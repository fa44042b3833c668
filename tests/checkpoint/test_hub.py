"""Networks on the Hugging Face hub, offline: its file layout, the model card, and that nothing else is read."""

import dataclasses
import json
import sys
import warnings

import pytest
import torch

import edm_fast
from edm_fast import checkpoint
from edm_fast.checkpoint import _hub
from helpers.command_line import refused, run
from helpers.hub_folder import Hub
from helpers.tiny_networks import tiny


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Hub(tmp_path / "hub", monkeypatch)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def tuned_for(net):
    found = edm_fast.load_sampler("demo")
    return dataclasses.replace(found, checkpoint={"name": "tiny", "digest": checkpoint.weights_digest(net)})


def test_there_and_back(hub, capsys):
    """The card of the first commit stays; each commit can be had."""
    first, second = tiny(), tiny(num_blocks=2)
    told = edm_fast.push_to_hub(first, "ann/net", license="apache-2.0", private=True, message="first")
    assert told.endswith("first") and hub.made == [("ann/net", True)]
    commit = hub.head("ann/net").name
    (hub.head("ann/net") / "README.md").write_text("by hand")
    with pytest.warns(checkpoint.CheckpointWarning, match="ann/net: the model card there stays, without sampler$"):
        edm_fast.push_to_hub(second, "ann/net", sampler=tuned_for(second))
    assert {path.name for path in hub.head("ann/net").iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "model.sampler.json")
    }
    assert (hub.head("ann/net") / "README.md").read_text() == "by hand"
    for old in (edm_fast.from_pretrained("ann/net", revision=commit), edm_fast.load(f"ann/net@{commit}")):
        assert same(old, first)
    for new in (edm_fast.from_pretrained("ann/net", device="cpu"), edm_fast.load("ann/net")):
        assert same(new, second)
    assert edm_fast.load_sampler("ann/net", second).settings == edm_fast.load_sampler("demo").settings
    assert run("convert", "ann/net", "mine").exit_code == 0
    assert same(edm_fast.load("mine"), second)


def test_a_commit_of_other_weights_takes_their_card_along(hub):
    """What was written by hand stays, as does a card of the same weights; the commits before have what is replaced."""
    first, second = tiny(), tiny(num_blocks=2)
    edm_fast.push_to_hub(first, "ann/net", license="mit", sampler=tuned_for(first))
    before = hub.head("ann/net")
    (before / "README.md").write_text((before / "README.md").read_text() + "and by hand")
    with pytest.warns(checkpoint.CheckpointWarning, match="card there stays, without license, training$"):
        given = {"license": "apache-2.0", "training": {"batch_size": 7}, "sampler": tuned_for(first)}
        edm_fast.push_to_hub(first, "ann/net", **given)
    assert (hub.head("ann/net") / "README.md").read_text().endswith("and by hand")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edm_fast.push_to_hub(first, "ann/net", license="mit")
    assert (hub.head("ann/net") / "model.sampler.json").exists()
    edm_fast.push_to_hub(second, "ann/net", license="apache-2.0")
    card = (hub.head("ann/net") / "README.md").read_text()
    assert checkpoint.weights_digest(second) in card and "license: apache-2.0" in card and "by hand" not in card
    assert not (hub.head("ann/net") / "model.sampler.json").exists()
    assert (before / "model.sampler.json").exists()
    edm_fast.push_to_hub(first, "ann/net", sampler=tuned_for(first))
    assert edm_fast.load_sampler("ann/net", first).settings == edm_fast.load_sampler("demo").settings


def test_a_card_of_another_sampler_is_outdated(hub, tmp_path):
    """Of none, too; on the hub it is replaced, in a folder set aside."""
    net = tiny()
    tuned = tuned_for(net)
    faster = dataclasses.replace(tuned, error={**tuned.error, "worst": 77.7})
    for number, sampler in enumerate([None, tuned, faster]):
        edm_fast.push_to_hub(net, "ann/net", license="mit", sampler=sampler)
        checkpoint.save(net, tmp_path / "net", checkpoint.hub_files(net, license="mit", sampler=sampler))
        for card in (hub.head("ann/net") / "README.md", tmp_path / "net/README.md"):
            assert checkpoint.left_untold(card.read_text(), "mit", None, sampler) == []
        assert len([*(tmp_path / "net").glob("README.md.old*")]) == number  # none is lost
    assert "77.7" not in (tmp_path / "net/README.md.old2").read_text()
    edm_fast.push_to_hub(net, "ann/net")
    assert "77.7" in (hub.head("ann/net") / "README.md").read_text()


def test_a_commit_in_between_is_not_lost(hub, monkeypatch):
    first = tiny()
    edm_fast.push_to_hub(first, "ann/net")

    def slow(text, **kwargs):
        hub.upload_folder("ann/net", hub.head("ann/net"))
        return False

    monkeypatch.setattr(checkpoint, "is_outdated", slow)
    with pytest.raises(edm_fast.UserError, match="cannot be written to the Hugging Face hub .a commit has happened"):
        edm_fast.push_to_hub(first, "ann/net")


def test_weights_of_another_network_written_into_a_folder(tmp_path):
    """Their configuration goes along; that of another program stays."""
    checkpoint.save(tiny(), tmp_path / "net")
    second = tiny(num_blocks=2)
    checkpoint.save(second, tmp_path / "net/model.safetensors")
    assert same(edm_fast.load(tmp_path / "net"), second)
    (tmp_path / "net/config.json").write_text('{"architectures": []}')
    checkpoint.save(second, tmp_path / "net/model.safetensors")
    assert (tmp_path / "net/config.json").read_text() == '{"architectures": []}'


def test_weights_written_into_a_folder_set_its_card_aside(tmp_path):
    """By the name of the file in it, too."""
    first = tiny()
    checkpoint.save(first, tmp_path / "net", checkpoint.hub_files(first, sampler=tuned_for(first)))
    checkpoint.save(first, tmp_path / "net/model.safetensors")
    assert (tmp_path / "net/README.md").exists()
    second = tiny()
    torch.nn.init.normal_(next(second.parameters()))
    checkpoint.save(second, tmp_path / "net/model.safetensors")
    names = {path.name for path in (tmp_path / "net").iterdir()}
    assert names == {"README.md.old", "config.json", "model.safetensors", "model.sampler.json.old"}
    assert same(edm_fast.load(tmp_path / "net"), second)


def test_what_a_card_says(hub, tmp_path):
    (tmp_path / "run").mkdir()
    checkpoint.save_pkl(tiny(label_dim=7), tmp_path / "run/snapshot.pkl")
    options = {"batch_size": 96, "run_dir": "/home/ann/secret", "optimizer_kwargs": {"lr": 1e-3}, "a": "x|y"}
    options["dataset_kwargs"] = {"path": "/home/ann/data.zip", "xflip": True}
    (tmp_path / "run/training_options.json").write_text(json.dumps(options))
    tuned = tuned_for(edm_fast.load("run/snapshot.pkl"))
    (tmp_path / "run/net.sampler.json").write_text(tuned.text())
    words = ["--license=cc-by-4.0", "--sampler=run/net.sampler.json"]
    assert run("convert", *words, "run/snapshot.pkl", "shapes").exit_code == 0
    card = (tmp_path / "shapes/README.md").read_text()
    head, text = card.removeprefix("---\n").split("---\n", 1)
    assert "license: cc-by-4.0\n" in head and "library_name: edm-fast\n" in head
    for row in ("batch_size | 96", "optimizer_kwargs.lr | 0.001", "dataset_kwargs.xflip | true", r"a | x\|y"):
        assert f"| {row} |" in text
    for row in ("network | EDMPrecond with SongUNet", "classes | 7", f"worst | {tuned.error['worst']:.3g}"):
        assert f"| {row} |" in text
    assert "/home" not in card and 'edm_fast.load("USER/shapes")' in card
    assert (tmp_path / "shapes/model.sampler.json").read_text() == tuned.text()
    # a card that is there may have been written by somebody
    (tmp_path / "shapes/README.md").write_text("by hand")
    done = run("convert", "--overwrite", "run/snapshot.pkl", "shapes")
    assert done.exit_code == 0 and done.stderr == ""
    done = run("convert", "--overwrite", "--license=mit", words[1], "run/snapshot.pkl", "shapes")
    assert done.exit_code == 0
    assert done.stderr == "Warning: the model card in shapes stays, without license, sampler\n"
    assert (tmp_path / "shapes/README.md").read_text() == "by hand"
    assert (tmp_path / "shapes/model.sampler.json").read_text() == tuned.text()
    # but one that names other weights makes room, as does their sampler
    (tmp_path / "shapes/README.md").write_text(card + "by hand")
    assert run("convert", "--overwrite", "run/snapshot.pkl", "shapes").exit_code == 0
    assert (tmp_path / "shapes/README.md").read_text() == card + "by hand"
    edm_fast.save(tiny(num_blocks=2), "other.safetensors")
    assert run("convert", "--overwrite", "other.safetensors", "shapes").exit_code == 0
    assert "cc-by-4.0" not in (tmp_path / "shapes/README.md").read_text()
    assert (tmp_path / "shapes/README.md.old").read_text() == card + "by hand"
    assert not (tmp_path / "shapes/model.sampler.json").exists()
    assert (tmp_path / "shapes/model.sampler.json.old").read_text() == tuned.text()
    # options that nobody asked for are no reason to stop
    (tmp_path / "run/training_options.json").write_text("{")
    done = run("convert", "run/snapshot.pkl", "again")
    assert done.exit_code == 0 and done.stderr.count("\n") == 1
    assert "Warning: run/training_options.json is not valid JSON" in done.stderr
    # the code of a card runs as it stands
    edm_fast.push_to_hub(edm_fast.load("demo"), "ann/digits", sampler=edm_fast.load_sampler("demo"))
    code = (hub.head("ann/digits") / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code.replace("range(16)", "range(1)"), "card", "exec"), {})
    assert (tmp_path / "images.png").exists()


def test_nobody_answers(hub, monkeypatch):
    """What is not in the cache is asked for once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it tries again"))
    assert "bob/net: no such file or folder, and no repository of the" in refused("convert", "bob/net", "x")


def test_refusals(hub, tmp_path, monkeypatch):
    checkpoint.save(tiny(), "net.safetensors")
    cases = {
        ("--license=MY OWN", "net.safetensors", "x"): "expected an identifier of the hub such as apache-2.0",
        ("--license=mit", "net.safetensors", "x.safetensors"): "--license goes into a folder",
        ("--sampler=demo.json", "--inspect", "net.safetensors"): "--sampler goes into a folder",
        ("--training-options=net.safetensors", "net.safetensors", "x"): "net.safetensors is not valid JSON",
        ("--training-options=none", "net.safetensors", "x"): "none cannot be read (No such file",
        ("bob/net", "x"): "bob/net: no such file or folder, and no repository of the Hugging Face hub that can be read",
        ("b" * 300 + "/net", "x"): "no repository of the Hugging Face hub that can be read",
        ("bob/net@../../x", "x"): "bob/net@../../x: no such file or folder\n",
        ("bob/net.pkl", "x"): "bob/net.pkl: no such file or folder\n",
    }
    for words, message in cases.items():
        assert message in refused("convert", *words)
    (tmp_path / "bob").mkdir()
    assert "bob/net: no such file or folder\n" in refused("convert", "bob/net", "x")
    with pytest.raises(edm_fast.UserError, match="no name of a repository"):
        edm_fast.push_to_hub(tiny(), "net")
    with pytest.raises(edm_fast.UserError, match="cannot save a Linear"):
        edm_fast.push_to_hub(torch.nn.Linear(2, 2), "ann/net")
    assert not hub.made
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "ann/net: no such file or folder; repositories of the" in refused("convert", "ann/net", "x")


def test_only_safetensors_and_json(hub, monkeypatch):
    """A repository of pickles is none of ours, and no pickle is ever asked for."""
    folder = hub.head("eve/net")
    folder.mkdir(parents=True)
    for name in ("network-snapshot.pkl", "model.pkl", "pytorch_model.bin"):
        checkpoint.save_pkl(tiny(), folder / name) if name.endswith("pkl") else (folder / name).write_bytes(b"x")
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs/main").write_text(folder.name)
    asked = []
    import huggingface_hub

    real = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, file, **kw: asked.append(file) or real(repo, file, **kw)
    )
    with pytest.raises(edm_fast.UserError, match=r"eve/net: .* hub that can be read \(config.json: "):
        edm_fast.load("eve/net")
    with pytest.raises(AssertionError):
        _hub.download("eve/net", ("network-snapshot.pkl",))
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    checkpoint.save(tiny(), folder / "model.safetensors")
    with pytest.raises(edm_fast.UserError, match="that of diffusers or transformers"):
        edm_fast.load("eve/net")
    assert set(asked) <= {"config.json", "model.safetensors"}
