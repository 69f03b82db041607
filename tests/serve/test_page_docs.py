"""The page of the interface, in a real browser: it has all of the OpenAPI document, and its commands work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigrl_deploy.serve.interface import describe
from tests.serve.conftest import Guarded, Open
from tests.support.browser import NO_KEY, choose, contrasts, give_key, opened, tags, wait
from tests.support.servers import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

AA = 4.5  # least contrast of text


def test_everything_of_the_document_is_on_the_page(open_page: Open, served: Served) -> None:
    document = describe(False)
    with open_page(viewport={"width": 320, "height": 640}) as page:
        page.get_by_role("link", name="Interface for programs").click()
        page.get_by_role("heading", name="POST /v1/tags").wait_for()
        assert page.url == f"{served.url}/docs"
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                title = f"{method.upper()} {path}"
                heading = page.get_by_role("heading", name=title, exact=True)
                text = page.locator("section").filter(has=heading).inner_text()
                facts = [operation["summary"], *operation["responses"], *operation.get("requestBody", {}).get("content", {})]
                facts += [each["name"] for each in operation.get("parameters", [])]
                facts += [each["description"] for each in operation["responses"].values()]
                assert [fact for fact in facts if fact not in text] == [], title
        for name, schema in document["components"]["schemas"].items():
            text = page.locator("section").filter(has=page.get_by_role("heading", name=name, exact=True)).inner_text()
            assert [field for field in schema.get("properties", {}) if field not in text] == [], name
        links = page.locator("a[href^='#']").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
        assert page.evaluate("links => links.filter((link) => !document.getElementById(link.slice(1)))", links) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_its_commands_work_with_the_key(browser: Browser, guarded: Guarded, photos: list[Path], tmp_path: Path) -> None:
    for name in ("cat.jpg", "cup.jpg"):
        shutil.copy(photos[0], tmp_path / name)
    with opened(browser, guarded.url, NO_KEY, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto(f"{guarded.url}/docs")
        give_key(page, guarded.key)
        button = page.get_by_role("button", name="Copy the command for POST /v1/tag", exact=True)
        button.click()
        page.get_by_text("Copied").wait_for()
        lines = page.locator("pre").all_inner_texts()
        assert page.evaluate("navigator.clipboard.readText()") == lines[0]
        with page.expect_download() as saved:
            page.get_by_role("link", name="Save as an OpenAPI document").click()
        assert json.loads(saved.value.path().read_text()) == describe(True)
    assert len(lines) == sum(map(len, describe(True)["paths"].values()))
    answers = [
        subprocess.run(
            ["sh", "-c", f"{line} -sS --fail"],
            cwd=tmp_path,
            env=os.environ | {"KEY": guarded.key},
            capture_output=True,
            text=True,
        )
        for line in lines
    ]
    assert [(line, answer.stderr) for line, answer in zip(lines, answers, strict=True) if answer.returncode] == []
    assert len(json.loads(answers[0].stdout)["tags"]) == 3
    assert len(json.loads(answers[1].stdout)["results"]) == 2


def test_both_pages_work_under_a_path(open_page: Open, served: Served, photos: list[Path]) -> None:
    outside = f"{served.url}/behind/a/proxy"
    with open_page() as page:
        page.route(
            f"{outside}/**",
            lambda route: route.continue_(url=route.request.url.replace("/behind/a/proxy", "")),
        )
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{outside}/docs")
        page.get_by_role("heading", name="POST /v1/tags").wait_for()
        assert all(f"'{outside}/" in line for line in page.locator("pre").all_inner_texts())
        page.get_by_role("link", name="Tag pictures by hand").click()
        choose(page, photos[0])
        wait(page, "1 of 1 picture tagged.")
        assert tags(page, photos[0])
        assert [url for url in asked if not url.startswith((f"{outside}/", "blob:", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_both_colour_schemes(open_page: Open, served: Served, scheme: str) -> None:
    with open_page(color_scheme=scheme) as page:
        page.goto(f"{served.url}/docs")
        page.get_by_role("heading", name="POST /v1/tags").wait_for()
        found = contrasts(page)
        assert len(found) > 50
        assert {text: contrast for text, contrast in found.items() if contrast < AA} == {}
