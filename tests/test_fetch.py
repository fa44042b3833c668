"""files.fetch against a server on this machine: the cache, checksums, and downloads that stop half-way."""

import hashlib
import http.server
import os
import threading

import pytest

from edm_fast import files
from edm_fast.errors import UserError

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


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
        self.send_response(200)
        if "unsized" not in self.path:
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2 if "cut" in self.path else None])

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
    ],
)
def test_nothing_is_kept_of_a_failure(server, tmp_path, path, message):
    with pytest.raises(OSError, match=message) as caught:
        files.fetch(server + path, cache_dir=tmp_path)
    assert isinstance(caught.value, UserError) and str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []


def test_redirect(server, tmp_path):
    assert files.fetch(f"{server}/moved-ok", cache_dir=tmp_path).read_bytes() == CONTENT


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


def test_unwritable_cache(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        files.fetch(f"{server}/net.pkl", cache_dir=tmp_path / "file")
