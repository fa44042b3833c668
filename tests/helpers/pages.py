"""Looking at HTML pages: by their text, and in Debian's Chromium where there is one."""

import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import PIL.Image
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE = 360  # pixels
PROBE = f"""<script>
document.documentElement.style.width = "{PHONE}px";
const broken = [...document.images].filter(image => !image.naturalWidth).length;
document.title = `overflow ${{document.body.scrollWidth - document.body.clientWidth}} broken ${{broken}}`;
</script></body>"""
# a window cannot be as narrow as a phone, a frame can
FRAMES = """<!doctype html><link rel="icon" href="data:,"><body style="margin: 0"><script>
const frames = PAGES.map(page => {
    const frame = document.createElement("iframe");
    frame.src = page; frame.width = WIDTH; frame.height = 640; frame.style.border = "0"; frame.style.display = "block";
    return document.body.appendChild(frame);
});
window.onload = () => document.title = JSON.stringify(frames.map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const broken = [...page.images].filter(image => !image.naturalWidth).length;
    return [page.title, Math.max(root.scrollWidth, page.body.scrollWidth) - root.clientWidth, broken];
}));
</script>"""


def check_text(path):
    """Nothing is fetched from elsewhere, and what is opened is closed."""
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    for tag in set(re.findall(r"</(\w+)>", text)):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


def check_in_a_browser(path, folder):
    """No message on the console, every picture there, and no wider than a phone. Skips without Chromium."""
    probed = folder / f"probed-{path.name}"
    probed.write_text(path.read_text().replace("</body>", PROBE))
    title = browse(probed.as_uri(), folder, "--dump-dom")
    assert title == "overflow 0 broken 0", title


def check_site(site, folder):
    """As `check_in_a_browser`, all pages of a site, served as it would be; the pixels of the first one on a phone."""
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("index.html"))
    (site / "all.html").write_text(FRAMES.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(PHONE)))
    (site / "first.html").write_text(FRAMES.replace("PAGES", '["index.html"]').replace("WIDTH", str(PHONE)))
    picture = folder / "phone.png"
    with served(site) as address:
        found = json.loads(browse(f"{address}/all.html", folder, "--dump-dom"))
        browse(f"{address}/first.html", folder, "--window-size=720,640", f"--screenshot={picture}")
    assert len(found) == len(pages) and all(title for title, _, _ in found)
    assert [(title, over, broken) for title, over, broken in found if over or broken] == []
    with PIL.Image.open(picture) as image:
        return image.convert("RGB").copy()


def browse(address, folder, *options):
    """The title of a page that says nothing on the console."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("no Chromium to open the page with")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/chromium"]
    command += ["--enable-logging=stderr", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    return "".join(re.findall("<title>(.*?)</title>", done.stdout)[:1])


@contextlib.contextmanager
def served(folder):
    """The address at which the files of a folder are served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
