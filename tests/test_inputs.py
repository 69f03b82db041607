"""Which pictures a run is about."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sigrl_deploy.errors import UsageError
from sigrl_deploy.inputs import find_pictures


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Pictures at three depths, with other files and a link that leads in a circle. Contents do not matter here."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/deep/c.webp", "sub/x[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "sub" / "circle").symlink_to(tmp_path)
    return tmp_path


def _find(*arguments: str | Path, stdin: bytes = b"") -> list[str]:
    return find_pictures([str(argument) for argument in arguments], io.BytesIO(stdin))


def _names(paths: list[str], folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in paths]


def test_a_folder_is_searched_recursively_in_one_order_and_only_for_pictures(tree: Path) -> None:
    assert _names(_find(tree), tree) == ["a.PNG", "b.jpg", "sub/deep/c.webp", "sub/x[1].jpg"]


def test_arguments_keep_their_order_and_a_picture_named_twice_comes_once(tree: Path) -> None:
    assert _names(_find(tree / "b.jpg", tree, tree / "b.jpg"), tree) == ["b.jpg", "a.PNG", "sub/deep/c.webp", "sub/x[1].jpg"]


def test_a_glob_may_match_files_folders_and_any_depth(tree: Path) -> None:
    assert _names(_find(tree / "*.jpg"), tree) == ["b.jpg"]
    assert _names(_find(tree / "s*"), tree) == ["sub/deep/c.webp", "sub/x[1].jpg"]
    assert _names(_find(tree / "sub" / "d*" / "**" / "*.webp"), tree) == ["sub/deep/c.webp"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tree: Path) -> None:
    assert _names(_find(tree / "sub" / "x[1].jpg"), tree) == ["sub/x[1].jpg"]


def test_a_list_names_files_and_folders_line_by_line(tree: Path) -> None:
    listed = f"{tree}/b.jpg\r\n\n{tree}/sub\n{tree}/last.jpg".encode()
    assert _names(_find("-", stdin=listed), tree) == ["b.jpg", "sub/deep/c.webp", "sub/x[1].jpg", "last.jpg"]


def test_a_missing_file_in_a_list_is_one_bad_picture_even_if_it_looks_like_a_glob(tree: Path) -> None:
    missing = f"{tree}/gone[2].jpg"
    assert _find("-", stdin=f"{missing}\n{tree}/b.jpg\n".encode()) == [missing, f"{tree}/b.jpg"]


def test_a_list_may_hold_names_that_are_no_text(tree: Path) -> None:
    name = os.fsencode(tree) + b"/caf\xe9.jpg"
    assert [os.fsencode(path) for path in _find("-", stdin=name + b"\n")] == [name]


def test_a_missing_file_stays_in_the_list(tree: Path) -> None:
    assert _names(_find(tree / "gone.jpg"), tree) == ["gone.jpg"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [("*.tif", "matches no file"), ("empty", "no picture in this folder"), ("-", "list on standard input is empty")],
)
def test_nothing_found_is_an_error_that_names_the_argument(tmp_path: Path, argument: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=said) as error:
        _find(argument if argument == "-" else tmp_path / argument)
    assert argument in str(error.value)


# Permissions do not bind root, so root gives itself up first, in a process of its own.
_AS_NOBODY = """
import io, os
from sigrl_deploy.errors import UsageError
from sigrl_deploy.images import is_image_path
from sigrl_deploy.inputs import find_pictures
is_image_path("a.jpg")  # loads what root alone may be able to read
if os.getuid() == 0:
    os.setuid(65534)
try:
    print(find_pictures(["."], io.BytesIO()))
except UsageError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no POSIX permissions")
def test_a_folder_that_cannot_be_listed_is_not_passed_over_in_silence(tree: Path) -> None:
    tree.chmod(0o755)
    (tree / "sub").chmod(0)
    run = subprocess.run([sys.executable, "-c", _AS_NOBODY], cwd=tree, capture_output=True, text=True)
    (tree / "sub").chmod(0o755)
    assert run.stdout == "refused: ./sub: cannot be listed (Permission denied); check its permissions, or leave it out\n", run
