"""What the page says of files that cannot be read, of what is too large, and of keys that no service has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.serve.conftest import Guarded, Open
from tests.support.browser import NO_KEY, TAGS, card, choose, give_key, opened, wait, wait_for_options

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TOO_LARGE = ("the server responded with a status of 413",)
UNREADABLE = ("net::ERR_FILE_NOT_FOUND", "net::ERR_ACCESS_DENIED")  # of the preview


def drop(page: Page, *paths: Path) -> None:
    """Drop files as the desktop does: by their paths."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 100, "y": 100, "data": data})


def assert_lasting(page: Page, path: Path, reason: str) -> None:
    """A card has the reason, and no button that cannot help."""
    card(page, path).get_by_text(reason).wait_for()
    assert not card(page, path).get_by_role("button", name="Try again").is_visible()


def test_a_folder_is_called_one(open_page: Open, photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    with open_page(UNREADABLE) as page:
        drop(page, folder, photos[0])
        wait(page, "1 of 2 pictures tagged, 1 failed.")
        assert_lasting(page, folder, "This is a folder. Drop the pictures that are in it.")


def test_a_file_that_is_gone_is_not_the_service_s_fault(open_page: Open, photos: list[Path], tmp_path: Path) -> None:
    gone = Path(shutil.copy(photos[0], tmp_path / "gone.jpg"))
    with open_page(UNREADABLE) as page:
        wait_for_options(page)
        page.get_by_label("Look for").select_option("labels of your own")
        drop(page, gone)
        wait(page, "0 of 1 picture tagged, 1 failed.")
        gone.unlink()
        page.get_by_label("Look for").select_option("everyday")
        wait(page, "0 of 1 picture tagged, 1 failed.")
        assert_lasting(page, gone, "This file cannot be read any more.")


def test_what_is_too_large_is_not_tried_again(open_page: Open, photos: list[Path], tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(20_000_001))
    with open_page(TOO_LARGE) as page:
        # A proxy's refusal, in HTML, as nginx sends it.
        page.route("**/v1/tag", lambda route: route.fulfill(status=413, content_type="text/html", body="<h1>413</h1>"), times=1)
        choose(page, photos[0])
        assert_lasting(page, photos[0], "This is too large for the service or a proxy before it.")
        choose(page, large)
        assert_lasting(page, large, "This file has 20.0 MB; the service takes 20.0 MB at most.")


@pytest.mark.parametrize("key", ["open…", "日本", "clé"])
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_key_that_no_browser_can_send_is_refused_and_another_may_be_given(
    browser: Browser, guarded: Guarded, path: str, key: str
) -> None:
    with opened(browser, guarded.url, NO_KEY) as page:
        page.goto(f"{guarded.url}{path}")
        give_key(page, key)
        page.get_by_text("The service refused this key. Enter another one.").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        give_key(page, guarded.key)
        page.get_by_label("API key").wait_for(state="hidden")
        page.get_by_label("Look for" if path == "/" else "Requests").wait_for()
        assert not page.get_by_role("alert").is_visible()


def test_no_tags_no_slider_and_no_type_of_file_that_may_not_be_read(open_page: Open, broken: Path) -> None:
    with open_page(("the server responded with a status of 422",)) as page:
        assert page.get_by_label("Choose pictures").get_attribute("accept") == "image/*"
        choose(page, broken)
        wait(page, "0 of 1 picture tagged, 1 failed.")
        slider = page.get_by_label("Least score")
        assert (slider.is_disabled(), slider.get_attribute("aria-valuetext")) == (True, "no tags yet")
        assert page.get_by_text(f"the best {TAGS} tags of a picture").is_visible()
