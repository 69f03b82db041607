"""docs/serving.md states the service's limits as they are."""

from __future__ import annotations

import re
from pathlib import Path

from sigrl_deploy.cli.serve import serve
from sigrl_deploy.serve.limits import Limits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def test_the_table_of_limits_has_the_defaults() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Limits\n")[2].partition("\n## ")[0]
    defaults = {option: parameter.default for parameter in serve.params for option in parameter.opts}
    rows = re.findall(r"^\| (`--.+?) \| (.+?) \|", section, re.MULTILINE)
    stated = {
        option.strip("`"): float(value)
        for options, values in rows
        for option, value in zip(options.split(", "), values.split(", "), strict=True)
    }
    assert len(stated) >= 6
    assert stated == {option: defaults[option] for option in stated}


def test_the_page_says_how_many_pictures_a_request_may_have() -> None:
    assert f"up to {Limits().pictures} pictures" in PAGE.read_text(encoding="utf-8")
