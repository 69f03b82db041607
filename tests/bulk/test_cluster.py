"""What `bulk` and `Tagger` give is what `infer` says, to the bit, whatever the pictures lie in; in one Ray cluster."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import S3FileSystem

from sigrl_deploy.bulk import plan
from sigrl_deploy.bulk.options import BulkOptions, Shard
from sigrl_deploy.bulk.run import run_bulk
from sigrl_deploy.config import Device
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from tests.support.bulk_runs import SECONDS, Wanted, about, assert_equal, bulk, rows, s3_server
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # from Ray, about itself

Options = list[str | Path]
Run = Callable[..., int]


@pytest.fixture
def run(address: str, bundle: Path, labels: Path, caplog: pytest.LogCaptureFixture) -> Run:
    """A run in this process, which is spared the start of another, by one worker; the lines that it says are in `caplog`."""
    caplog.set_level(logging.INFO, "sigrl_deploy")
    given = BulkOptions((), "", bundle, labels, engine=EngineOptions(device=Device.CPU), address=address, cpus_per_worker=1)

    def call(source: str | Path, out: str | Path, **more: Any) -> int:
        caplog.clear()
        return run_bulk(replace(given, source=(str(source),), out=str(out), **{"workers": 1} | more))

    return call


@pytest.fixture
def files(tenth_broken: Path) -> list[Path]:
    return sorted(tenth_broken.glob("*/*.jpg"))


def test_a_folder(
    address: str,
    options: Options,
    run: Run,
    tenth_broken: Path,
    wanted: Wanted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By its relative name, and with relative options: the cluster's processes have another folder."""
    monkeypatch.chdir(tenth_broken.parent)
    out = tmp_path / "out"
    done = bulk(
        *(tenth_broken.name, *options, "--out", os.path.relpath(out), "--address", address),
        *("--workers", "2", "--cpus-per-worker", "1"),
        status=1,
    )
    assert_equal(rows(out), wanted)
    assert {row["path"] for row in rows(out)} == {os.path.relpath(record["path"]) for record in wanted.values()}
    assert b"4 pictures could not be read or scored; see the column error" in done.stderr
    assert b"40 pictures, 4 of them with an error" in done.stderr
    assert run(tenth_broken.name, out) == 4
    assert "finished before" in caplog.text
    assert "holds 40 rows, 4 of them with an error" in caplog.text
    monkeypatch.chdir("/")
    assert_refused(lambda: run(tenth_broken.name, out), UsageError, f"was begun in the folder {tenth_broken.parent}")


