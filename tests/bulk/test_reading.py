"""Pictures in tar and Parquet files, whole and damaged, and what they are tagged with outside of Ray."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigrl_deploy import ImageError, Recognizer
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parquet_files import Rows, read_rows, rows_of
from sigrl_deploy.bulk.plan import Plan, make_plan
from sigrl_deploy.bulk.reading import Reading, Sizes
from sigrl_deploy.bulk.run import run_bulk
from sigrl_deploy.bulk.sources import find_source
from sigrl_deploy.bulk.tar_files import read_members
from sigrl_deploy.errors import UsageError
from sigrl_deploy.ray.tagger import content_of
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place, is_outage
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused


def tar(path: Path, members: dict[str, bytes]) -> Place:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return Place(str(path))


MEMBERS = {f"{i}{ending}": bytes([i]) * 700 for i in range(9) for ending in (".jpg", ".json")}


def said(content: Content) -> str:
    """The error of a picture that is none."""
    assert callable(content)
    with pytest.raises((ImageError, OSError)) as raised:
        content()
    return str(raised.value)


@pytest.mark.parametrize("skip", [0, 4, 9])
def test_tar_members_come_in_order_from_any_of_them_on(tmp_path: Path, skip: int) -> None:
    place = tar(tmp_path / "a.tar", MEMBERS | {"._0.jpg": b"", "folder/9.PNG": b"\t" * 700, "link.jpg": b""})
    found = list(read_members(place, "a.tar", skip))
    names = [f"a.tar/{i}.jpg" for i in range(9)] + ["a.tar/folder/9.PNG", "a.tar/link.jpg"]
    assert [name for name, _ in found] == names[skip:]
    assert [content for _, content in found] == [*(bytes([i]) * 700 for i in range(skip, 10)), b""]


def test_of_a_tar_file_that_was_cut_its_whole_pictures_are_read(tmp_path: Path) -> None:
    """At every border of its blocks, as files are cut by what copies them in large pieces, and beside them."""
    place = tar(tmp_path / "a.tar", MEMBERS)
    whole = Path(place.url).read_bytes()
    end = 2 * 9 * (512 + 1024)  # where zeros begin
    for cut in [0, 300, 3000, 9300, *range(512, end + 1, 512)]:
        Path(place.url).write_bytes(whole[:cut])
        *pictures, (name, content) = read_members(place, "a.tar", 0)
        assert len(pictures) == (cut + 3072 - 512 - 700) // 3072  # a picture of 700 bytes, and as much for what is beside it
        assert name == "a.tar"
        assert f"is damaged after {len(pictures)} pictures" in said(content)
    Path(place.url).write_bytes(whole[: end + 512])
    assert len(list(read_members(place, "a.tar", 0))) == 9


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_tar_files_are_pictures_with_an_error(tmp_path: Path, kind: bytes) -> None:
    """As tar stores the second name of a file."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.jpg", "note.txt"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "other.jpg"
            archive.addfile(member)
    ((name, content),) = read_members(Place(str(tmp_path / "a.tar")), "a.tar", 0)
    assert (name, said(content)) == ("a.tar/a.jpg", "is a link to other.jpg, expected a picture file; pack files, not links")


def test_a_name_of_any_size_in_a_tar_file_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    ((_, content),) = read_members(Place(str(tmp_path / "a.tar")), "a.tar", 0)
    assert "a name of 4,294,967,296 bytes" in said(content)


def test_a_tar_file_that_is_gone_is_a_picture_with_an_error(tmp_path: Path) -> None:
    ((name, content),) = read_members(Place(str(tmp_path / "gone.tar")), "gone.tar", 0)
    assert name == "gone.tar"
    assert "No such file" in said(content)


