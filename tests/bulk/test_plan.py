"""Sources, plans and shards, without Ray."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigrl_deploy.bulk.destination import Destination
from sigrl_deploy.bulk.options import BulkOptions, Shard
from sigrl_deploy.bulk.parquet_files import Rows
from sigrl_deploy.bulk.plan import ROWS, Plan, make_plan
from sigrl_deploy.bulk.sources import Kind, Source, _matches, find_source
from sigrl_deploy.errors import UsageError
from sigrl_deploy.pictures.finding import find_pictures
from sigrl_deploy.storage import Place
from tests.support.refusals import assert_refused, refused


def options(*source: str, **more: object) -> BulkOptions:
    return BulkOptions(source, "out", Path("bundle"), **more)  # type: ignore[arg-type]


def plan(count: int, run: str = "run", **more: object) -> Plan:
    return make_plan(Source(Kind.PICTURES, [f"{i}.jpg" for i in range(count)]), options("a", **more), run)


def names(made: Plan) -> list[str]:
    return [url for unit in made.units() for url in unit.urls]


@pytest.mark.parametrize(
    ("count", "files", "largest"), [(1, 1, 1), (17, 2, 16), (1345, 62, 22), (64_000, 64, ROWS), (64_001, 65, ROWS)]
)
def test_small_sources_are_shared_by_all_workers_and_large_ones_have_large_files(count: int, files: int, largest: int) -> None:
    made = plan(count)
    assert (len(made), max(len(unit.urls) for unit in made.units())) == (files, largest)
    assert names(made) == [f"{i}.jpg" for i in range(count)]
    assert made.pictures == count


@pytest.mark.parametrize("count", [7, 100])
def test_shards_have_each_picture_once(count: int) -> None:
    shards = [plan(count, shard=Shard(i + 1, 7)) for i in range(7)]
    found = [name for shard in shards for name in names(shard)]
    assert sorted(found) == sorted(names(plan(count)))
    assert max(map(len, map(names, shards))) - min(map(len, map(names, shards))) <= 1
    assert {shard.listing for shard in shards} == {plan(count).listing} != {plan(count + 1).listing}
    assert len({shard.id for shard in shards}) == 1


def test_a_shard_without_pictures_is_refused() -> None:
    assert_refused(lambda: plan(6, shard=Shard(7, 7)), UsageError, "there are only 6 to share")


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/", "a/b", "-1/3", "1/2/3", "１/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    assert refused(lambda: Shard.parse(text)) == ("shard", text)


def test_plans_survive_a_file_and_names_that_are_not_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    made = make_plan(Source(Kind.PICTURES, [name, "b.jpg"]), options("a"), "run")
    read = Plan.from_bytes(made.to_bytes())
    assert names(read) == [name, "b.jpg"]
    assert (read.id, read.base) == (made.id, os.getcwd())


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"", lambda content: content[:200]])
def test_a_damaged_plan_is_no_plan(damage: object) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Plan.from_bytes(damage(plan(5).to_bytes()))  # type: ignore[operator]


def test_row_groups_are_units(tmp_path: Path) -> None:
    table = pa.table({"bytes": [b"x"] * 45})
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=20)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    pq.write_table(table.slice(0, 3), tmp_path / "c.parquet")
    made = make_plan(find_source([str(tmp_path)], None), options("a"), "run")
    assert [(Path(u.urls[0]).name, u.rows) for u in made.units()] == [
        ("b.parquet", Rows(0, 0, 20)),
        ("b.parquet", Rows(1, 20, 20)),
        ("b.parquet", Rows(2, 40, 5)),
        ("c.parquet", Rows(0, 0, 3)),
    ]
    assert made.pictures == 48


def test_row_groups_of_a_million_rows_are_shared_by_workers(tmp_path: Path) -> None:
    """As pyarrow and pandas write them by default."""
    pq.write_table(pa.table({"path": ["a.jpg"] * 25_001}), tmp_path / "a.parquet", row_group_size=25_000)
    made = make_plan(find_source([str(tmp_path)], None), options("a"), "run")
    assert [u.rows for u in made.units()] == [
        Rows(0, 0, 10_000), Rows(0, 10_000, 10_000), Rows(0, 20_000, 5000), Rows(1, 25_000, 1),
    ]  # fmt: skip


def test_what_runs_have_written_is_no_source(tmp_path: Path) -> None:
    """In the folder of the pictures itself, and below it, beside files of one's own."""
    for folder in (tmp_path, tmp_path / "rows"):
        folder.mkdir(exist_ok=True)
        for name in ("cat.jpg", "_plan-0123456789abcdef.arrow", "part-000000-0000.parquet", "part-1of2-000001-0000.parquet"):
            (folder / name).write_bytes(b"")
    found = find_source([str(tmp_path)], None)
    assert found.kind is Kind.PICTURES
    assert sorted(found.urls) == [str(tmp_path / "cat.jpg"), str(tmp_path / "rows" / "cat.jpg")]


