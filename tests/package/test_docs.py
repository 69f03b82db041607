"""The documents say what is so: commands and options exist, links lead somewhere, figures are those that were measured."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from sigrl_deploy.bundle.manifest import FORMAT_VERSION
from sigrl_deploy.cli.main import main
from sigrl_deploy.demo import CHECKPOINT
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.training.recipes import RECIPES, RecipeName
from sigrl_deploy.version import __version__
from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("sigrl_deploy/data/**/*.md")])
README_HEADINGS = ["Install", "Start from CLIP", "Python", "Speed", "What has run", "Documents", "Citation and licence"]
MOST_WORDS = 700
OTHERS = {"--ship", "--measure"}  # options of other programs

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", without_code(text), re.MULTILINE)]


def anchor(title: str) -> str:
    """What GitHub calls a section."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_figures_are_those_of_the_results_files() -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.report", "--check"], check=True, cwd=ROOT)


def test_the_readme_is_short_and_in_order() -> None:
    text = text_of(ROOT / "README.md")
    assert [title for level, title in headings(text) if level == 2] == README_HEADINGS
    assert len([word for word in text.split() if re.search(r"\w", word)]) <= MOST_WORDS


@every_page
def test_headings_do_not_skip_a_level(page: Path) -> None:
    levels = [level for level, _ in headings(text_of(page))]
    assert levels.count(1) <= 1
    assert all(below <= above + 1 for above, below in pairwise(levels))


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(text_of(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in targets:
        if re.match(r"https?://", target):
            continue
        path, _, section = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if section:
            assert section in [anchor(title) for _, title in headings(text_of(place))], target


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    spans = re.findall(r"`([^`\s]+)`", without_code(text_of(page)))
    paths = [span for span in spans if re.match(r"(sigrl_deploy|benchmarks|tests|docs|export)/[\w./-]+$|\w+/[\w/]+\.py$", span)]
    places = (ROOT, ROOT / "sigrl_deploy")
    missing = [path for path in paths if "NAME" not in path and not any((place / path).exists() for place in places)]
    assert not missing


def test_formulas_cite_what_the_method_page_has() -> None:
    page = text_of(ROOT / "docs" / "method.md")
    places = {title for _, title in headings(page)}
    identities = set(re.findall(r"^(\d+)\. \*\*", page, re.MULTILINE))
    code = "".join(text_of(path) for room in ("sigrl_deploy", "benchmarks") for path in sorted((ROOT / room).rglob("*.py")))
    sections, numbers = (set(re.findall(rf"docs/method\.md, {what}", code)) for what in ('"([^"]+)"', r"identity (\d+)"))
    assert {"Image side", "Scores"} <= sections <= places
    assert {"2", "4", "5"} <= numbers <= identities


def test_contributing_names_what_is_in_the_files() -> None:
    text = " ".join(text_of(ROOT / "CONTRIBUTING.md").split())
    named = re.findall(r"((?:`\w+`(?:,| and|, and)? ?)+)(?:in|\() ?`([\w/]+\.py)`", text)
    assert len(named) > 20
    for names, path in named:
        code = text_of(ROOT / path)
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class|    def)?\s*{name}\b", code, re.MULTILINE), (name, path)


def test_every_room_is_described() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    (layers, *_) = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    rooms = {room.strip() for layer in layers["layers"] for room in layer.split("|")}
    described = re.findall(r"^\| (`.+?) \|", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    assert rooms <= {room for row in described for room in re.findall(r"`(\w+)`", row)}


def test_the_table_of_recipes_has_their_values() -> None:
    page = text_of(ROOT / "docs" / "training.md")
    (head,) = re.findall(r"^\| \| (`zero-shot` \|.+) \|$", page, re.MULTILINE)
    recipes = [RECIPES[RecipeName(name)] for name in re.findall(r"`([\w-]+)`", head)]
    shown = {name: cells.split(" | ") for name, cells in re.findall(r"^\| `--([\w-]+)` \| (.+) \|$", page, re.MULTILINE)}
    for name in ("lr", "distillation", "entropy-weight"):
        values = [getattr(recipe, name.replace("-", "_")) for recipe in recipes]
        assert [0.0 if cell == "—" else float(cell.split(";")[0]) for cell in shown[name]] == values
    for name in ("epochs", "batch-size", "trained-blocks", "augment"):
        values = [getattr(recipe, name.replace("-", "_")) for recipe in recipes]
        assert shown[name] == ["all" if value is None else str(value) for value in values]


def test_the_changelog_has_this_version_and_this_format() -> None:
    text = text_of(ROOT / "CHANGELOG.md")
    assert f"## {__version__}" in text
    assert re.search(rf"^\| {FORMAT_VERSION} \|", text, re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every call of sigrl-deploy in a page's blocks of shell commands."""
    for block in re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```$", text_of(page), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            for part in re.split(r"\s\|\s|&&", line):
                words = shlex.split(part, comments=True)
                if words and words[0] == "sigrl-deploy":
                    yield words[1:]


CALLS = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", [words for _, words in CALLS], ids=[f"{page}: {' '.join(words)}" for page, words in CALLS])
def test_command_lines_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # --threads sets a variable
    command: click.Command = main
    while isinstance(command, click.Group):
        assert words[0] in command.commands
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, words)


def options(command: click.Command) -> set[str]:
    if isinstance(command, click.Group):
        return {option for verb in command.commands.values() for option in options(verb)}
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return names | {"--help"}


@every_page
def test_options_that_are_named_exist(page: Path) -> None:
    spans = re.findall(r"`([^`]+)`", without_code(text_of(page)))
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert named <= options(main) | OTHERS


@pytest.fixture
def workplace(bundle: Path, photos: list[Path], label_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that the examples name."""
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "labels.txt").symlink_to(label_file)
    (tmp_path / "photos").symlink_to(photos[0].parent)
    for name, photo in zip(("cat.jpg", "cup.jpg"), photos, strict=False):
        (tmp_path / name).symlink_to(photo)
    monkeypatch.chdir(tmp_path)


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


EXAMPLES = [(page.name, i, code) for page in PAGES for i, code in enumerate(examples(page)) if page.name != "README.md"]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("code", [code for *_, code in EXAMPLES], ids=[f"{name}, {i}" for name, i, _ in EXAMPLES])
def test_python_examples_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "example", "exec"), {})
    assert capsys.readouterr().out


def test_the_readme_s_example_prints_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = ROOT / "README.md"
    (code,) = examples(readme)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", text_of(readme), re.DOTALL | re.MULTILINE)
    export_bundle(ExportOptions(CHECKPOINT, tmp_path / "demo" / "bundle"))
    (tmp_path / "sigrl_deploy").symlink_to(ROOT / "sigrl_deploy")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == shown
