"""Opens a page in Chromium, light and dark, and fails if what is seen is blank; skipped where there is no Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
WIDTH, HEIGHT, STRIP = 1000, 3000, 500  # pixels; every strip of a page of this length has something on it
LEAST_SHARE = 0.005  # of a strip's pixels that differ from its ground


def main(page: Path) -> int:
    """Returns 0 if the page can be seen or there is no browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"skipped: none of {', '.join(BROWSERS)} is installed")
        return 0
    grounds = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        pixels = screenshot(browser, page, scheme)
        shares = [share_drawn(pixels[top : top + STRIP]) for top in range(0, HEIGHT, STRIP)]
        grounds[name] = float(pixels[0, 0].mean())
        print(f"{name}: {', '.join(f'{share:.1%}' for share in shares)} of the strips are drawn on")
        if min(shares) < LEAST_SHARE:
            print(f"{page} looks blank in part", file=sys.stderr)
            return 1
    if not grounds["dark"] < 64 < 192 < grounds["light"]:
        print(f"the grounds of the light and the dark page are {grounds}", file=sys.stderr)
        return 1
    return 0


def screenshot(browser: str, page: Path, scheme: int) -> np.ndarray:
    """Returns the pixels (HEIGHT, WIDTH, 3) of a page; scheme is 0 for dark and 1 for light."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        options = [
            f"--user-data-dir={folder}/profile",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture}",
        ]
        subprocess.run(
            [browser, *QUIET, *options, page.resolve().as_uri()], check=True, timeout=120, capture_output=True
        )
        return np.asarray(Image.open(picture).convert("RGB"), dtype=int)


def share_drawn(pixels: np.ndarray) -> float:
    """Returns the share of pixels (H, W, 3) that differ from the commonest colour."""
    flat = pixels @ np.array([65536, 256, 1])
    _, counts = np.unique(flat, return_counts=True)
    return 1 - float(counts.max()) / flat.size


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
