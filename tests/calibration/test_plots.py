"""The two plots: that they are pictures of the kind asked for, and show the labels and figures that they should."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from sigrl_deploy.calibration.plots import _RECALL, NAMED, _precision, draw_precision_recall, draw_reliability
from sigrl_deploy.calibration.probabilities import reliability
from sigrl_deploy.errors import DatasetError, UsageError
from tests.calibration.made import made
from tests.support.refusals import assert_refused, refused


def _comments(path: Path) -> list[str]:
    """The texts of an SVG, which matplotlib writes as a comment beside their outlines."""
    builder = ElementTree.TreeBuilder(insert_comments=True)
    tree = ElementTree.parse(path, ElementTree.XMLParser(target=builder))
    return [str(node.text).strip() for node in tree.iter() if node.tag is ElementTree.Comment]


def test_up_to_twelve_labels_are_all_named_with_their_average_precision(tmp_path: Path) -> None:
    scores, targets = made(83, 5)
    labels = ["$5 bill", "_hidden", "a\nb", "sofa & chair", "naïve"]
    draw_precision_recall(scores, targets, labels, tmp_path / "plot.svg")
    texts = _comments(tmp_path / "plot.svg")
    for c, shown in enumerate(["$5 bill", "_hidden", "a\\nb", "sofa &amp; chair", "naïve"]):
        known = targets[:, c] != 0
        average = average_precision_score(targets[known, c] == 1, scores[known, c])
        assert any(text in (f"{average:.2f}  {shown}", f"{average:.2f}  {labels[c]}") for text in texts), (shown, texts)


def test_of_many_labels_the_best_and_the_worst_are_named(tmp_path: Path) -> None:
    scores, targets = made(151, 31)
    scores += np.linspace(0, 0.4, 31, dtype=np.float32) * (targets == 1)
    targets[:, 30] = -1
    targets[:3, 30] = 1  # the best, but of three positives
    draw_precision_recall(scores, targets, [f"label {c}" for c in range(31)], tmp_path / "plot.svg")
    named = {int(text.split()[-1]) for text in _comments(tmp_path / "plot.svg") if "label " in text}
    averages = [
        average_precision_score((targets[t, c] == 1), scores[t, c]) for c in range(30) if (t := targets[:, c] != 0).any()
    ]
    ranked = np.argsort(averages)
    assert named == {*ranked[: NAMED // 2].tolist(), *ranked[-NAMED // 2 :].tolist()}


def test_few_positives_everywhere_are_drawn_as_well(tmp_path: Path) -> None:
    scores, targets = made(9, 4)
    targets[:, 3] = -1
    targets[0, 3] = 1
    draw_precision_recall(scores, targets, ["first", "second", "third", "of one picture"], tmp_path / "plot.svg")
    assert any("of one picture" in text for text in _comments(tmp_path / "plot.svg"))


@pytest.mark.parametrize("count", [1, 7, 203])
def test_a_line_shows_the_precision_that_thresholds_reach(count: int) -> None:
    scores, targets = made(count, 1, ties=True)
    targets[0] = 1
    values, positive = scores[:, 0].astype(np.float64), targets[:, 0] == 1
    found, _ = _precision(values, positive)
    reached = [((values >= t) & positive).sum() / np.array([positive.sum(), (values >= t).sum()]) for t in values]
    for recall, precision in zip(_RECALL, found, strict=True):
        assert precision == max(precision for at, precision in reached if at >= recall)


@pytest.mark.parametrize("ending", [".png", ".SVG"])
def test_plots_are_what_their_ending_says_and_come_out_the_same_twice(tmp_path: Path, ending: str) -> None:
    scores, targets = made(53, 3)
    found = reliability(np.clip(scores, 0, 1), targets)
    for name in ("a", "b"):
        draw_reliability(found, tmp_path / f"{name}{ending}")
    content = (tmp_path / f"a{ending}").read_bytes()
    assert content == (tmp_path / f"b{ending}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{ending}", f"b{ending}"]
    if ending == ".png":
        assert Image.open(tmp_path / "a.png").convert("L").getextrema()[0] < 255
    else:
        assert any(f"calibration error {found.error:.3f}" in text for text in _comments(tmp_path / f"a{ending}"))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    scores, targets = made(9, 2)
    found = reliability(np.clip(scores, 0, 1), targets)
    pdf = tmp_path / "plot.pdf"
    assert refused(partial(draw_reliability, found, pdf)) == ("path", pdf)
    assert refused(partial(draw_precision_recall, scores, targets, ["a", "b"], pdf)) == ("path", pdf)
    png = tmp_path / "plot.png"
    without = partial(draw_precision_recall, scores, np.minimum(targets, 0), ["a", "b"], png)
    assert_refused(without, DatasetError, "no picture shows any of the labels")
    assert_refused(partial(draw_precision_recall, scores[:0], targets[:0], ["a", "b"], png), UsageError, "[0, 2]")
    assert not png.exists()
