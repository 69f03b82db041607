"""The service's page, in a real browser: what a user does, and what the page shows."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from sigrl_deploy import Recognizer
from sigrl_deploy.labels.label_set import Label, LabelSet
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.tagging.drawing import MAX_PANEL, MIN_PANEL, heat, scaled
from sigrl_deploy.tagging.heatmaps import part_seen
from tests.serve.conftest import Guarded, Open
from tests.support.browser import (
    NO_KEY,
    TAGS,
    card,
    choose,
    contrasts,
    digits,
    expected,
    give_key,
    opened,
    same,
    show_all,
    tags,
    transfer,
    wait,
    wait_for_options,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

AA = 4.5  # least contrast of text
REFUSED = ("the server responded with a status of 422",)  # what the browser's console says of every such answer
ODD = "<img src=x onerror=alert(1)> & <b>bold</b>"


def test_a_picture_chosen_before_the_script_is_there_is_tagged(open_page: Open, photos: list[Path]) -> None:
    with open_page() as page:
        held: list[Route] = []
        page.route("**/page/page.js", lambda route: held.append(route))
        page.reload(wait_until="commit")
        choose(page, photos[0])
        assert len(held) == 1
        assert page.get_by_role("article").count() == 0
        held[0].continue_()
        wait(page, "1 of 1 picture tagged.")


def test_chosen_pictures_get_the_library_s_tags(
    open_page: Open, reference: Recognizer, photos: list[Path], label_file: Path
) -> None:
    with open_page() as page:
        choose(page, *photos[:2])
        wait(page, "2 of 2 pictures tagged.")
        assert page.get_by_role("img", name=f"The picture {photos[0].name}").is_visible()
        assert 8 <= sum(len(tags(page, photo)) for photo in photos[:2]) <= 13, "some five a picture"
        show_all(page)
        for photo in photos[:2]:
            shown = tags(page, photo)
            assert same(shown, expected(reference, photo, label_file, digits(shown)))
        page.get_by_role("button", name=f"Remove {photos[0].name}").click()
        wait(page, "1 of 1 picture tagged.")


def test_pictures_may_be_dropped(open_page: Open, photos: list[Path]) -> None:
    with open_page() as page:
        held = transfer(page, *photos[:3])
        page.dispatch_event("h1", "dragover", {"dataTransfer": held})
        page.dispatch_event("h1", "drop", {"dataTransfer": held})
        wait(page, "3 of 3 pictures tagged.")
        assert [title.inner_text() for title in page.get_by_role("heading", level=3).all()] == [p.name for p in photos[:3]]


def test_a_picture_may_be_pasted(open_page: Open, reference: Recognizer, photos: list[Path], label_file: Path) -> None:
    with open_page(permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate(
            """async (data) => {
              const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
              await navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
            }""",
            base64.b64encode(_png(photos[1])).decode("ascii"),
        )
        page.keyboard.press("Control+V")
        wait(page, "1 of 1 picture tagged.")
        show_all(page)
        shown = tags(page, Path("image.png"))
        assert same(shown, expected(reference, photos[1], label_file, digits(shown)))


def _png(path: Path) -> bytes:
    file = io.BytesIO()
    read_image(path).save(file, "PNG")
    return file.getvalue()


def test_a_vocabulary_may_be_chosen(open_page: Open, reference: Recognizer, photos: list[Path], kitchen: Path) -> None:
    with open_page() as page:
        choose(page, photos[0])
        wait(page, "1 of 1 picture tagged.")
        options = page.get_by_label("Look for").locator("option").all_inner_texts()
        assert options == ["everyday (100 labels)", "kitchen (11 labels)", "labels of your own"]
        page.get_by_label("Look for").select_option("kitchen")
        wait(page, "1 of 1 picture tagged.")
        show_all(page)
        shown = tags(page, photos[0])
        assert "drink (cup of coffee)" in [label for label, _ in shown]
        assert same(shown, expected(reference, photos[0], read_label_set(kitchen), digits(shown)))


@pytest.mark.parametrize("everyday", [True, False])
def test_labels_may_be_edited(
    open_page: Open, reference: Recognizer, photos: list[Path], label_file: Path, everyday: bool
) -> None:
    with open_page() as page:
        choose(page, photos[0])
        wait(page, "1 of 1 picture tagged.")
        page.get_by_role("button", name="Edit a copy").click()
        field = page.get_by_label("Your labels")
        field.wait_for()
        assert field.input_value().split("\n") == list(read_labels(label_file))
        field.fill(f"cat\n\n# not this one\n  red cup \ncat\n{ODD}\nchair")
        page.get_by_label("Compare with").select_option("common" if everyday else "")
        assert page.get_by_text("4 labels.").is_visible()
        if everyday:
            page.get_by_role("button", name="Tag with these labels").click()
        else:
            field.press("Control+Enter")
        wait(page, "1 of 1 picture tagged.")
        show_all(page)
        shown = tags(page, photos[0])
        own = LabelSet(tuple(map(Label, ("cat", "red cup", ODD, "chair"))), background="common" if everyday else None)
        assert same(shown, expected(reference, photos[0], own, digits(shown)))


def test_no_labels_are_named_as_the_reason(open_page: Open, photos: list[Path]) -> None:
    with open_page() as page:
        page.get_by_label("Look for").select_option("labels of your own")
        choose(page, photos[0])
        wait(page, "0 of 1 picture tagged, 1 failed.")
        assert card(page, photos[0]).get_by_text("There are no labels yet").is_visible()
        page.get_by_label("Your labels").fill("cat\ndog")
        card(page, photos[0]).get_by_role("button", name="Try again").click()
        wait(page, "1 of 1 picture tagged.")


def test_a_broken_picture_leaves_the_others(open_page: Open, photos: list[Path], broken: Path) -> None:
    with open_page(REFUSED) as page:
        choose(page, photos[0], broken, photos[1])
        wait(page, "2 of 3 pictures tagged, 1 failed.")
        assert card(page, broken).get_by_text("The file is damaged or not a picture").is_visible()
        show_all(page)
        assert [len(tags(page, path)) for path in (photos[0], broken, photos[1])] == [TAGS, 0, TAGS]


def test_names_and_labels_stay_text(open_page: Open, photos: list[Path], tmp_path: Path) -> None:
    odd = Path(shutil.copy(photos[0], tmp_path / "<b>&amp;<img src=x onerror=alert(1)>.jpg"))
    with open_page() as page:
        page.get_by_label("Look for").select_option("labels of your own")
        page.get_by_label("Your labels").fill(ODD)
        choose(page, odd)
        wait(page, "1 of 1 picture tagged.")
        assert [label for label, _ in tags(page, odd)] == [ODD]
        assert page.locator("article b, article [onerror]").count() == 0


def test_the_slider_filters_without_asking_again(open_page: Open, photos: list[Path]) -> None:
    with open_page() as page:
        choose(page, *photos[:2])
        wait(page, "2 of 2 pictures tagged.")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        slider = page.get_by_label("Least score")
        slider.press("Home")
        everything = {photo: tags(page, photo) for photo in photos[:2]}
        assert {len(found) for found in everything.values()} == {TAGS}
        slider.fill(middle := everything[photos[0]][4][1])
        for photo, found in everything.items():
            shown = tags(page, photo)
            assert shown == found[: len(shown)]
            # The slider's value has as many digits as the scores that are shown, so one that equals it may be on either side.
            assert all(float(score) >= float(middle) for _, score in shown)
            assert all(float(score) <= float(middle) for _, score in found[len(shown) :])
        assert str(slider.get_attribute("aria-valuetext")).startswith(f"{float(middle):.{digits(shown)}f}, ")
        slider.press("End")
        assert [tags(page, photo) for photo in photos[:2]] == [[], []]
        nearest = everything[photos[1]][0]
        assert card(page, photos[1]).get_by_text(f"“{nearest[0]}” comes nearest, with {nearest[1]}").is_visible()
        assert asked == []


def test_heat_maps_on_hover_focus_and_touch(
    open_page: Open, reference: Recognizer, photos: list[Path], label_file: Path
) -> None:
    photo = photos[0]
    picture = read_image(photo)
    small, box = scaled(picture, part_seen(picture, reference.bundle.manifest), MIN_PANEL, MAX_PANEL)
    (best,) = reference.recognize([photo], label_file, top=2, evidence=True)
    reference = {tag.label: np.asarray(heat(small, box, tag), np.float64) for tag in best}
    with open_page(has_touch=True) as page:
        choose(page, photo)
        wait(page, "1 of 1 picture tagged.")
        buttons = [card(page, photo).get_by_role("button", name=tag.label) for tag in best]
        shown = [page.get_by_role("img", name=f"Where “{tag.label}” was found in {photo.name}") for tag in best]

        def in_view() -> list[bool]:
            return [each.is_visible() for each in shown]

        buttons[0].hover()
        shown[0].wait_for()
        for tag, button, image in zip(best, buttons, shown, strict=True):
            button.hover()
            data = base64.b64decode(str(image.get_attribute("src")).partition(",")[2])
            with Image.open(io.BytesIO(data)) as opened_here:
                pixels = np.asarray(opened_here.convert("RGB"), np.float64)
            assert np.abs(pixels - reference[tag.label]).mean() < 6, "JPEG"
        page.mouse.move(0, 0)
        assert in_view() == [False, False]

        buttons[0].focus()
        page.keyboard.press("Tab")
        assert in_view() == [False, True]
        page.keyboard.press("Shift+Tab")
        assert in_view() == [True, False]
        page.keyboard.press("Enter")
        assert buttons[0].get_attribute("aria-pressed") == "true"
        page.get_by_label("Least score").focus()
        assert in_view() == [True, False], "it was pressed"
        buttons[0].focus()
        page.keyboard.press("Escape")
        assert in_view() == [False, False]

        page.get_by_label("Least score").focus()
        buttons[1].tap()
        assert in_view() == [False, True]
        buttons[1].tap()
        assert in_view() == [False, False]


def test_narrow_windows_need_no_scrolling_sideways(open_page: Open, photos: list[Path], broken: Path, tmp_path: Path) -> None:
    long = Path(shutil.copy(photos[0], tmp_path / f"{'long' * 40}.jpg"))
    with open_page(REFUSED, viewport={"width": 320, "height": 640}) as page:
        page.get_by_role("button", name="Edit a copy").click()
        page.get_by_label("Your labels").fill("word" * 50 + "\ncat")
        choose(page, long, photos[1], broken)
        wait(page, "2 of 3 pictures tagged, 1 failed.")
        show_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        boxes = [each.bounding_box() for each in page.locator("button:visible, select, textarea, input:visible").all()]
        assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= 320 for box in boxes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_can_be_read(open_page: Open, photos: list[Path], broken: Path, scheme: str) -> None:
    with open_page(REFUSED, color_scheme=scheme) as page:
        page.get_by_role("button", name="Edit a copy").click()
        page.get_by_label("Your labels").wait_for()
        choose(page, photos[0], broken)
        wait(page, "1 of 2 pictures tagged, 1 failed.")
        found = contrasts(page)
        assert len(found) > 20
        assert {text: contrast for text, contrast in found.items() if contrast < AA} == {}
        page.get_by_role("button", name="Remove all").click()
        with Image.open(io.BytesIO(page.screenshot())) as picture:
            brightness = np.asarray(picture.convert("L")).mean()
        assert (brightness > 128) == (scheme == "light")


def test_a_service_that_is_away_is_asked_again(open_page: Open, photos: list[Path]) -> None:
    with open_page(("net::ERR_INTERNET_DISCONNECTED",)) as page:
        page.get_by_label("Look for").wait_for()
        wait_for_options(page)
        page.context.set_offline(True)
        choose(page, photos[0])
        wait(page, "0 of 1 picture tagged, 1 failed.")
        assert card(page, photos[0]).get_by_text("The service does not answer").is_visible()
        page.context.set_offline(False)
        card(page, photos[0]).get_by_role("button", name="Try again").click()
        wait(page, "1 of 1 picture tagged.")


def test_a_busy_service_is_asked_later(open_page: Open, photos: list[Path]) -> None:
    with open_page(("the server responded with a status of 429",)) as page:
        # Only the refusal is made up: no service can be made to be busy for exactly one request.
        page.route("**/v1/tag", lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}), times=1)
        choose(page, photos[0])
        wait(page, "1 of 1 picture tagged.")


def test_a_key_is_asked_for_where_the_service_wants_one(browser: Browser, guarded: Guarded, photos: list[Path]) -> None:
    with opened(browser, guarded.url, NO_KEY) as page:
        give_key(page, "wrong")
        page.get_by_text("refused this key").wait_for()
        give_key(page, guarded.key)
        wait_for_options(page)
        assert not page.get_by_label("API key").is_visible()
        page.reload()
        choose(page, photos[0])
        wait(page, "1 of 1 picture tagged.")
        assert page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]


def test_a_vocabulary_s_thresholds_decide(browser: Browser, guarded: Guarded, photos: list[Path]) -> None:
    with opened(browser, guarded.url, NO_KEY) as page:
        give_key(page, guarded.key)
        wait_for_options(page)
        choose(page, photos[0])
        wait(page, "1 of 1 picture tagged.")
        assert [label for label, _ in tags(page, photos[0])] == guarded.tags
        page.get_by_label("Only tags that reach the thresholds").uncheck()
        wait(page, "1 of 1 picture tagged.")
        show_all(page)
        assert len(tags(page, photos[0])) == 10
