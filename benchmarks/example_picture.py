"""Draw the README's picture: a scene that the shipped model has never seen, and where it found its best labels.

    python -m benchmarks.example_picture

Runs the demo and `sigrl-deploy infer --heatmaps` as a user would, and puts the results side by side into docs/example.jpg.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sigrl_deploy.demo import PICTURES

OUT = Path(__file__).resolve().parent.parent / "docs" / "example.jpg"
SCENE = PICTURES / "scene-5.jpg"
LABELS = 3
GAP = 12  # pixels between the panels


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        sigrl_deploy("demo", "--out", temporary)
        bundle, maps = Path(temporary, "bundle"), Path(temporary, "maps")
        options = ["--bundle", bundle, "--top", LABELS, "--heatmaps", maps, "--format", "json", "--device", "cpu"]
        (record,) = json.loads(sigrl_deploy("infer", SCENE, *options))
        drawn = side_by_side(Image.open(SCENE), [Image.open(tag["heatmap"]) for tag in record["tags"]])
    drawn.save(OUT, quality=92)
    print(f"{OUT}: {', '.join(tag['label'] for tag in record['tags'])}; {OUT.stat().st_size / 1000:.0f} kB")


def sigrl_deploy(*arguments: Any) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "sigrl_deploy", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def side_by_side(picture: Image.Image, heatmaps: Sequence[Image.Image]) -> Image.Image:
    """The picture as wide as its heat maps, which have a caption below, and then those."""
    width, height = heatmaps[0].size
    canvas = Image.new("RGB", ((width + GAP) * (1 + len(heatmaps)) - GAP, height), "white")
    scaled = picture.resize((width, width * picture.height // picture.width), Image.Resampling.BICUBIC)
    for i, panel in enumerate([scaled, *heatmaps]):
        canvas.paste(panel, (i * (width + GAP), 0))
    return canvas


if __name__ == "__main__":
    main()
