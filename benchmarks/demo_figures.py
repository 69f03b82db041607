"""What docs/tagging.md says about the model that ships: how clearly heat maps show things, and what each crop finds.

python -m benchmarks.demo_figures BUNDLE        # of the model that ships, with all labels; writes results/demo.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.metrics import average_precision_score

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Crop
from sigrl_deploy.datasets.scenes import LABELS, Scenes, labels_of
from sigrl_deploy.files import replacing
from sigrl_deploy.recognizer import Recognizer

RESULTS = Path(__file__).resolve().parent / "results" / "demo.json"
SIDE = 96  # of a scene, in pixels
PICTURES, PAIRS, TAGS = 100, 240, 4
COLOURS = ("black", "white", "grey", "red", "green", "blue", "yellow", "pink", "brown", "navy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle
    results = {"date": date.today().isoformat(), "clearness": clearness(bundle), "crops": crops(bundle)}
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def clearness(bundle: Path) -> dict[str, float]:
    """Medians, in the standard deviations of docs/tagging.md: of right tags around the thing that they name, in test pictures;
    and of the clearest patch of any of the best tags, in pictures of one colour and of noise.
    """
    test, rng, things = Scenes("test"), np.random.default_rng(0), []
    with Recognizer(bundle, device="cpu", cache_dir=False) as recognizer:
        for i in range(PICTURES):
            found = _deviations(recognizer, test.image(i))
            for thing in test.things(i):
                row, column = (int(place / SIDE * 8) for place in (thing.y, thing.x))  # of 8 x 8 patches
                near = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
                things += [values.reshape(8, 8)[near].max() for label, values in found.items() if label in labels_of(thing)]
        flat = [Image.new("RGB", (SIDE, SIDE), colour) for colour in COLOURS]
        noise = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in COLOURS]
        nothing = [[max(map(np.max, _deviations(recognizer, p).values())) for p in pictures] for pictures in (flat, noise)]
    return {"things": float(np.median(things)), "flat": float(np.median(nothing[0])), "noise": float(np.median(nothing[1]))}


def _deviations(recognizer: Recognizer, picture: Image.Image) -> dict[str, FloatArray]:
    """By label of the picture's best tags, how far each patch's match [P] lies above that of all labels."""
    vocabulary = recognizer.vocabulary(LABELS)
    (tags,) = recognizer.recognize([picture], vocabulary, top=TAGS)
    local, _ = recognizer.engine.encode(recognizer.pixels(picture)[None], vocabulary)
    assert local is not None
    matches = vocabulary.label_embedding @ local[0].T
    above = (matches - matches.mean(axis=0)) / (matches - matches.mean(axis=0)).std()
    return {tag.label: above[vocabulary.index(tag.label)] for tag in tags}


def crops(bundle: Path) -> dict[str, Any]:
    """The mAP of each crop on two test scenes side by side, of which a centre crop shows a half each."""
    scenes = Scenes("test")
    pictures = [Image.fromarray(np.hstack([np.asarray(scenes.image(2 * i + side)) for side in (0, 1)])) for i in range(PAIRS)]
    present = np.stack([(scenes.targets(2 * i) > 0) | (scenes.targets(2 * i + 1) > 0) for i in range(PAIRS)])
    return {"pictures": PAIRS} | {crop.value: _map(bundle, crop, pictures, present) for crop in Crop}


def _map(bundle: Path, crop: Crop, pictures: Sequence[Image.Image], present: Any) -> float:
    """The mean average precision over labels that are in a picture."""
    with Recognizer(bundle, device="cpu", cache_dir=False, crop=crop) as recognizer:
        scores = recognizer.scores(pictures, LABELS)
    shown = present.any(axis=0)
    return float(np.mean([average_precision_score(present[:, c], scores[:, c]) for c in np.flatnonzero(shown)]))


if __name__ == "__main__":
    main()