def test_parquet_files_without_rows_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    source = find_source([str(tmp_path)], None)
    assert_refused(lambda: make_plan(source, options("a"), "run"), UsageError, "source=", "have no rows")


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    for name in ("b/2.jpg", "a/1.png", "a/.hidden.jpg", ".git/x.jpg", "note.txt", "raw/1.cr2"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_s_pictures_are_found_as_infer_finds_them(lake: Path) -> None:
    found, infer = find_source([str(lake)], None), find_pictures([str(lake)], io.BytesIO())
    assert found.urls == infer.paths == [str(lake / "a/1.png"), str(lake / "b/2.jpg")]
    assert found.skipped == infer.skipped_line == "1 was skipped: 1 .cr2"


def test_globs_and_repeats(lake: Path) -> None:
    assert find_source([f"{lake}/*/*.jpg", f"{lake}/b", f"{lake}/b/2.jpg"], None).urls == [str(lake / "b/2.jpg")]


def test_several_kinds_are_refused(lake: Path) -> None:
    (lake / "a.tar").touch()
    assert_refused(lambda: find_source([str(lake)], None), UsageError, "2 pictures and 1 tar files", "name one kind")
    assert find_source([f"{lake}/*.tar"], None).kind is Kind.TAR


def test_globs_go_through_folders_as_infer_goes(lake: Path) -> None:
    """A link that leads back is no other folder, a folder that matches stands for its pictures, and ** is whole names."""
    (lake / "a" / "loop").symlink_to(lake)
    (lake / "ab").mkdir()
    (lake / "ab" / "3.jpg").touch()
    for pattern in ("**/*.jpg", "[ab]*", "**/b/*.jpg"):
        found = find_source([f"{lake}/{pattern}"], None)
        assert found.urls == find_pictures([f"{lake}/{pattern}"], io.BytesIO()).paths
    assert len(found.urls) == 1


@pytest.mark.parametrize(
    ("pattern", "url", "matches"),
    [
        ("**/x/*.jpg", "x/1.jpg", True),
        ("**/x/*.jpg", "a/b/x/1.jpg", True),
        ("**/x/*.jpg", "a/fox/1.jpg", False),
        ("**/*.jpg", "a/b/1.jpg", True),
        ("*.jpg", "a/1.jpg", False),
        ("*/x", "a/x/b/1.jpg", True),
        ("a/**", "a/b/1.jpg", True),
    ],
)
def test_globs_in_buckets(pattern: str, url: str, matches: bool) -> None:
    assert _matches(f"s3://lake/{url}".split("/"), f"s3://lake/{pattern}".split("/")) is matches


def test_what_a_run_wrote_below_its_source_is_no_source(lake: Path) -> None:
    made = plan(3)
    parts = Destination(Place(str(lake / "tags")), Shard()).begin(made)
    pq.write_table(pa.table({"path": ["a"]}), lake / "tags" / parts.name(0, 0))
    assert find_source([str(lake)], None).kind is Kind.PICTURES


@pytest.mark.parametrize("source", ["s3://key:secret@lake/in", "s3://lake//in", "s3://*/in"])
def test_names_that_no_bucket_has_are_refused_without_their_secrets(source: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_source([source], None)
    assert "secret" not in str(raised.value)
    assert raised.value.argument == "source"


@pytest.mark.parametrize("source", ["missing", "missing/*.jpg", "http://host/a.jpg", "s3://", "hdfs://a/b"])
def test_sources_that_are_none_are_refused(source: str) -> None:
    assert refused(lambda: find_source([source], None)) == ("source", source)


def test_a_folder_without_pictures_is_refused(lake: Path) -> None:
    assert_refused(lambda: find_source([str(lake / "raw")], None), UsageError, "has no pictures")


@pytest.mark.parametrize(
    ("columns", "more", "argument", "said"),
    [
        ({"a": [b"x"]}, {}, "source", "has no column bytes, image, path, only a; say which with `column`"),
        ({"bytes": [b"x"]}, {"column": "picture"}, "column", "has no such column, only bytes"),
        ({"bytes": [b"x"]}, {"key": "id"}, "key", "has no such column, only bytes"),
        ({"bytes": np.ones(3)}, {}, "column", "holds double"),
    ],
)
def test_parquet_files_without_the_column_are_refused(
    tmp_path: Path, columns: dict[str, object], more: dict[str, str], argument: str, said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = find_source([str(tmp_path)], None)
    with pytest.raises(UsageError) as raised:
        make_plan(source, options("a", **more), "run")
    assert raised.value.argument == argument
    assert said in str(raised.value)


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more")
    source = find_source([str(tmp_path)], None)
    assert_refused(lambda: make_plan(source, options("a"), "run"), UsageError, "a.parquet", "is no Parquet file")
