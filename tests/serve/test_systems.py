"""The service of a bundle whose scores are probabilities."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from sigrl_deploy import Recognizer
from tests.support import scpnet_files
from tests.support.browser import chromium, missing, opened
from tests.support.servers import serving


def test_scores_that_are_probabilities(scpnet_bundle: Path, photos: list[Path]) -> None:
    recognizer = Recognizer(scpnet_bundle, device="cpu", cache_dir=False, threads=1)
    (expected,) = recognizer.recognize(photos[:1], list(scpnet_files.LABELS), top=3)
    with serving(scpnet_bundle) as served, httpx.Client(base_url=served.url, timeout=120) as client:
        assert client.get("/info").json()["probabilities"] is True
        answer = client.post(
            "/v1/tag", params={"top": 3}, content=photos[0].read_bytes(), headers={"content-type": "image/jpeg"}
        )
        tags = answer.json()["tags"]
        assert [tag["label"] for tag in tags] == [tag.label for tag in expected]
        assert all(tag["probability"] == tag["score"] for tag in tags)
        if missing():
            pytest.skip(missing())
        with chromium() as browser, opened(browser, served.url) as page:
            page.wait_for_function("document.getElementById('score-hint').textContent.includes('is the probability')")
