"""Which pictures a run is about."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sigrl_deploy.errors import UsageError
from sigrl_deploy.extras import install_command
from sigrl_deploy.pictures.finding import find_pictures
from tests.support.refusals import assert_refused


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
    return find_pictures([str(argument) for argument in arguments], io.BytesIO(stdin)).paths


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


def test_a_missing_file_among_others_stays_in_the_list(tree: Path) -> None:
    assert _names(_find(tree / "gone.jpg", tree / "b.jpg"), tree) == ["gone.jpg", "b.jpg"]


def test_a_link_to_nothing_is_there_and_so_stays_in_the_list(tree: Path) -> None:
    (tree / "lost.jpg").symlink_to(tree / "gone.jpg")
    assert _names(_find(tree / "lost.jpg"), tree) == ["lost.jpg"]


@pytest.mark.parametrize("names", [["gone/"], ["gone.jpg"], ["b.jpg/c.jpg", "gone.jpg"]])
def test_arguments_of_which_none_is_there_are_a_mistake(tree: Path, names: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        _find(*(f"{tree}/{name}" for name in names))
    assert error.value.argument == "pictures"
    assert str(error.value.value).startswith(f"{tree}/{names[0]}")


def test_a_list_may_be_separated_by_null_bytes_as_find_writes_it(tree: Path) -> None:
    (tree / "two\nlines.jpg").touch()
    listed = subprocess.run(["find", tree, "-name", "*.jpg", "-print0"], capture_output=True, check=True).stdout
    found = find_pictures(["-"], io.BytesIO(listed), null_separated=True).paths
    assert sorted(_names(found, tree)) == ["b.jpg", "sub/x[1].jpg", "two\nlines.jpg"]


def test_files_that_hold_a_picture_of_another_kind_are_counted_and_others_are_not(tree: Path) -> None:
    for name in ("a.CR2", "sub/b.cr2", "c.psd", "labels.csv", "README", "d.json"):
        (tree / name).touch()
    found = find_pictures([str(tree)], io.BytesIO())
    assert found.skipped_line == "4 were skipped: 2 .cr2, 1 .psd, 1 linked folder"
    (tree / "sub" / "deep" / "c.psd").touch()
    (tree / "sub" / "deep" / "c.webp").unlink()
    assert_refused(lambda: _find(tree / "sub" / "deep"), UsageError, str(tree / "sub" / "deep"), "1 .psd")


def test_hidden_files_and_folders_are_left_out_of_folders(tree: Path) -> None:
    before = find_pictures([str(tree)], io.BytesIO()).paths
    (tree / ".thumbs").mkdir()
    for name in ("._b.jpg", ".thumbs/b.jpg"):
        (tree / name).touch()
    assert find_pictures([str(tree)], io.BytesIO()).paths == before
    assert find_pictures([str(tree / "._b.jpg")], io.BytesIO()).paths == [str(tree / "._b.jpg")]


def test_heic_files_are_skipped_with_a_word_where_nothing_reads_them(tree: Path) -> None:
    (tree / "a.heic").touch()
    code = (
        "import sys, io; sys.modules['pillow_heif'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'pillow_heif' else real(name, *more)\n"
        "from sigrl_deploy.pictures.finding import find_pictures; print(find_pictures(['.'], io.BytesIO()).skipped_line)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert run.stdout == f"2 were skipped: 1 .heic ({install_command('heif')} to read them), 1 linked folder\n", run


def _nest(folder: Path, levels: int) -> None:
    """So many folders within each other, and a picture in the last one."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("deep.jpg", os.O_CREAT, dir_fd=here))
    os.close(here)


@pytest.mark.parametrize("argument", ["", "**/*.jpg"])
def test_folders_may_lie_far_within_each_other(tmp_path: Path, argument: str) -> None:
    _nest(tmp_path, 1500)
    found = _find(f"{tmp_path}/{argument}")
    assert [os.path.basename(path) for path in found] == ["deep.jpg"]
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own removal recurses


def test_folders_too_deep_for_any_path_are_refused_in_one_line(tmp_path: Path) -> None:
    _nest(tmp_path, 2500)
    with pytest.raises(UsageError, match=os.strerror(errno.ENAMETOOLONG)) as error:
        _find(tmp_path)
    assert len(str(error.value)) < 500
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_glob_of_any_depth_does_not_follow_links_in_circles(tree: Path) -> None:
    (tree / "sub" / "again").symlink_to(tree)  # with the other link, 2 ** 40 paths
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "h.jpg").touch()
    assert _names(_find(tree / "**" / "*.jpg"), tree) == ["b.jpg", "sub/x[1].jpg"]
    assert _names(_find(tree / "**" / "s*" / "**" / "*.webp"), tree) == ["sub/deep/c.webp"]


def test_a_glob_of_any_depth_starts_where_the_process_stands(tree: Path) -> None:
    code = (
        "import io; from sigrl_deploy.pictures.finding import find_pictures\n"
        "print(find_pictures(['**/*.jpg'], io.BytesIO()).paths)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert run.stdout == "['b.jpg', 'sub/x[1].jpg']\n", run


@pytest.mark.parametrize("name", ["*.tif", "empty", "-"])
def test_nothing_found_is_an_error_that_names_the_argument(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    given = name if name == "-" else str(tmp_path / name)
    with pytest.raises(UsageError) as error:
        _find(given)
    assert (error.value.argument, error.value.value) == ("pictures", given)


# Permissions do not bind root, so root gives itself up first, in a process of its own.
_AS_NOBODY = """
import io, os
from sigrl_deploy.errors import UsageError
from sigrl_deploy.pictures.reading import is_image_path
from sigrl_deploy.pictures.finding import find_pictures
is_image_path("a.jpg")  # loads what root alone may be able to read
if os.getuid() == 0:
    os.setuid(65534)
try:
    print(find_pictures(["."], io.BytesIO()).paths)
except UsageError as error:
    print(error.value, str(error).partition("(")[2].partition(")")[0])
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no POSIX permissions")
def test_a_folder_that_cannot_be_listed_is_not_passed_over_in_silence(tree: Path) -> None:
    tree.chmod(0o755)
    (tree / "sub").chmod(0)
    run = subprocess.run([sys.executable, "-c", _AS_NOBODY], cwd=tree, capture_output=True, text=True)
    (tree / "sub").chmod(0o755)
    assert run.stdout == "./sub Permission denied\n", run


def test_a_folder_that_is_not_there_ends_the_command_before_anything_is_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sigrl_deploy", "infer", "nosuchfolder/", "--bundle", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    said = "error: nosuchfolder/: no such file or folder; check the path\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", said)