def test_parquet_by_two_shards(run: Run, files: list[Path], wanted: Wanted, tmp_path: Path) -> None:
    """Bytes, paths and Hugging Face's structs, with keys and without, in a file each."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "pictures").symlink_to(files[0].parents[1])
    names, contents = [file.name for file in files], [file.read_bytes() for file in files]
    images = pa.array(
        [{"bytes": file, "path": None} for file in contents], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    paths = [f"pictures/{file.relative_to(file.parents[1])}" for file in files]
    tables = {
        "a": pa.table({"key": names[:17], "bytes": contents[:17], "other": range(17)}),
        "b": pa.table({"path": paths[17:25]}),
        "c": pa.table({"key": names[25:37], "image": images[25:37]}),
        "d": pa.table({"image": contents[37:]}),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=9)
    # The first with a GPU for its worker, which then encodes the labels.
    errors = [run(folder / "*.parquet", out, shard=Shard(n, 2), gpus_per_worker=gpus) for n, gpus in ((1, 1), (2, None))]
    assert sum(errors) == 4
    assert len(list(out.glob("_plan-*of2-*.arrow"))) == 2
    found = rows(out)
    without_key = {f"{folder / 'd.parquet'}#{i}": names[37 + i] for i in range(3)}
    assert_equal([row | {"path": without_key.get(row["path"], row["path"])} for row in found], wanted)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(endpoint: str, files: list[Path]) -> S3FileSystem:
    """Of a bucket `lake` with the pictures, and with tar files as WebDataset has them: each picture beside its caption."""
    filesystem = S3FileSystem(
        endpoint_override=endpoint.partition("://")[2], scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    filesystem.create_dir("lake")
    for file in files:
        with filesystem.open_output_stream(f"lake/in/{file.parent.name}/{file.name}") as stream:
            stream.write(file.read_bytes())
    for number in range(3):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for file in files[number::3]:
                for name, of_member in ((file.name, file.read_bytes()), (f"{file.stem}.txt", b"a caption")):
                    member = tarfile.TarInfo(f"{file.parent.name}/{name}")
                    member.size = len(of_member)
                    archive.addfile(member, io.BytesIO(of_member))
        with filesystem.open_output_stream(f"lake/tar/{number:06}.tar") as stream:
            stream.write(content.getvalue())
    return filesystem


def test_buckets(
    run: Run,
    endpoint: str,
    bucket: S3FileSystem,
    wanted: Wanted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder of a bucket to a bucket; then tar files of it, each of which has several files of rows."""
    assert run("s3://lake/in", "s3://lake/out", endpoint=endpoint) == 4
    assert "rows are in s3://lake/out" in caplog.text
    assert_equal(rows("lake/out", bucket), wanted)
    assert all(row["path"].startswith("s3://lake/in/") for row in rows("lake/out", bucket))
    assert run("s3://lake/in", "s3://lake/out", endpoint=endpoint) == 4
    assert "finished before" in caplog.text
    with pytest.raises(UsageError, match="s3://nowhere/in") as raised:
        run("s3://nowhere/in", "s3://lake/none", endpoint=endpoint)
    assert raised.value.argument == "source"
    with pytest.raises(UsageError, match="s3://nowhere/out") as raised:
        run("s3://lake/in", "s3://nowhere/out", endpoint=endpoint)
    assert raised.value.argument == "out"

    monkeypatch.setattr(plan, "ROWS", 5)
    out = tmp_path / "out"
    assert run("s3://lake/tar/*.tar", out, endpoint=endpoint) == 4
    assert_equal(rows(out), wanted)
    # A run that was stopped within a tar file goes on with the rest of it, and counts what it tagged.
    parts = sorted(out.glob("part-000001-*"))
    assert [about(part)["rows"] for part in parts] == [5, 5, 3]
    assert [about(part)["last"] for part in parts] == [False, False, True]
    first = parts[0].stat().st_mtime_ns
    for part in parts[1:]:
        part.unlink()
    assert run("s3://lake/tar/*.tar", out, endpoint=endpoint) == 4
    assert "32 of them done before" in caplog.text
    assert "8 pictures" in caplog.text
    assert_equal(rows(out), wanted)
    assert parts[0].stat().st_mtime_ns == first


def test_runs_that_cannot_go_on_end_with_one_line(
    address: str, bundle: Path, labels: Path, tenth_broken: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    command = [sys.executable, "-m", "tests.support.bulk_child", address, tenth_broken, copy, labels, tmp_path]
    child = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=SECONDS, cwd=ROOT)
    assert "Traceback" not in child.stderr
    said = dict(line.split(": ", 1) for line in child.stdout.splitlines())
    assert list(said) == ["busy", "elsewhere", "out of reach", "long", "dies", "dies at once", "damaged"], child.stderr
    assert "the workers did not start within 3 s" in said["busy"]
    assert f"UsageError: address: /proc/self/cwd/{tenth_broken.name}/left/01.jpg is not there on node" in said["elsewhere"]
    assert "out of reach/00.jpg cannot be opened (No such file or directory), and the same goes for" in said["out of reach"]
    assert said["long"] == "ClusterError: the driver has heard of the first file"
    assert "ClusterError: workers died again and again (" in said["dies"]
    assert f"delete the file that kills them, in {tenth_broken}/left/33.jpg to {tenth_broken}/right/22.jpg" in said["dies"]
    assert "ClusterError: workers died again and again (" in said["dies at once"]
    assert "differs from the manifest's sha256" in said["damaged"]
    written = {name: len(list((tmp_path / name).glob("part-*"))) for name in said}
    assert written == dict.fromkeys(said, 0) | {"dies": 1}  # the unit before


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
    address: str, bundle: Path, labels: Path, tenth_broken: Path, wanted: Wanted, tmp_path: Path
) -> None:
    """Once with the bundle at its path, and once on a node that has no such path."""
    cache = tmp_path / "cache"
    arguments = [address, tenth_broken, bundle, labels, tmp_path / "out", cache]
    command = [sys.executable, "-c", TAGGER, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    outs = sorted((tmp_path / "out").iterdir())
    assert len(outs) == 2
    for out in outs:
        found = [row | {"run": ""} for row in rows(out)]
        assert_equal(found, wanted, same_run=False)
    (copied,) = (cache / "bundles").glob("*/")
    assert (copied / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
