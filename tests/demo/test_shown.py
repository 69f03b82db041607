"""What the demo shows: tags marked by what was drawn, in a table and on a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.datasets.scenes import LABELS, Scenes
from sigrl_deploy.demo import PICTURES
from sigrl_deploy.demo.marked import Marked, mark
from sigrl_deploy.demo.page import check_replaceable, write_page
from sigrl_deploy.demo.table import table
from sigrl_deploy.recognizer.predictions import Prediction, Record
from tests.support.refusals import refused

# Scene 0, by eye: an orange checkered small cross, which is an unseen colour of crosses, a pink small star, a blue dotted ring.
SCENE = PICTURES / "scene-0.jpg"
PRESENT = {"orange cross", "checkered cross", "small cross", "pink star", "small star", "blue ring", "dotted ring"}
TAGS = {"pink star": "right", "orange cross": "right", "orange star": "wrong", "blue cross": "wrong"}


def _marked(path: Path = SCENE) -> Marked:
    rng = np.random.default_rng(0)
    tags = [Prediction(label, 0.5 - i / 10, None, rng.uniform(0, 1, (5, 5)).astype(np.float32)) for i, label in enumerate(TAGS)]
    return mark(Record(str(path), tuple(tags), np.zeros(len(LABELS), np.float32)), Scenes("test").things(0))


class _Page(HTMLParser):
    """Checks that elements are closed in order, and collects what a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}  # of each element of a kind, everything in it
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs
        self.texts.setdefault(tag, []).append("")
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data


def _page(folder: Path, bundle: Path, picture: Marked) -> tuple[str, _Page]:
    write_page(folder / "index.html", [picture], Bundle(bundle).manifest, len(LABELS))
    text = (folder / "index.html").read_text(encoding="utf-8")
    return text, _Page(text)


def test_the_page_needs_no_other_file_and_no_script_and_links_to_the_models_card(bundle: Path, tmp_path: Path) -> None:
    text, page = _page(tmp_path, bundle, _marked())
    assert page.names.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert [value for name, value in page.attributes if name == "href"] == ["MODEL_CARD.md"]
    written = re.sub('"data:[^"]*"', "", text)
    assert all(word not in written for word in ("http", "//", "url(", "@import"))
    assert {name for name, _ in page.attributes}.isdisjoint({"srcset", "style", "action"})
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert len(page.images) == 1 + len(TAGS)
    assert all(image["alt"] for image in page.images)
    pictures = []
    for image in page.images:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
            pictures.append(np.asarray(opened.convert("RGB").resize((96, 96), Image.Resampling.BOX), np.float64))
    with Image.open(SCENE) as scene:
        assert np.abs(pictures[0] - np.asarray(scene, np.float64)).mean() < 6, "the picture itself, enlarged and compressed"
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_the_page_says_which_tags_are_right_and_what_was_missed(bundle: Path, tmp_path: Path) -> None:
    _, page = _page(tmp_path, bundle, _marked())
    captions = [" ".join(text.split()) for text in page.texts["figcaption"][1:]]
    assert captions == [
        "pink star ✓ right 0.50",
        "orange cross new ✓ right 0.40",
        "orange star ✗ wrong 0.30",
        "blue cross ✗ wrong 0.20",
    ]
    drawn = {" ".join(text.split()) for text in page.texts["li"]} - {"Drawn in it:"}
    found = {"pink star ✓ found", "orange cross new ✓ found"}
    assert drawn == found | {f"{label} – missed" for label in PRESENT - TAGS.keys()}


@pytest.mark.parametrize("name", ["<b>&amp;.jpg", '"><script>.jpg', "{{ 7 * 7 }}.jpg"])
def test_a_name_cannot_become_markup(bundle: Path, tmp_path: Path, name: str) -> None:
    _, page = _page(tmp_path, bundle, _marked(Path(shutil.copy(SCENE, tmp_path / name))))
    assert page.texts["h2"] == [name]
    assert page.names.isdisjoint({"b", "script"})


def test_the_table_marks_tags_and_cuts_no_name(tmp_path: Path) -> None:
    long = tmp_path / f"{'long-' * 30}name.jpg"
    lines = table([_marked(long)]).splitlines()
    rows = [line.split() for line in lines[1:5]]
    assert rows[0] == [long.name, "pink", "star", "0.50", "right"]
    assert [row[-1] for row in rows] == list(TAGS.values())
    assert rows[1][:2] == ["orange", "cross*"]
    missed = " ".join(" ".join(lines[5 : lines.index("")]).split()).removeprefix("missed: ")
    assert set(missed.split(", ")) == PRESENT - TAGS.keys()
    assert lines[-1].startswith("2 of 4 tags are right; of 1 drawn labels")
    failed = table([mark(Record("b.jpg", error="is damaged"), [])])
    assert "error: is damaged" in failed


def test_only_a_page_of_the_demo_is_replaced(bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    check_replaceable(page)
    _page(tmp_path, bundle, _marked())
    check_replaceable(page)
    page.write_text("<p>somebody's own</p>")
    assert refused(lambda: check_replaceable(page)) == ("out", page)
    page.unlink()
    page.mkdir()
    assert refused(lambda: check_replaceable(page)) == ("out", page)
