"""`scenes`: the same on every machine, unseen combinations only where they belong, and what a label says is in the picture."""

from __future__ import annotations

import colorsys
import hashlib
import re

import numpy as np
import pytest

from sigrl_deploy.datasets.drawing import HUES, SIZE
from sigrl_deploy.datasets.scenes import LABELS, SEEN, UNSEEN, Scenes, labels_of
from sigrl_deploy.errors import UsageError
from sigrl_deploy.training.contrastive import draw_captions


def test_label_sets_part_the_labels_and_leave_no_attribute_unseen() -> None:
    assert len(LABELS) == 104
    assert set(SEEN) | set(UNSEEN) == set(LABELS)
    assert not set(SEEN) & set(UNSEEN)
    assert len(UNSEEN) == 22
    words = {word for label in SEEN for word in label.split()}
    assert words == {word for label in LABELS for word in label.split()}
    assert {label.split()[0] for label in UNSEEN} == {label.split()[0] for label in LABELS}
    assert Scenes("test").label_sets == {"unseen": UNSEEN, "seen": SEEN, "all": LABELS}


def test_training_pictures_hold_no_unseen_combination_and_test_pictures_do() -> None:
    unseen = [LABELS.index(label) for label in UNSEEN]
    train = np.stack([Scenes("train").targets(i) for i in range(2000)])
    test = np.stack([Scenes("test").targets(i) for i in range(2000)])
    assert (train[:, unseen] == -1).all()
    assert ((test == 1).sum(0) > 20).all()
    assert ((train == 1).sum(0) > 20).sum() == len(SEEN)
    captions = " ".join(caption for i in range(2000) for caption in draw_captions(Scenes("train"), 0, 0, i).captions)
    assert not any(f" {label}" in captions for label in UNSEEN)


def test_a_picture_is_a_function_of_seed_split_and_index() -> None:
    once, again = Scenes("test", 3), Scenes("test", 3)
    assert all(once.image(i).tobytes() == again.image(i).tobytes() for i in (0, 1, 3999))
    others = [Scenes("test", 4).image(5), Scenes("val", 3).image(5), once.image(6)]
    assert all(once.image(5).tobytes() != other.tobytes() for other in others)
    # Pictures drawn by another release must not differ unnoticed: measured results belong to these.
    digest = hashlib.sha256(b"".join(Scenes("test").targets(i).tobytes() for i in range(50))).hexdigest()
    assert digest[:16] == "ae59a70c3ef40353"


def test_an_object_shows_its_colour_where_it_is() -> None:
    """At the middle of plain, filled shapes, far from the front of any other object."""
    scenes, checked = Scenes("test"), 0
    for i in range(120):
        *_, thing = scenes.things(i)  # the front one
        if thing.texture or thing.shape in ("ring", "moon"):
            continue
        x, y = int(thing.x), int(thing.y)
        red, green, blue = np.asarray(scenes.image(i), float)[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1)) / 255
        hue = colorsys.rgb_to_hsv(red, green, blue)[0] * 360
        away = abs((hue - HUES[thing.colour] + 180) % 360 - 180)
        assert away < 16, (i, thing, hue)  # jitter of 6 degrees, noise and rounding
        checked += 1
    assert checked > 10


def test_targets_and_captions_describe_the_things() -> None:
    scenes = Scenes("val")
    for i in range(50):
        things = scenes.things(i)
        assert 1 <= len(things) <= 4
        assert all(thing.radius <= thing.x <= SIZE - thing.radius for thing in things)
        expected = {label for thing in things for label in labels_of(thing)}
        assert {label for label, target in zip(LABELS, scenes.targets(i), strict=True) if target == 1} == expected
        for thing, caption in zip(things, draw_captions(scenes, 0, 0, i).captions, strict=True):
            words = set(re.findall("[a-z]+", caption.lower()))
            words -= {"a", "picture", "of", "there", "is", "in", "the", "scene", "shape"}
            assert words
            assert words <= {thing.colour, thing.shape, thing.texture, thing.size}, caption


def test_a_linear_probe_on_pixels_does_not_solve_it() -> None:
    """Ridge regression on 24 x 24 RGB pixels, trained on 3000 pictures, stays near chance."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import average_precision_score

    def pixels(scenes: Scenes, count: int) -> np.ndarray:
        return np.stack([np.asarray(scenes.image(i).resize((24, 24)), np.float32).ravel() / 255 for i in range(count)])

    train, test = Scenes("train"), Scenes("test")
    columns = [LABELS.index(label) for label in SEEN]
    targets, expected = (np.stack([s.targets(i) for i in range(n)])[:, columns] for s, n in ((train, 3000), (test, 600)))
    scores = Ridge(alpha=1000.0).fit(pixels(train, 3000), targets).predict(pixels(test, 600))
    reached = np.mean([average_precision_score(expected[:, c] == 1, scores[:, c]) for c in range(len(columns))])
    chance = (expected == 1).mean()
    assert reached < 2 * chance, (reached, chance)


def test_other_splits_and_indices_are_refused() -> None:
    with pytest.raises(UsageError) as error:
        Scenes("dev")
    assert (error.value.argument, error.value.value) == ("split", "dev")
    with pytest.raises(IndexError):
        Scenes("val").image(1000)
