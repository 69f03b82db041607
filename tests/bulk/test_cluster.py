"""What `bulk` and `Tagger` give is what `infer` says, to the bit, whatever the pictures lie in; in one Ray cluster."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import S3FileSystem

from tests.support.bulk_runs import SECONDS, TOKEN, about, assert_equal, bulk, cluster, expected, rows, s3_server
from tests.support.paths import ROOT

Options = list[str | Path]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Ray's sockets have no room for pytest's long names.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, cluster(Path(folder), cpus=2) as address:
        yield address


@pytest.fixture(scope="module")
def wanted(bundle: Path, labels: Path, tenth_broken: Path) -> dict[str, dict[str, Any]]:
    return expected(tenth_broken, "--bundle", bundle, "--labels", labels, "--device", "cpu")


@pytest.fixture
def files(tenth_broken: Path) -> list[Path]:
    return sorted(tenth_broken.glob("*/*.jpg"))


def test_a_folder(
    address: str, options: Options, tenth_broken: Path, wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = bulk(
        tenth_broken, *options, "--out", out, "--address", address, "--workers", "2", "--cpus-per-worker", "1", status=1
    )
    assert_equal(rows(out), wanted)
    assert {row["path"] for row in rows(out)} == {record["path"] for record in wanted.values()}
    assert b"4 pictures could not be read or scored; see the column error" in done.stderr
    assert b"40 pictures, 4 of them with an error" in done.stderr
    again = bulk(tenth_broken, *options, "--out", out, "--address", address, "--cpus-per-worker", "1", status=1)
    assert b"finished before" in again.stderr
    assert b"holds 40 rows, 4 of them with an error" in again.stderr


def test_types_do_not_depend_on_what_was_found(address: str, options: Options, small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    out = tmp_path / "out"
    bulk(folder, *options, "--out", out, "--address", address, status=1)
    schema = pq.read_schema(next(out.glob("part-*")))
    assert {field.name: str(field.type) for field in schema} == {
        "path": "string",
        "labels": "list<element: string>",
        "scores": "list<element: float>",
        "thresholds": "list<element: float>",
        "probabilities": "list<element: float>",
        "children": "list<element: string>",
        "error": "string",
        "run": "string",
    }


@pytest.mark.parametrize("holds", ["bytes", "paths", "images"])
def test_parquet(
    address: str, options: Options, files: list[Path], wanted: dict[str, dict[str, Any]], tmp_path: Path, holds: str
) -> None:
    names = [file.name for file in files]
    columns: dict[str, Any] = {
        "bytes": {"key": names, "bytes": [file.read_bytes() for file in files], "other": range(len(files))},
        "paths": {"picture": [f"pictures/{file.relative_to(file.parents[1])}" for file in files]},
        "images": {"name": names, "image": [{"bytes": file.read_bytes(), "path": None} for file in files]},
    }
    more = {"bytes": [], "paths": ["--column", "picture"], "images": ["--key", "name"]}
    (tmp_path / "pictures").symlink_to(files[0].parents[1])
    if holds == "images":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns["images"]["image"] = pa.array(columns["images"]["image"], kind)
    # Row groups of 17 in one file, and a second file.
    table = pa.table(columns[holds])
    pq.write_table(table.slice(0, 35), tmp_path / "a.parquet", row_group_size=17)
    pq.write_table(table.slice(35), tmp_path / "b.parquet")
    out = tmp_path / "out"
    found = tmp_path / "*.parquet"
    bulk(found, *options, *more[holds], "--out", out, "--address", address, "--cpus-per-worker", "1", status=1)
    assert_equal(rows(out), wanted)
    assert len(list(out.glob("part-*"))) == 6  # row groups of 17 in files of 16 and 1, twice, of 1, and of 5


def test_rows_without_a_key_are_named_by_file_and_number(
    address: str, options: Options, files: list[Path], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files[:5]]}), tmp_path / "a.parquet", row_group_size=2)
    bulk(tmp_path / "a.parquet", *options, "--out", tmp_path / "out", "--address", address)
    assert sorted(row["path"] for row in rows(tmp_path / "out")) == [f"{tmp_path / 'a.parquet'}#{i}" for i in range(5)]


@pytest.fixture
def shards(files: list[Path], tmp_path: Path) -> list[Path]:
    """Three tar files as WebDataset has them: each picture beside its caption."""
    made = []
    for number in range(3):
        path = tmp_path / f"{number:06}.tar"
        with tarfile.open(path, "w") as archive:
            for file in files[number::3]:
                for name, content in ((file.name, file.read_bytes()), (f"{file.stem}.txt", b"a caption")):
                    member = tarfile.TarInfo(f"{file.parent.name}/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        made.append(path)
    return made


def test_tar_shards(
    address: str, options: Options, shards: list[Path], wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*shards, *options, "--out", out, "--address", address, "--workers", "2", "--cpus-per-worker", "1"]
    bulk(*command, status=1)
    assert_equal(rows(out), wanted)
    # A run that was stopped within a shard goes on with the rest of it.
    part = next(out.glob("part-000001-*"))
    part.unlink()
    assert b"27 of them done before" in bulk(*command, status=1).stderr
    assert_equal(rows(out), wanted)
    assert about(part)["last"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(endpoint: str, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> S3FileSystem:
    """Of a bucket `lake` with the pictures."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    filesystem = S3FileSystem(
        endpoint_override=endpoint.partition("://")[2], scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    filesystem.create_dir("lake")
    for file in files:
        with filesystem.open_output_stream(f"lake/in/{file.parent.name}/{file.name}") as stream:
            stream.write(file.read_bytes())
    return filesystem


