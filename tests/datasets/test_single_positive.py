"""The hold-out and the draw of single positives: the same pictures and labels on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy.datasets.picture_files import PictureFiles
from sigrl_deploy.datasets.single_positive import SinglePositive, hold_out
from sigrl_deploy.errors import DatasetError
from tests.support.dataset_files import picture, refusal, targets


def _dataset(folder: Path, rows: list[list[int]]) -> PictureFiles:
    matrix = np.array(rows, np.int8)
    return PictureFiles(folder, [f"{i}.jpg" for i in range(len(rows))], matrix, tuple("abcdefgh"[: matrix.shape[1]]))


# Pictures with a label in the official training sets, and the sizes that Cole et al. (2021) publish for the two parts.
@pytest.mark.parametrize(("annotated", "train", "val"), [(5717, 4574, 1143), (82081, 65665, 16416)])
def test_the_hold_out_is_the_published_one(annotated: int, train: int, val: int) -> None:
    rows = np.ones((annotated, 1), np.int8)
    order = np.random.RandomState(1200).permutation(annotated)
    assert hold_out(rows, "train").tolist() == sorted(order[:train])
    assert hold_out(rows, "val").tolist() == sorted(order[-val:])


def test_pictures_without_a_positive_are_never_held_out_and_do_not_move_the_others() -> None:
    """numpy promises that RandomState draws the same for ever, so the rows are written out."""
    rows = np.ones((10, 2), np.int8)
    assert hold_out(rows, "val").tolist() == [3, 7]
    assert hold_out(rows, "train").tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    with_bare = np.insert(rows, [0, 5], -1, axis=0)  # rows 0 and 6 of 12
    assert hold_out(with_bare, "val").tolist() == [4, 9]
    assert hold_out(with_bare, "train").tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_hardly_any_picture_none_is_held_out(count: int) -> None:
    rows = np.ones((count, 2), np.int8)
    assert (len(hold_out(rows, "train")), len(hold_out(rows, "val"))) == (count, 0)


def test_one_positive_a_picture_is_observed_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(-1, 2, (97, 7))
    rows[::9] = -1
    whole = _dataset(tmp_path, rows.tolist())
    single = SinglePositive(whole)
    draws = np.random.RandomState(1200)
    expected = {}
    for i, row in enumerate(rows):
        positives = np.flatnonzero(row == 1)
        if len(positives):
            draws.shuffle(positives)
            expected[f"{i}.jpg"] = [int(column == positives[0]) for column in range(7)]
    assert targets(single) == expected
    assert len(single) == len(expected) < len(whole)
    assert targets(SinglePositive(whole)) == expected
    assert targets(SinglePositive(whole, seed=7)) != expected
    assert (single.labels, single.label_sets) == (whole.labels, {"all": whole.labels})


def test_every_positive_is_as_likely(tmp_path: Path) -> None:
    single = SinglePositive(_dataset(tmp_path, [[1, -1, 1, 0, 1]] * 3000))
    counts = np.sum([single.targets(i) for i in range(3000)], axis=0)
    # 1000 each, standard deviation sqrt(3000 · 1/3 · 2/3) = 26; five of them.
    assert np.abs(counts[[0, 2, 4]] - 1000).max() < 130
    assert counts[[1, 3]].tolist() == [0, 0]


def test_a_positive_is_drawn_from_the_labels_that_are_trained_on(tmp_path: Path) -> None:
    whole = _dataset(tmp_path, [[1, 1, 1], [1, -1, 1], [-1, 1, 1]] * 20)
    single = SinglePositive(whole, labels=whole.labels[:1])
    assert len(single) == 40
    assert {tuple(single.targets(i)) for i in range(40)} == {(1, 0, 0)}


def test_names_and_pictures_are_those_of_the_rows_kept(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.jpg", red=100 * i)
    single = SinglePositive(_dataset(tmp_path, [[-1, 0], [1, 1], [0, 1]]))
    assert [Path(single.name(i)).name for i in range(len(single))] == ["1.jpg", "2.jpg"]
    # JPEG of one flat colour is off by a few levels at most.
    assert [single.image(i).getpixel((4, 4))[0] for i in range(2)] == pytest.approx([100, 200], abs=3)


def test_a_data_set_without_a_positive_is_refused(tmp_path: Path) -> None:
    assert "no training picture has a positive" in refusal(DatasetError, lambda: SinglePositive(_dataset(tmp_path, [[-1, 0]])))


def test_targets_that_a_caller_changes_stay_as_they_are(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [[1, -1]])
    dataset.targets(0)[:] = 0
    assert dataset.targets(0).tolist() == [1, -1]
    assert dataset.targets(0).dtype == np.int8
