"""Make the pictures of the README from a real run: the terminal in mid-training, and the report of the run.

The run is trained in a terminal of 80 columns (tmux), whose screen becomes an SVG; the report is photographed by
Chromium. Only a change of what is seen there calls for new pictures.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = "cnn_cls"
COMMAND = "bigctl train recipe=cnn_cls"
COLUMNS, SIZE = 80, (1280, 1242)
LIVE = re.compile(r"step ([\d,]+)/([\d,]+)")
ESCAPE = re.compile(r"\x1b\[[\d;]*m")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

EXAMPLES = """\
examples:
  python scripts/make_pictures.py
  python scripts/make_pictures.py --out /tmp/pictures
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="default: docs/pictures")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if shutil.which("tmux") is None or browser is None:
        sys.exit("make_pictures: it needs tmux and chromium")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        screen = _trained(Path(folder))
        (options.out / "train.svg").write_text(_drawn(screen))
        subprocess.run([_bigctl(), "report", RUN], cwd=folder, check=True, capture_output=True)
        (options.out / "report.png").write_bytes(_photographed(browser, Path(folder)))
    for name in ("train.svg", "report.png"):
        print(f"{options.out / name}: {(options.out / name).stat().st_size:,} bytes")


def _bigctl() -> str:
    return str(Path(sys.executable).parent / "bigctl")


def _trained(folder: Path) -> str:
    """The screen in mid-training, with its escapes for colours; returns once the run has ended."""
    tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
    path = f"{Path(_bigctl()).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TERM": "xterm-256color"}
    size = ["-x", str(COLUMNS), "-y", "24"]
    shell = ["new-session", "-d", "-s", "seen", *size, "-c", str(folder), "PS1='$ ' bash --norc --noprofile"]
    subprocess.run([*tmux, *shell], check=True, env=environment)
    taken = ""
    try:
        subprocess.run([*tmux, "send-keys", "-t", "seen", COMMAND, "Enter"], check=True)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not (folder / "runs" / RUN / "summary.json").exists():
            capture = [*tmux, "capture-pane", "-p", "-e", "-t", "seen"]
            screen = subprocess.run(capture, check=True, capture_output=True, text=True).stdout
            lines = ESCAPE.sub("", screen).rstrip().splitlines()
            found = LIVE.search(lines[-1]) if lines else None
            step, total = (int(text.replace(",", "")) for text in found.groups()) if found else (0, 1)
            if 0.3 < step / total < 0.42:
                taken = screen.rstrip()
            time.sleep(0.05)
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    if not taken:
        sys.exit("make_pictures: the run ended before its middle was seen")
    return taken


def _drawn(screen: str) -> str:
    """A screen as an SVG that asks nobody for fonts."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in screen.splitlines():
        console.print(Text.from_ansi(line), soft_wrap=True)
    drawn = console.export_svg(title="bigctl", theme=MONOKAI, unique_id="bigctl")
    return re.sub(r"\s*@font-face \{.*?\}\n", "\n", drawn, flags=re.DOTALL)


def _photographed(browser: str, folder: Path) -> bytes:
    """The top of the report as a PNG with few colours."""
    from PIL import Image

    page, picture = folder / "runs" / RUN / "report.html", folder / "report.png"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    window = [f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={folder / 'browser'}"]
    subprocess.run(
        [browser, *flags, *window, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True
    )
    packed = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(96).save(packed, "PNG", optimize=True)
    return packed.getvalue()


if __name__ == "__main__":
    main()
