"""Paths as users give them, and files that are written whole or not at all."""

import io
import json
import os
import pickle
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from edm_fast import checkpoint, files
from edm_fast.data import ImageFolderDataset
from edm_fast.errors import UserOSError
from helpers.tiny_networks import tiny


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("~", "{home}"),
        ("~/a/b.pkl", "{home}/a/b.pkl"),
        (Path("~/a"), "{home}/a"),
        (b"a\xff", "a\udcff"),
        ("a/~/b", "a/~/b"),
        ("a b", "a b"),
        ("./~/b", "{here}/~/b"),  # a folder of that name
        ("~old.pkl", "{here}/~old.pkl"),  # a file that exists
    ],
)
def test_user_path(given, want, tmp_path):
    Path("~old.pkl").write_text("")
    want = want.format(home=tmp_path / "home", here=tmp_path)
    found = files.user_path(given)
    assert found == want
    assert files.user_path(Path(found)) == want  # twice is once


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "empty text"),
        (" \n", "empty text"),
        ("a\0b", "NUL"),
        ("file:///tmp/x", "is an address; expected a path"),
        ("http://host/x", "is an address; expected a path"),
        ("~nosuchuser/x", "no home folder is known for ~nosuchuser"),
    ],
)
def test_what_is_no_path(given, message):
    with pytest.raises(UserOSError, match=message):
        files.user_path(given)


@pytest.mark.parametrize("home", ["", None])
def test_no_home(home, monkeypatch):
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("EDM_FAST_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(files.tempfile, "tempdir", os.getcwd())
    files._temporary_cache.cache_clear()
    with pytest.raises(UserOSError, match="no home folder is known for ~"):
        files.user_path("~/x")
    folder = files.cache_folder()
    assert folder.parent == Path.cwd() and folder.stat().st_mode & 0o077 == 0
    os.chmod(folder, 0o777)  # somebody else may have put a file into it
    files._temporary_cache.cache_clear()
    assert files.cache_folder() != folder
    files._temporary_cache.cache_clear()


def png():
    buffer = io.BytesIO()
    PIL.Image.new("L", (2, 2)).save(buffer, format="png")
    return buffer.getvalue()


def archive(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, "x")
    return buffer.getvalue()


def saved(save, *args, **kwargs):
    buffer = io.BytesIO()
    save(*args, buffer) if save is torch.save else save(buffer, *args, **kwargs)
    return buffer.getvalue()


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.png"))
    return buffer.getvalue()


CONTENT = {
    "gif": b"GIF89a\1\0\1\0\0\0\0;",
    "json": b'\n {"a": 1}',
    "npz": saved(np.savez, mu=np.zeros(2)),
    "pickle": pickle.dumps({}),
    "png": png(),
    "safetensors": b"\x40\0\0\0\0\0\0\0{}",
    "tar": tar(),
    "text": "# é".encode(),
    "torch": saved(torch.save, {"a": torch.zeros(1)}),
    "zip": archive("00000/img00000000.png"),
    "other": b"\xff\xd8\xff\xe0JFIF",
}
assert CONTENT.keys() == files.KINDS.keys()


def test_kinds_by_content():
    for kind, data in {**CONTENT, None: b""}.items():
        Path("x").write_bytes(data)
        assert files.kind_of("x") == kind
    Path("x").write_bytes(b"a" * (files.HEAD - 1) + "é".encode())  # cut within a character
    assert files.kind_of("x") == "text"


@pytest.mark.parametrize("kind", CONTENT)
def test_only_a_file_of_the_same_kind_is_replaced(kind):
    for other, data in CONTENT.items():
        Path("x").write_bytes(data)
        if other == kind:
            assert files.check_output("x", kind)
            with files.atomic_write("x", kind=kind) as file:
                file.write(b"new")
            assert Path("x").read_bytes() == b"new"
            continue
        for write in (files.check_output, lambda path, kind: files.atomic_write(path, kind=kind).__enter__()):
            with pytest.raises(UserOSError, match="x exists and is .*; expected a new name, or .* to replace"):
                write("x", kind)
        assert Path("x").read_bytes() == data
    Path("x").write_bytes(b"")  # as mktemp makes it
    assert files.check_output("x", kind)
    assert sorted(os.listdir()) == ["home", "x"]


@pytest.fixture
def descriptors():
    opened = []
    yield opened
    for descriptor in opened:
        os.close(descriptor)


def make(name, descriptors):
    """Something at x that is no regular file one may write."""
    if name == "folder":
        os.mkdir("x")
    elif name == "pipe":
        os.mkfifo("x")
    elif name == "link to a pipe":
        os.mkfifo("pipe")
        os.symlink("pipe", "x")
    elif name == "device":
        os.symlink("/dev/null", "x")
    elif name == "stream":
        descriptors.extend(os.pipe())
        os.symlink(f"/dev/fd/{descriptors[1]}", "x")
    elif name == "loop":
        os.symlink("y", "x")
        os.symlink("x", "y")
    elif name == "read-only":
        Path("x").write_text("kept")
        os.chmod("x", 0o444)
    return "x"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "x is a folder"),
        ("pipe", "x is a device, pipe or socket"),
        ("link to a pipe", "x is a device, pipe or socket"),
        ("device", "x is a device, pipe or socket"),
        ("stream", "x is a device, pipe or socket"),
        ("loop", "cannot write x: Too many levels of symbolic links"),
        ("read-only", "x is read-only"),
    ],
)
def test_what_is_never_replaced(name, message, descriptors):
    path = make(name, descriptors)
    before = os.lstat(path)
    for write in (files.check_output, lambda path: files.atomic_write(path).__enter__()):
        with pytest.raises(UserOSError, match=message):
            write(path)
    after = os.lstat(path)
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)