def test_buckets(
    options: Options, endpoint: str, bucket: S3FileSystem, wanted: dict[str, dict[str, Any]], shards: list[Path]
) -> None:
    """A folder of a bucket to a bucket, then tar files of it; with Ray of its own, whose workers have the credentials."""
    command = [*options, "--endpoint", endpoint]
    done = bulk("s3://lake/in", *command, "--out", "s3://lake/out", "--cpus-per-worker", "1", status=1)
    assert b"rows are in s3://lake/out" in done.stderr
    assert_equal(rows("lake/out", bucket), wanted)
    assert all(row["path"].startswith("s3://lake/in/") for row in rows("lake/out", bucket))
    again = bulk("s3://lake/in", *command, "--out", "s3://lake/out", "--cpus-per-worker", "1", status=1)
    assert b"finished before" in again.stderr
    for shard in shards:
        with bucket.open_output_stream(f"lake/tar/{shard.name}") as stream:
            stream.write(shard.read_bytes())
    missing = bulk("s3://nowhere/in", *command, "--out", "s3://lake/none", status=2)
    assert missing.stderr.count(b"\n") <= 2
    assert b"error: s3://nowhere/in: " in missing.stderr
    missing = bulk("s3://lake/in", *command, "--out", "s3://nowhere/out", status=2)
    assert b"error: --out s3://nowhere/out: " in missing.stderr


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("damage", "ClusterError: "),
        ("die", "ClusterError: workers died again and again ("),
        ("die at once", "ClusterError: workers died again and again ("),
    ],
)
def test_workers_that_always_fail_end_the_run_with_one_line(
    address: str, bundle: Path, labels: Path, tenth_broken: Path, tmp_path: Path, what: str, said: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    command = [sys.executable, "-m", "tests.support.bulk_child", what, address, tenth_broken, copy, labels, tmp_path / "out"]
    child = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=SECONDS, env=os.environ | TOKEN, cwd=ROOT
    )
    assert child.stdout.startswith(said), child.stderr
    assert child.stdout.count("\n") == 1
    assert "Traceback" not in child.stderr
    assert ("differs from the manifest's sha256" in child.stdout) == (what == "damage")
    assert len(list((tmp_path / "out").glob("part-*"))) == (what == "die")  # the unit before


TAGGER = """
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import ray

from sigrl_deploy.ray import Tagger, ship
from sigrl_deploy.ray import shipping

address, pictures, bundle, labels, out, cache = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
shipped = ship(bundle, labels, options=shipping.EngineOptions(device="cpu"))
# As on another machine, which has no such path: the files come through the object store.
elsewhere = replace(shipped.settings, bundle=Path("/nowhere"), cache_dir=Path(cache))
files = {name: ray.put(content) for name, content in shipping._files(Path(bundle)).items()}
for settings, files in ((shipped.settings, {}), (elsewhere, files)):
    dataset = ray.data.read_binary_files(pictures, include_paths=True)
    tagged = dataset.map_batches(
        Tagger,
        fn_constructor_args=[replace(shipped, settings=settings, files=files)],
        batch_format="pyarrow",
        batch_size=7,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    tagged.drop_columns(["bytes"]).write_parquet(f"{out}/{len(files)}")
"""


def test_tagger_in_a_pipeline_of_one_s_own(
    address: str, bundle: Path, labels: Path, tenth_broken: Path, wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Once with the bundle at its path, and once on a node that has no such path."""
    cache = tmp_path / "cache"
    arguments = [address, tenth_broken, bundle, labels, tmp_path / "out", cache]
    command = [sys.executable, "-c", TAGGER, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=os.environ | TOKEN, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    outs = sorted((tmp_path / "out").iterdir())
    assert len(outs) == 2
    for out in outs:
        found = [row | {"run": ""} for row in rows(out)]
        assert_equal(found, wanted, same_run=False)
    (copied,) = (cache / "bundles").glob("*/")
    assert (copied / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
