"""Chromium, driven by playwright, on a page that may talk to nobody but the service that it comes from."""

from __future__ import annotations

import base64
import importlib.util
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigrl_deploy import LabelSet, Recognizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, JSHandle, Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

TAGS = 20  # of a picture, as the page asks for them
NO_KEY = ("the server responded with a status of 401",)  # what the browser's console says of every such answer
SECONDS = 120  # for anything: machines that run the tests are slow at times

# Text and background of every piece of text in view, as [text, colour, background]. Colours are opaque on this page.
_COLOURS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    let behind = element;
    const clear = (each) => getComputedStyle(each).backgroundColor === "rgba(0, 0, 0, 0)";
    while (behind.parentElement && clear(behind)) behind = behind.parentElement;
    const bar = element.closest(".tag");
    const backgrounds = [behind, ...(bar ? [bar] : [])].map((each, i) => getComputedStyle(each, i ? "::before" : null));
    for (const { backgroundColor } of backgrounds)
      found.push([walker.currentNode.data.trim(), getComputedStyle(element).color, backgroundColor]);
  }
  return found;
}"""


def missing() -> str:
    """What there is to install before `chromium` works; "" where nothing is."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed; the extra `test` brings it"
    return "" if CHROMIUM else "there is no chromium; on Debian, `apt-get install chromium` brings it"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, as whom containers run.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """The service's page in a window of its own. Options are those of playwright's `new_context`.

    Afterwards asserts that the page asked nobody but the service for anything, and that the browser's console has no errors but
    those that hold one of the `expected` texts.
    """
    asked: list[str] = []
    problems: list[str] = []
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        yield page
    assert [url for url in asked if not url.startswith((f"{address}/", "blob:", "data:"))] == []
    assert [problem for problem in problems if not any(text in problem for text in expected)] == []


def transfer(page: Page, *paths: Path) -> JSHandle:
    """A DataTransfer that holds files, as a drop or a paste brings it."""
    files = [(path.name, base64.b64encode(path.read_bytes()).decode("ascii")) for path in paths]
    return page.evaluate_handle(
        """(files) => {
          const made = new DataTransfer();
          for (const [name, data] of files)
            made.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type: "image/jpeg" }));
          return made;
        }""",
        files,
    )


def choose(page: Page, *paths: Path) -> None:
    page.get_by_label("Choose pictures").set_input_files(paths)


def wait(page: Page, state: str) -> None:
    """Until the page says so of its pictures."""
    from playwright.sync_api import expect

    expect(page.get_by_role("status")).to_have_text(state, timeout=1000 * SECONDS)


def card(page: Page, path: Path) -> Locator:
    return page.get_by_role("article").filter(has=page.get_by_role("heading", name=path.name, exact=True))


def tags(page: Page, path: Path) -> list[tuple[str, str]]:
    """Labels and scores of a picture that are in view."""
    texts = card(page, path).locator(".tag:visible").all_inner_texts()
    return [(label, score) for label, score in (re.split(r"\s+(?=\S+$)", text.strip()) for text in texts)]


def expected(reference: Recognizer, path: Path, labels: Path | LabelSet, digits: int) -> list[tuple[str, str]]:
    (best,) = reference.recognize([path], labels, top=TAGS)
    named = [(f"{tag.label} ({tag.child})" if tag.child else tag.label, tag.score) for tag in best]
    return [(label, f"{score:.{digits}f}") for label, score in named]


def same(shown: list[tuple[str, str]], reference: list[tuple[str, str]]) -> bool:
    """Equal but for a unit of the last digit, which batches may round otherwise."""
    unit = 1.5 * 10.0 ** -len(reference[0][1].partition(".")[2])
    near = all(abs(float(a[1]) - float(b[1])) < unit for a, b in zip(shown, reference, strict=True))
    return near and [label for label, _ in shown] == [label for label, _ in reference]


def digits(shown: list[tuple[str, str]]) -> int:
    return len(shown[0][1].partition(".")[2])


def show_all(page: Page) -> None:
    page.get_by_label("Least score").press("Home")


def wait_for_options(page: Page) -> None:
    page.get_by_label("Look for").locator("option").first.wait_for(state="attached")


def give_key(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def contrasts(page: Page) -> dict[str, float]:
    """The lowest contrast of each text in view, as the Web Content Accessibility Guidelines 2.2 define it."""
    found: dict[str, float] = {}
    for text, ink, paper in page.evaluate(_COLOURS):
        light, dark = sorted((_luminance(ink), _luminance(paper)), reverse=True)
        found[text] = min(found.get(text, 21.0), (light + 0.05) / (dark + 0.05))
    return found


def _luminance(colour: str) -> float:
    """Relative luminance of a colour such as "rgb(26, 26, 26)"."""
    assert colour.startswith("rgb("), colour
    channels = [int(channel) / 255 for channel in colour[4:-1].split(",")]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
