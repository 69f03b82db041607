"""Labels that were copied from a vocabulary keep what is not in view, and tags of other labels are marked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import msgspec
import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.labels.label_set import Label, LabelSet
from sigrl_deploy.labels.reading import read_label_set
from tests.serve.conftest import Guarded, Open
from tests.support.browser import (
    NO_KEY,
    card,
    choose,
    digits,
    expected,
    give_key,
    opened,
    same,
    show_all,
    tags,
    wait,
    wait_for_options,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DONE = "1 of 1 picture tagged."
STALE = "1 of 1 picture tagged, 1 by other labels than those above."
RICH = LabelSet(
    (
        Label("cat", ("kitty",), parents=("animal",), threshold=-1.0),
        Label("#1 cup", templates=("a cup, {label}",)),
        Label("lamp", threshold=1.0),
        Label("wall", emit=False),
    ),
    templates=("a {label}",),
    background="common",
)


@pytest.fixture
def rich(client: httpx.Client) -> Iterator[None]:
    """The service has `RICH`."""
    client.put("/v1/vocabularies/rich", json=RICH.to_plain()).raise_for_status()
    yield
    client.delete("/v1/vocabularies/rich").raise_for_status()


def copy(page: Page, vocabulary: str) -> None:
    page.get_by_label("Look for").select_option(vocabulary)
    page.get_by_role("button", name="Edit a copy").click()
    page.get_by_label("Your labels").wait_for()


def apply(page: Page) -> None:
    page.get_by_role("button", name="Tag with these labels").click()
    wait(page, DONE)
    show_all(page)


def test_a_copy_keeps_synonyms_and_parents_of_labels_that_are_left_as_they_are(
    open_page: Open, reference: Recognizer, photos: list[Path], kitchen: Path
) -> None:
    photo, whole = photos[0], read_label_set(kitchen)
    with open_page() as page:
        choose(page, photo)
        wait(page, DONE)
        copy(page, "kitchen")
        assert page.get_by_label("Compare with").input_value() == "", "the kitchen has no background"
        apply(page)
        shown = tags(page, photo)
        assert "drink (cup of coffee)" in [label for label, _ in shown]
        assert same(shown, expected(reference, photo, whole, digits(shown)))

        field = page.get_by_label("Your labels")
        field.fill(field.input_value().replace("cup of coffee", "mug of coffee") + "\nteapot")
        apply(page)
        edited = LabelSet((Label("mug of coffee"), *whole.labels[1:], Label("teapot")))
        shown = tags(page, photo)
        assert same(shown, expected(reference, photo, edited, digits(shown)))


@pytest.mark.usefixtures("rich")
def test_a_copy_keeps_templates_thresholds_background_and_labels_that_are_no_tags(
    open_page: Open, reference: Recognizer, photos: list[Path]
) -> None:
    photo = photos[0]
    with open_page() as page:
        choose(page, photo)
        wait(page, DONE)
        copy(page, "rich")
        assert page.get_by_label("Your labels").input_value() == "cat\n#1 cup\nlamp"
        assert page.get_by_label("Compare with").input_value() == "common"
        said = page.locator("#copy-hint").inner_text()
        assert "keep their synonyms" in said
        assert "1 more labels of rich" in said
        apply(page)
        shown = tags(page, photo)
        assert [label for label, _ in shown if label == "lamp"] == [], "its threshold is out of reach"
        assert same(shown, expected(reference, photo, RICH, digits(shown)))

        page.get_by_label("Only tags that reach the thresholds").uncheck()
        wait(page, DONE)
        show_all(page)
        shown = tags(page, photo)
        free = msgspec.structs.replace(
            RICH, labels=tuple(msgspec.structs.replace(label, threshold=None) for label in RICH.labels)
        )
        assert same(shown, expected(reference, photo, free, digits(shown)))

        page.get_by_label("Your labels").fill("dog\nhouse")
        assert page.locator("#copy-hint").inner_text() == "", "nothing is left of the copy"
        page.get_by_label("Compare with").select_option("nothing else")
        apply(page)
        shown = tags(page, photo)
        own = LabelSet((Label("dog"), Label("house")))
        assert same(shown, expected(reference, photo, own, digits(shown)))


def test_tags_of_other_labels_are_marked(open_page: Open, photos: list[Path]) -> None:
    photo = photos[0]
    with open_page() as page:
        choose(page, photo)
        wait(page, DONE)
        copy(page, "kitchen")
        wait(page, STALE)
        assert card(page, photo).get_by_text("By other labels than those above.").is_visible()
        apply(page)
        assert not card(page, photo).get_by_text("By other labels").is_visible()
        page.get_by_label("Compare with").select_option("everyday things, which never become tags")
        wait(page, STALE)
        page.get_by_label("Compare with").select_option("nothing else")
        wait(page, DONE)
        page.get_by_label("Your labels").fill("cat\ndog")
        wait(page, STALE)
        apply(page)
        page.get_by_label("Your labels").fill("cat")
        wait(page, STALE)


def test_thresholds_of_a_file_are_said_to_stay_behind(browser: Browser, guarded: Guarded) -> None:
    with opened(browser, guarded.url, NO_KEY) as page:
        give_key(page, guarded.key)
        wait_for_options(page)
        copy(page, "things")
        assert page.get_by_text("The thresholds of things are not copied.").is_visible()
        assert not page.get_by_label("Only tags that reach the thresholds").is_visible()
