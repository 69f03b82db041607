"""The cache's folder: who may write to it, what is listed and removed, and names that no system takes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import read_bounded, replacing, write_arrays
from sigrl_deploy.machine.cache_folder import cached_files, clear_cache, default_cache_dir
from sigrl_deploy.recognizer import Recognizer
from tests.support.label_encoder import TEXT, Encoder, assert_right, names
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused

LABELS = ["cat", "cup", "rocket"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_list_and_clear_touch_own_files_only(folder: Path) -> None:
    Encoder().cache(folder).vocabulary(names(5))
    mine = sorted(folder.glob("*/*.npz"))
    half_written = folder / TEXT / f".{mine[0].name}.0123456789ab.tmp"
    shutil.copy(mine[0], half_written)
    others = [folder / "labels-1.npz", folder / "data" / mine[0].name, folder / TEXT / "labels-mine.npz"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(mine[0], path)
    (folder / "empty").mkdir()
    listed = list(cached_files(folder))
    assert [file.path for file in listed] == mine
    assert sorted((file.kind, len(file.labels)) for file in listed) == [("labels", 1), ("labels", 4), ("vocabulary", 5)]
    assert clear_cache(folder) == 4
    assert all(path.exists() for path in [*others, folder / "empty"])
    others[-1].unlink()
    assert_right(Encoder().cache(folder).vocabulary(names(5)), names(5))
    clear_cache(folder)
    assert not (folder / TEXT).exists()
    assert clear_cache(folder / "missing") == 0
    assert not list(cached_files(folder / "missing"))


def test_clear_does_not_follow_links(folder: Path, tmp_path: Path) -> None:
    Encoder().cache(tmp_path / "elsewhere").vocabulary(names(5))
    folder.mkdir()
    (folder / TEXT).symlink_to(tmp_path / "elsewhere" / TEXT, target_is_directory=True)
    assert clear_cache(folder) == 0
    assert not list(cached_files(folder))
    assert len(list(cached_files(tmp_path / "elsewhere"))) == 3


def test_a_pipe_in_a_files_place_does_not_hang(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In another process, which can be stopped if it does."""
    Encoder().cache(folder).vocabulary(names(8))
    for path in folder.glob("*/*.npz"):
        path.unlink()
        os.mkfifo(path)
    script = (
        "import sys; from pathlib import Path\n"
        "from sigrl_deploy.machine.cache_folder import cached_files\n"
        "from tests.support.label_encoder import Encoder, assert_right, names\n"
        "assert_right(Encoder().cache(Path(sys.argv[1])).vocabulary(names(8)), names(8))\n"
        "assert len(list(cached_files(Path(sys.argv[1])))) == 3"
    )
    command = [sys.executable, "-c", script, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("is a folder, pipe or device, expected a file") == 3


def test_list_shows_bundle_sizes_and_nothing_that_moves_the_cursor(bundle: Path, folder: Path) -> None:
    Recognizer(bundle, device="cpu", cache_dir=folder).vocabulary(["cat", "dog"])
    (side,) = folder.iterdir()
    strange = [np.array([1, 2]), np.array([b"a", b"b"]), np.array(["\x1b[31mred", "b"])]
    for i, labels in enumerate(strange):
        write_arrays(side / f"labels-{i:032x}.npz", {"labels": labels, "label_embedding": np.zeros((2, 512), np.float32)})
    command = [sys.executable, "-m", "sigrl_deploy", "labels", "list", "--cache-dir", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(bundle) in run.stdout
    assert "0.0 MB" not in run.stdout
    assert [line.split()[:5] for line in run.stdout.splitlines()[2:]] == [
        ["labels", "2", "labels", "5", "kB"],
        ["labels", "2", "labels", "5", "kB"],
        ["vocabulary", "2", "labels", "9", "kB"],
    ]
    assert "\x1b" not in run.stdout
    assert r"\x1b[31mred" in run.stdout


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the creation of the temporary file and the block."""
    close = os.close

    def interrupted(descriptor: int) -> None:
        close(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr("sigrl_deploy.files.os.close", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [1, 20])
def test_a_folder_with_too_long_a_name(bundle: Path, tmp_path: Path, depth: int) -> None:
    long = tmp_path.joinpath(*["x" * 300] * depth)
    (tmp_path / "labels.txt").write_text("cat\n")
    for verb, status in (("build", 2), ("list", 0), ("clear", 0)):
        given = [str(tmp_path / "labels.txt"), "--bundle", str(bundle)] if verb == "build" else []
        command = [sys.executable, "-m", "sigrl_deploy", "labels", verb, *given, "--cache-dir", str(long)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == status, run.stderr
        assert "Traceback" not in run.stderr
    recognizer = Recognizer(bundle, device="cpu", cache_dir=long)
    assert len(recognizer.vocabulary(["cat"])) == 1


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIGRL_DEPLOY_CACHE", os.fspath(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("SIGRL_DEPLOY_CACHE")
    assert default_cache_dir().name == "sigrl-deploy"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_cache_folder_that_others_can_write_to(bundle: Path, tmp_path: Path, mode: int) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    assert_refused(lambda: Recognizer(bundle, device="cpu", cache_dir=cache), UsageError, str(cache), "chmod go-w")
    cache.chmod(0o755)
    Recognizer(bundle, device="cpu", cache_dir=cache)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_cache_folder_of_another_user(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    os.chown(cache, 12345, 12345)
    assert refused(lambda: Recognizer(bundle, device="cpu", cache_dir=cache)) == ("cache_dir", cache)


def test_a_new_cache_folder_is_for_its_owner_to_write(bundle: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Recognizer(bundle, device="cpu", cache_dir=tmp_path / "new" / "cache").vocabulary(LABELS)
    finally:
        os.umask(before)
    Recognizer(bundle, device="cpu", cache_dir=tmp_path / "new" / "cache")
    found = [*(tmp_path / "new").rglob("*")]
    assert len(found) > 4
    assert not [path for path in found if path.stat().st_mode & 0o022]


def test_what_is_no_file_is_refused_and_left_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match=r"folder, pipe or device|Is a directory"):
            read_bounded(path, 10)
    assert len(os.listdir("/proc/self/fd")) == len(before)
