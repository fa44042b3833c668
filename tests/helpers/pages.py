"""Looking at HTML pages: by their text, and in Debian's Chromium where there is one."""

import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE = 360  # pixels
PROBE = f"""<script>
document.documentElement.style.width = "{PHONE}px";
const broken = [...document.images].filter(image => !image.naturalWidth).length;
document.title = `overflow ${{document.body.scrollWidth - document.body.clientWidth}} broken ${{broken}}`;
</script></body>"""


def check_text(path):
    """Nothing is fetched from elsewhere, and what is opened is closed."""
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    for tag in set(re.findall(r"</(\w+)>", text)):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


def check_in_a_browser(path, folder):
    """No message on the console, every picture there, and no wider than a phone. Skips without Chromium."""
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("no Chromium to open the page with")
    probed = folder / f"probed-{path.name}"
    probed.write_text(path.read_text().replace("</body>", PROBE))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/chromium"]
    command += ["--enable-logging=stderr", "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "<title>overflow 0 broken 0</title>" in done.stdout, re.findall("<title>.*", done.stdout)