@pytest.mark.parametrize("path", ["file/x", "file/deeper/x", "n" * 256])
def test_where_no_file_can_be(path):
    Path("file").write_text("in the way")
    for write in (files.check_output, lambda path: files.atomic_write(path).__enter__()):
        with pytest.raises(UserOSError, match=f"cannot write {path}|file is a file"):
            write(path)
    assert sorted(os.listdir()) == ["file", "home"]


LINKS = {  # name: target
    "to a file": {"x": "there"},
    "to no file yet": {"x": "new"},
    "into a folder that is missing": {"x": "a/b/new"},
    "chain": {"x": "y", "y": "z", "z": "there"},
    "into another folder": {"x": "home/new"},
}


@pytest.mark.parametrize("links", LINKS.values(), ids=LINKS)
def test_links_stay_and_their_target_is_written(links):
    Path("there").write_text("old")
    for name, target in links.items():
        os.symlink(target, name)
    with files.atomic_write("x", "w") as file:
        file.write("whole")
    assert all(os.readlink(name) == target for name, target in links.items())
    assert Path("x").read_text() == "whole" and Path(list(links.values())[-1]).read_text() == "whole"
    assert not list(Path().rglob("*.tmp"))


def test_names_modes_and_text():
    long = "é" * 125 + ".npz"
    with files.atomic_write(long) as file:
        file.write(b"x")
    assert stat.S_IMODE(os.stat(long).st_mode) == 0o666 & ~files.umask()
    os.chmod(long, 0o640)
    with files.atomic_write(long, "w") as file:
        file.write("b\udce9")  # a Latin-1 name, as Python reads it
    assert stat.S_IMODE(os.stat(long).st_mode) == 0o640
    assert Path(long).read_text() == "b\\udce9"
    with files.atomic_write("~/a/x") as file:
        file.write(b"x")
    assert Path("home/a/x").exists() and not os.path.lexists("~")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError(28, "No space left on device")])
@pytest.mark.parametrize("existed", [False, True])
def test_nothing_half_written(error, existed):
    if existed:
        Path("x").write_text("old")
    with pytest.raises(error if isinstance(error, type) else type(error)):
        with files.atomic_write("x") as file:
            file.write(b"half")
            raise error
    assert sorted(os.listdir()) == ["home", "x"][: 1 + existed]
    assert not existed or Path("x").read_text() == "old"


def test_same_file():
    Path("a").write_text("")
    os.link("a", "hard")
    os.symlink("a", "soft")
    for other in ("a", "./a", "hard", "soft", Path("a").absolute()):
        assert files.same_file("a", other)
    assert files.same_file("new", "./new") and not files.same_file("a", "b") and not files.same_file("http://a", "a")


def test_python_callers_may_use_the_home_folder():
    net = tiny()
    checkpoint.save(net, "~/net.safetensors")
    checkpoint.save_pkl(net, Path("~/net.pkl"))
    checkpoint.save(net, "~/folder")
    for name in ("net.safetensors", "net.pkl", "folder"):
        assert checkpoint.load(f"~/{name}") and checkpoint.inspect(Path("~") / name)
    Path("home/images").mkdir()
    Path("home/images/0.png").write_bytes(png())
    assert len(ImageFolderDataset("~/images")) == 1
    for empty in ("", " "):
        for call in (checkpoint.load, checkpoint.inspect, lambda path: checkpoint.save(net, path), ImageFolderDataset):
            with pytest.raises(ValueError, match="empty text; expected a path"):
                call(empty)
    assert os.listdir() == ["home"]


def test_python_writers_spare_files_of_another_kind():
    net = tiny()
    Path("package.json").write_text(json.dumps({}))
    for save in (checkpoint.save_pkl, lambda net, path: checkpoint.save(net, path)):
        os.makedirs("f.safetensors", exist_ok=True)
        with pytest.raises(UserOSError):
            save(net, "package.json" if save is checkpoint.save_pkl else "f.safetensors")
    assert Path("package.json").read_text() == "{}"
