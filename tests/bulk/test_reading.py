"""Pictures in tar and Parquet files, whole and damaged, and what they are tagged with outside of Ray."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigrl_deploy import ImageError, Recognizer
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parquet_files import read_rows
from sigrl_deploy.bulk.run import run_bulk
from sigrl_deploy.bulk.tar_files import read_members
from sigrl_deploy.errors import UsageError
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused


def tar(path: Path, members: dict[str, bytes]) -> Place:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return Place(str(path))


MEMBERS = {f"{i}{ending}": bytes([i]) * 700 for i in range(9) for ending in (".jpg", ".json")}


def said(content: Content) -> str:
    """The error of a picture that is none."""
    assert callable(content)
    with pytest.raises(ImageError) as raised:
        content()
    return str(raised.value)


@pytest.mark.parametrize("skip", [0, 4, 9])
def test_tar_members_come_in_order_from_any_of_them_on(tmp_path: Path, skip: int) -> None:
    place = tar(tmp_path / "a.tar", MEMBERS | {"._0.jpg": b"", "folder/9.PNG": b"\t" * 700, "link.jpg": b""})
    found = list(read_members(place, skip))
    names = [f"{place.url}/{i}.jpg" for i in range(9)] + [f"{place.url}/folder/9.PNG", f"{place.url}/link.jpg"]
    assert [name for name, _ in found] == names[skip:]
    assert [content for _, content in found] == [*(bytes([i]) * 700 for i in range(skip, 10)), b""]


@pytest.mark.parametrize(("cut", "count"), [(300, 0), (600, 0), (3000, 1), (9000, 3), (9300, 3)])
def test_of_a_tar_file_that_was_cut_its_whole_pictures_are_read(tmp_path: Path, cut: int, count: int) -> None:
    place = tar(tmp_path / "a.tar", MEMBERS)
    Path(place.url).write_bytes(Path(place.url).read_bytes()[:cut])
    *whole, (name, content) = read_members(place, 0)
    assert len(whole) == count
    assert name == place.url
    assert f"is damaged after {count} pictures" in said(content)


def test_a_tar_file_that_is_gone_is_a_picture_with_an_error(tmp_path: Path) -> None:
    ((name, content),) = read_members(Place(str(tmp_path / "gone.tar")), 0)
    assert name.endswith("gone.tar")
    assert "cannot be opened" in said(content)


@pytest.fixture
def parquet(tmp_path: Path) -> Place:
    rng = np.random.default_rng(0)
    table = pa.table({"key": [f"k{i}" for i in range(50)], "bytes": [rng.bytes(2000) for _ in range(50)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40, data_page_size=4000, compression="snappy")
    return Place(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("skip", [0, 1, 16, 39])
def test_rows_come_in_order_from_any_of_them_on(parquet: Place, skip: int) -> None:
    wanted = pq.read_table(parquet.url).slice(0, 40).slice(skip).to_pydict()
    found = list(read_rows(parquet, 0, 40, skip, None, None))
    assert found == list(zip(wanted["key"], wanted["bytes"], strict=True))


def test_a_damaged_parquet_file_has_an_error_for_each_row_that_is_lost(parquet: Place) -> None:
    path = Path(parquet.url)
    content = bytearray(path.read_bytes())
    content[45_000:46_000] = bytes(1000)
    path.write_bytes(content)
    found = list(read_rows(parquet, 0, 40, 3, None, None))
    assert len(found) == 37
    lost = [(name, said(content)) for name, content in found if callable(content)]
    assert 0 < len(lost) < 37 or content_is_kept(found)
    assert all("is damaged" in line for _, line in lost)


def content_is_kept(found: list[tuple[str, Content]]) -> bool:
    """Zeros in a page without a checksum may change bytes of a picture, and nothing else."""
    return all(isinstance(content, bytes) and len(content) == 2000 for _, content in found)


def test_an_empty_cell_is_an_empty_picture(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": pa.array([None, b"x"], pa.binary()), "key": ["a", None]}), tmp_path / "a.parquet")
    place = Place(str(tmp_path / "a.parquet"))
    assert list(read_rows(place, 0, 2, 0, None, None)) == [("a", b""), (f"{place.url}#1", b"x")]


def fails(error: Exception) -> Callable[[], bytes]:
    def read() -> bytes:
        raise error

    return read


def test_streams_take_bytes_and_what_reads_them(bundle: Path, labels: Path, photos: list[Path]) -> None:
    """Scores and errors are those of the paths."""
    broken = photos[0].read_bytes()[:500]
    with Recognizer(bundle, device="cpu") as recognizer:
        by_path = list(recognizer.stream(photos[:3], labels))
        pairs = [("a", photos[0].read_bytes()), ("b", photos[1].read_bytes), ("c", str(photos[2]))]
        errors = [("d", broken), ("e", fails(OSError(5, "no disk"))), ("f", fails(ImageError("is gone"))), ("g", b"")]
        found = list(recognizer.stream([*pairs, *errors], labels))
        assert_refused(lambda: list(recognizer.stream([("a", 3)], labels)), UsageError, "pairs of a name and bytes")  # type: ignore[list-item]
    assert [record.path for record in found] == list("abcdefg")
    for ours, wanted in zip(found[:3], by_path, strict=True):
        assert ours.scores is not None
        assert wanted.scores is not None
        assert ours.scores.tobytes() == wanted.scores.tobytes()
        assert ours.predictions == wanted.predictions
    lines = [record.error for record in found[3:]]
    assert lines[1:] == [
        "cannot be opened (no disk); check the path and its permissions",
        "is gone",
        "is empty (0 bytes), expected a picture file",
    ]
    assert lines[0] is not None
    assert "<bytes>" not in lines[0]


def test_a_dry_run_counts_and_writes_nothing(
    bundle: Path, labels: Path, tenth_broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_bulk(BulkOptions((str(tenth_broken),), str(out), bundle, labels, dry_run=True)) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("40 pictures in 40 files, about 0.")
    assert second.startswith("of 3")
    assert "pictures/s" in third
    assert not out.exists()


def test_the_example_without_ray_runs(bundle: Path, labels: Path, tenth_broken: Path, tmp_path: Path) -> None:
    command = [ROOT / "docs" / "examples" / "processes.py", tenth_broken, bundle, labels, tmp_path / "out", "2"]
    for _ in range(2):
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "40 pictures, 0 could not be read\n"  # the second time, nothing was left to do
    lines = [json.loads(line) for path in (tmp_path / "out").iterdir() for line in path.read_text().splitlines()]
    assert len({line["path"] for line in lines}) == len(lines) == 40
    assert sum(line["error"] is not None for line in lines) == 4
