"""Draw the documents' picture of the service's page: docs/serve.png.

    python -m benchmarks.page_picture

Runs the demo as a user would, serves the bundle that it leaves, drops scenes that the model has never seen on the page in
Chromium, and points at a tag. It needs the extra `test` and Chromium.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from sigrl_deploy.demo import PICTURES
from tests.support.browser import SECONDS, chromium, opened, transfer
from tests.support.servers import serving

OUT = Path(__file__).resolve().parent.parent / "docs" / "serve.png"
SCENES = [PICTURES / f"scene-{number}.jpg" for number in (5, 1, 0)]
WINDOW = {"width": 1100, "height": 1060}
COLOURS = 256


def screenshot(bundle: Path) -> Image.Image:
    """The page with three tagged scenes, and the heat map of the first one's best tag."""
    from playwright.sync_api import expect

    with serving(bundle) as served, chromium() as browser, opened(browser, served.url, viewport=WINDOW) as page:
        page.dispatch_event("body", "drop", {"dataTransfer": transfer(page, *SCENES)})
        expect(page.get_by_role("status")).to_have_text(re.compile(r"\.$"), timeout=1000 * SECONDS)
        page.locator("article .tag").first.hover()
        page.locator("article .map").first.wait_for()
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run([sys.executable, "-m", "sigrl_deploy", "demo", "--out", temporary], check=True)
        drawn = screenshot(Path(temporary, "bundle"))
    drawn.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
