"""Draw the README's picture: a scene that the shipped model has never seen, and where it found its best labels.

    python -m benchmarks.example_picture

Writes the output of the README's example too, which is about the same scene. Runs the demo as a user would, tags the scene with
the bundle that it leaves, and draws one row of heat maps: docs/example.jpg.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from sigrl_deploy import Recognizer
from sigrl_deploy.demo import PICTURES
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.tagging.drawing import draw_sheet
from sigrl_deploy.tagging.heatmaps import part_seen

ROOT = Path(__file__).resolve().parent.parent
OUT, README = ROOT / "docs" / "example.jpg", ROOT / "README.md"
SCENE = PICTURES / "scene-5.jpg"
LABELS = 3


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run([sys.executable, "-m", "sigrl_deploy", "demo", "--out", temporary], check=True)
        with Recognizer(Path(temporary, "bundle"), device="cpu", cache_dir=False) as recognizer:
            (tags,) = recognizer.recognize([SCENE], top=LABELS, evidence=True)
            picture = read_image(SCENE)
            box = part_seen(picture, recognizer.bundle.manifest)
    drawn = draw_sheet(picture, box, SCENE.name, tags, columns=1 + LABELS)
    drawn.save(OUT, quality=92)
    readme = README.read_text(encoding="utf-8")
    shown = "".join(f"{tag.label}  {tag.score:.2f}\n" for tag in tags)
    README.write_text(re.sub(r"(?<=^```text\n).*?(?=^```$)", shown, readme, count=1, flags=re.DOTALL | re.MULTILINE), "utf-8")
    print(f"{OUT}: {', '.join(tag.label for tag in tags)}; {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
