"""What the service's page is made of."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGE = ROOT / "sigrl_deploy" / "serve" / "page"


def test_the_files_are_few_and_small_and_name_no_other_place() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}
    assert {"index.html", "docs.html", "page.css", "page.js"} <= files.keys()
    assert sum(len(text.encode()) for text in files.values()) < 40_000
    assert all(text.count("\n") < 300 for text in files.values())
    for text in files.values():
        assert not re.search(r"https?:|@import|url\(|innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    for name in ("index.html", "docs.html"):
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", files[name])
