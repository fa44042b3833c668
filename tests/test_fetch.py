"""files.fetch against a server on this machine: the cache, checksums, and downloads that stop half-way."""

import gzip
import hashlib
import http.server
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from edm_fast import checkpoint, files
from edm_fast.cli import main
from edm_fast.errors import UserError
from helpers import tiny_training

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


PAGE = b"\n<!DOCTYPE html>\n<title>Log in</title>"
BODIES = {  # path: headers, body
    "/login": ({"Content-Type": "text/html"}, b"please log in"),
    "/page.pkl": ({}, PAGE),
    "/page.npz": ({"Content-Type": "application/octet-stream"}, b"\xef\xbb\xbf<HTML><body>quota exceeded"),
    "/pointer.pkl": ({}, b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
    "/empty.pkl": ({}, b""),
    "/gzip": ({"Content-Encoding": "gzip"}, gzip.compress(CONTENT)),
    "/gzip-unsized-cut": ({"Content-Encoding": "gzip"}, gzip.compress(CONTENT)[:-9]),
    "/brotli": ({"Content-Encoding": "br"}, CONTENT),
    "/text-html-by-mistake": ({"Content-Type": "text/html"}, CONTENT),
    "/damaged.npz": ({}, b"PK\3\4damaged"),
    "/damaged.pkl": ({}, b"\x80\4damaged"),
}


class Handler(http.server.BaseHTTPRequestHandler):
    requests: list[str] = []

    def do_GET(self):
        self.requests.append(self.path)
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/dir/net.pkl" if "ok" in self.path else "file:///etc/passwd")
            self.end_headers()
            return
        headers, body = BODIES.get(self.path, ({}, CONTENT))
        self.send_response(200)
        if "unsized" not in self.path:
            self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2 if "/cut" in self.path else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_downloaded_once(server, tmp_path):
    first = files.fetch(f"{server}/dir/net.pkl", cache_dir=tmp_path)
    assert first.read_bytes() == CONTENT and first.name.endswith("-net.pkl")
    assert files.fetch(f"{server}/dir/net.pkl", cache_dir=tmp_path, sha256=DIGEST.upper()) == first
    assert Handler.requests == ["/dir/net.pkl"]
    # another address is another file, whatever its name
    assert files.fetch(f"{server}/other/net.pkl?x=../../y", cache_dir=tmp_path).parent == tmp_path
    assert len(os.listdir(tmp_path)) == 2


def test_cache_folder(server, tmp_path, monkeypatch):
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path / "a"))
    assert files.fetch(f"{server}/unsized").parent == tmp_path / "a"
    monkeypatch.delenv("EDM_FAST_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(files.sys, "platform", platform)
        assert files.cache_folder().name == "edm-fast"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/cut", f"stopped after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("/missing", "answered 404"),
        ("/moved", "answered 302|cannot be downloaded"),
        ("/login", "the server sent a web page, not a file"),
        ("/page.pkl", "the server sent a web page, not a file"),
        ("/page.npz", "the server sent a web page, not a file"),
        ("/pointer.pkl", "the server sent a Git LFS pointer"),
        ("/empty.pkl", "the server sent an empty file"),
        ("/gzip-unsized-cut", "the download stopped before its end"),
        ("/brotli", "encoding 'br'; expected none, or gzip"),
    ],
)
def test_nothing_is_kept_of_a_failure(server, tmp_path, path, message):
    with pytest.raises(OSError, match=message) as caught:
        files.fetch(server + path, cache_dir=tmp_path)
    assert isinstance(caught.value, UserError) and str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


def test_redirect(server, tmp_path):
    assert files.fetch(f"{server}/moved-ok", cache_dir=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["/gzip", "/text-html-by-mistake"])
def test_what_servers_add(server, tmp_path, path):
    assert files.fetch(server + path, cache_dir=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("old", [PAGE, b"", b"version https://git-lfs.github.com/spec/v1"])
def test_an_old_web_page_in_the_cache_is_downloaded_again(server, tmp_path, old):
    path = files.fetch(f"{server}/net.pkl", cache_dir=tmp_path)
    path.write_bytes(old)
    assert files.fetch(f"{server}/net.pkl", cache_dir=tmp_path).read_bytes() == CONTENT
    assert Handler.requests == ["/net.pkl"] * 2


def test_a_download_that_cannot_be_read_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path))
    kept = rf"kept as {tmp_path}/\w+-damaged\.\w+; delete it to download again"
    for read in (checkpoint.load, checkpoint.inspect, checkpoint.load_training_state):
        with pytest.raises(UserError, match=kept):
            read(f"{server}/damaged.pkl")
    for args in (["calc", "--images=x", f"--ref={server}/damaged.npz"], ["ref", "--dest=y", "--data=d.zip"]):
        tiny_training.write_dataset(tmp_path / "d.zip")
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(main, ["fid", *args, f"--detector={server}/damaged.npz"])
        assert result.exit_code == 2 and re.search(kept, result.stderr), result.output
        assert result.stderr.count("\n") == 1


def test_interrupted(server, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.fetch(f"{server}/net.pkl", cache_dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_many_at_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: files.fetch(f"{server}/net.pkl", cache_dir=tmp_path), range(4)))
    assert len({*paths}) == 1 and os.listdir(tmp_path) == [paths[0].name] and paths[0].read_bytes() == CONTENT


def test_checksum(server, tmp_path):
    with pytest.raises(UserError, match=f"sha256 is {DIGEST}; expected 0000"):
        files.fetch(f"{server}/net.pkl", cache_dir=tmp_path, sha256="0" * 64)
    assert os.listdir(tmp_path) == []
    path = files.fetch(f"{server}/net.pkl", cache_dir=tmp_path, sha256=DIGEST)
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match="sha256"):
        files.fetch(f"{server}/net.pkl", cache_dir=tmp_path, sha256=DIGEST)
    with pytest.raises(UserError, match="64 hexadecimal"):
        files.fetch(f"{server}/net.pkl", cache_dir=tmp_path, sha256="x")


def test_local_paths(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(CONTENT)
    assert files.fetch(path) == path and files.fetch(str(path), sha256=DIGEST) == path
    with pytest.raises(UserError, match="sha256"):
        files.fetch(path, sha256="0" * 64)
    with pytest.raises(OSError, match="no such file"):
        files.fetch(tmp_path / "none")
    with pytest.raises(UserError, match="needs a file"):
        files.fetch(tmp_path, sha256=DIGEST)


def test_no_server(tmp_path):
    for url in ("http://127.0.0.1:9/x", "http://[bad/x", "https://"):
        with pytest.raises(UserError) as caught:
            files.fetch(url, cache_dir=tmp_path)
        assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


def test_unwritable_cache(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        files.fetch(f"{server}/net.pkl", cache_dir=tmp_path / "file")
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    files._temporary_cache.cache_clear()
    path = files.fetch(f"{server}/net.pkl")
    assert path.read_bytes() == CONTENT and path.parent.parent == tmp_path
    assert f"the cache folder {tmp_path / 'file'} cannot be written" in capsys.readouterr().err
    assert files.fetch(f"{server}/other.pkl") != path and capsys.readouterr().err == "", "said once"
    assert files.fetch(f"{server}/net.pkl") == path and len(Handler.requests) == 3  # one of them above
    files._temporary_cache.cache_clear()