@pytest.fixture
def parquet(tmp_path: Path) -> Place:
    rng = np.random.default_rng(0)
    table = pa.table({"key": [f"k{i}" for i in range(50)], "bytes": [rng.bytes(2000) for _ in range(50)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40, data_page_size=4000, compression="snappy")
    return Place(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("skip", [0, 1, 16, 39])
def test_rows_come_in_order_from_any_of_them_on(parquet: Place, skip: int) -> None:
    wanted = pq.read_table(parquet.url).slice(0, 40).slice(skip).to_pydict()
    found = list(read_rows(parquet, "a.parquet", Rows(0, 0, 40), skip, None, None))
    assert found == list(zip(wanted["key"], wanted["bytes"], strict=True))


@pytest.mark.parametrize(("first", "count", "skip"), [(0, 7, 0), (7, 20, 3), (20, 20, 19), (40, 10, 2)])
def test_pieces_of_row_groups(parquet: Place, first: int, count: int, skip: int) -> None:
    found = read_rows(parquet, "a.parquet", Rows(first // 40, first, count), skip, None, None)
    assert [name for name, _ in found] == [f"k{row}" for row in range(first + skip, first + count)]


@pytest.mark.parametrize("rows", [Rows(0, 30, 20), Rows(2, 50, 3)])
def test_rows_that_are_not_there_have_errors(parquet: Place, rows: Rows) -> None:
    found = dict(read_rows(parquet, "a.parquet", rows, 0, None, None))
    assert len(found) == rows.count
    assert "is damaged" in said(found[f"a.parquet#{rows.first + rows.count - 1}"])


def test_rows_of_a_parquet_file_that_is_gone_have_errors(tmp_path: Path) -> None:
    found = read_rows(Place(str(tmp_path / "gone.parquet")), "gone.parquet", Rows(0, 5, 4), 1, None, None)
    assert [(name, "No such file" in said(content)) for name, content in found] == [
        (f"gone.parquet#{i}", True) for i in (6, 7, 8)
    ]


def test_a_damaged_parquet_file_has_an_error_for_each_row_that_is_lost(parquet: Place) -> None:
    path = Path(parquet.url)
    content = bytearray(path.read_bytes())
    content[45_000:46_000] = bytes(1000)
    path.write_bytes(content)
    found = list(read_rows(parquet, "a.parquet", Rows(0, 0, 40), 3, None, None))
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
    assert list(read_rows(place, "a.parquet", Rows(0, 0, 2), 0, None, None)) == [("a", b""), ("a.parquet#1", b"x")]


def test_columns_and_keys_of_other_kinds(tmp_path: Path) -> None:
    """Keys that are bytes, text that repeats, pictures as Hugging Face stores them, and text that is none."""
    not_text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9.jpg", b"b.jpg"]).buffers())
    images = pa.array([{"bytes": b"x", "path": None}, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table(
        {"id": [b"caf\xe9", b"b"], "key": pa.array(["k", "k"]).dictionary_encode(), "image": images, "bad": not_text}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    place, rows = Place(str(tmp_path / "a.parquet")), Rows(0, 0, 2)
    assert list(read_rows(place, "a", rows, 0, None, "id")) == [("caf\\xe9", b"x"), ("b", b"")]
    assert list(read_rows(place, "a", rows, 0, "image", "key")) == [("k", b"x"), ("k", b"")]
    (_, bad), (name, good) = read_rows(place, "a", rows, 0, "bad", None)
    assert said(bad) == "its row holds text that is not UTF-8"
    assert (name, good) == ("k", str(tmp_path / "b.jpg"))


def test_a_struct_without_bytes_is_refused(tmp_path: Path) -> None:
    images = pa.array([{"bytes": [1, 2], "path": "a"}], pa.struct([("bytes", pa.list_(pa.uint8())), ("path", pa.string())]))
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    assert refused(lambda: list(rows_of([Place(str(tmp_path / "a.parquet"))], None, None, 100)))[0] == "column"


def test_a_name_that_no_bucket_has_costs_its_row_alone() -> None:
    content = content_of(Place("s3://lake/images//a.jpg", "http://127.0.0.1:9"))
    assert "cannot be opened" in said(content)


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError("When reading: AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"), True),
        (OSError("When reading: AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate"), True),
        (OSError("When reading: AWS Error UNKNOWN (HTTP status 503) during GetObject operation: "), True),
        (OSError("When reading: AWS Error ACCESS_DENIED during HeadObject operation: No response body."), False),
        (OSError("When reading: AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body."), False),
        (OSError("When reading: AWS Error INVALID_OBJECT_STATE during GetObject operation: archived"), False),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no)"), False),
        (OSError("google::cloud::Status(UNAVAILABLE: later)"), True),
        (OSError("Corrupt snappy compressed data."), False),
    ],
)
def test_outages_are_told_from_files_that_are_at_fault(error: OSError, outage: bool) -> None:
    assert is_outage(error) is outage


def reading(**more: Any) -> tuple[Reading, Callable[[str], Plan]]:
    options = BulkOptions(("x",), "out", Path("bundle"), **more)

    def plan(source: str) -> Plan:
        return make_plan(find_source([source], None), replace(options, source=(source,)), "run")

    return Reading(None, None, None, more.pop("base", "")), plan


def test_a_file_that_has_changed_is_not_gone_on_with(tmp_path: Path, parquet: Place) -> None:
    read, plan = reading()
    tar(tmp_path / "a.tar", MEMBERS)
    for source in (parquet.url, str(tmp_path / "a.tar")):
        made = plan(source)
        assert len(list(read.pictures(made.unit(0)))) in (9, 40)
        os.utime(source, ns=(1, 1))
        assert_refused(lambda made=made: read.pictures(made.unit(0)), UsageError, source, "has changed since the run began")


def test_relative_names_are_those_of_the_driver_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a cluster have another; names in the output stay as they were given."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"x")
    tar(tmp_path / "a.tar", MEMBERS)
    pq.write_table(pa.table({"path": ["in/a.jpg"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"bytes": [b"x"]}), tmp_path / "b.parquet")
    monkeypatch.chdir(tmp_path)
    _, plan = reading()
    plans = {source: plan(source) for source in ("in", "a.tar", "a.parquet", "b.parquet")}
    monkeypatch.chdir("/")
    found = {}
    for source, made in plans.items():
        read = Reading(None, None, None, made.base)
        assert read.reaches(made)
        found[source] = next(read.pictures(made.unit(0)))
    assert found == {
        "in": ("in/a.jpg", str(tmp_path / "in" / "a.jpg")),
        "a.tar": ("a.tar/0.jpg", MEMBERS["0.jpg"]),
        "a.parquet": ("in/a.jpg", str(tmp_path / "in" / "a.jpg")),
        "b.parquet": ("b.parquet#0", b"x"),
    }


def test_a_source_of_which_nothing_can_be_opened_is_out_of_reach(tmp_path: Path) -> None:
    """One picture that is gone is a row with an error, all are a disk that is away."""
    for i in range(40):
        (tmp_path / f"{i:02}.jpg").touch()
    read, plan = reading()
    made = plan(str(tmp_path))
    for i in range(40):
        sizes = Sizes()
        (tmp_path / f"{i:02}.jpg").unlink()
        assert read.reaches(made) == (i < 32)  # the eighth of the first pictures of three units is number 32
    list(sizes.measured(read.pictures(made.unit(0))))
    assert set(sizes.take(16)) == {None}


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
