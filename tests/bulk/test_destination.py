"""What may lie in the folder of a run: one plan, or those of its shards, and their rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sigrl_deploy.bulk.destination import Destination
from sigrl_deploy.bulk.options import BulkOptions, Shard
from sigrl_deploy.bulk.parts import Part, Parts, finished_units
from sigrl_deploy.bulk.plan import Plan, make_plan
from sigrl_deploy.bulk.sources import Kind, Source
from sigrl_deploy.errors import UsageError
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.storage import Place
from tests.support.refusals import assert_refused

ONE = Shard()


def plan(shard: Shard = ONE, pictures: int = 40, run: str = "run") -> Plan:
    source = Source(Kind.PICTURES, [f"{i}.jpg" for i in range(pictures)])
    return make_plan(source, BulkOptions(("a",), "out", Path("bundle"), shard=shard), run)


def folder(out: Path, shard: Shard = ONE) -> Destination:
    return Destination(Place(str(out)), shard)


def write(parts: Parts, unit: int) -> Path:
    rows = [Record(f"{i}.jpg", error="is gone") for i in range(3)]
    parts.write(unit, 0, rows, "run", Part(3, 3, 10, last=True, plan=parts.plan))
    return Path(parts.place.url) / parts.name(unit, 0)


def test_a_run_finds_its_plan_and_its_rows(tmp_path: Path) -> None:
    assert folder(tmp_path / "out").plan() is None
    parts = folder(tmp_path / "out").begin(plan())
    write(parts, 1)
    found = folder(tmp_path / "out").plan()
    assert found is not None
    assert found.id == plan().id
    again = folder(tmp_path / "out").begin(found)
    assert finished_units(again.done()) == {1}


def test_types_do_not_depend_on_what_was_found(tmp_path: Path) -> None:
    path = write(folder(tmp_path / "out").begin(plan()), 0)
    assert {field.name: str(field.type) for field in pq.read_schema(path)} == {
        "path": "string",
        "labels": "list<element: string>",
        "scores": "list<element: float>",
        "thresholds": "list<element: float>",
        "probabilities": "list<element: float>",
        "children": "list<element: string>",
        "error": "string",
        "run": "string",
    }


def test_names_and_errors_that_are_not_text_are_written(tmp_path: Path) -> None:
    parts = folder(tmp_path / "out").begin(plan())
    rows = [Record("caf\udce9.jpg", error="caf\udce9.parquet is damaged")]
    parts.write(0, 0, rows, "run", Part(1, 1, 0, last=True, plan=parts.plan))
    (row,) = pq.read_table(tmp_path / "out" / parts.name(0, 0)).to_pylist()
    assert (row["path"], row["error"]) == ("caf\\udce9.jpg", "caf\\udce9.parquet is damaged")


SECOND = Shard(2, 3)


@pytest.mark.parametrize(
    ("other", "argument", "said"),
    [
        (plan(SECOND, pictures=41), "out", "has other pictures"),
        (plan(SECOND, run="another"), "out", "another bundle, labels or options"),
        (plan(Shard(2, 4)), "shard", "was begun with 3 shards"),
    ],
)
def test_a_shard_of_another_run_is_refused_every_time(tmp_path: Path, other: Plan, argument: str, said: str) -> None:
    folder(tmp_path, Shard(1, 3)).begin(plan(Shard(1, 3)))
    shard = SECOND if argument == "out" else Shard(2, 4)
    for _ in range(2):
        with pytest.raises(UsageError, match=said) as raised:
            folder(tmp_path, shard).begin(other)
        assert raised.value.argument == argument
    assert folder(tmp_path, shard).plan() is None
    folder(tmp_path, SECOND).begin(plan(SECOND))  # the right one may still come


def test_of_two_that_begin_together_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other writes its plan while the first is about to."""
    first, other = folder(tmp_path), plan(pictures=41)
    kept, names = Destination._names, iter([[]])
    monkeypatch.setattr(Destination, "_names", lambda self: next(names, None) or kept(self))
    (tmp_path / folder(tmp_path).plan_name(other)).write_bytes(other.to_bytes())
    assert_refused(lambda: first.begin(plan()), UsageError, "another run that began now")
    monkeypatch.undo()
    assert first.plan() is not None
    first.begin(other)


def test_rows_of_another_run_are_neither_done_nor_mixed_in(tmp_path: Path) -> None:
    """Someone has removed the plan, to begin again with other labels."""
    old, new = folder(tmp_path).begin(plan()), plan(run="another")
    write(old, 0)
    assert Parts(old.place, ONE, new.id).done() == {}
    (tmp_path / folder(tmp_path).plan_name(plan())).unlink()
    assert_refused(lambda: folder(tmp_path).begin(new), UsageError, "holds part-000000-0000.parquet, which is not of this run")


@pytest.mark.parametrize("shard", [ONE, Shard(1, 2), Shard(1, 8)])
def test_rows_of_shards_without_a_plan_are_refused(tmp_path: Path, shard: Shard) -> None:
    third = Shard(3, 8)
    write(folder(tmp_path, third).begin(plan(third)), 0)
    (tmp_path / folder(tmp_path, third).plan_name(plan(third))).unlink()
    assert_refused(lambda: folder(tmp_path, shard).begin(plan(shard)), UsageError, "holds part-3of8-000000-0000.parquet")


@pytest.mark.parametrize("name", ["other.parquet", "_plan.arrow"])
def test_a_folder_with_files_of_others_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "readme.md").touch()
    assert_refused(lambda: folder(tmp_path).begin(plan()), UsageError, f"holds {name}, which is not of this run")


@pytest.mark.parametrize("content", [b"", b"no plan", plan(pictures=41).to_bytes()])
def test_a_plan_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / folder(tmp_path).plan_name(plan())).write_bytes(content)
    assert_refused(lambda: folder(tmp_path).plan(), UsageError, "_plan-", "remove the folder, or choose another")


def test_another_shard_s_plan_is_never_read(tmp_path: Path) -> None:
    (tmp_path / folder(tmp_path, SECOND).plan_name(plan(SECOND))).write_bytes(b"still being written")
    folder(tmp_path, Shard(1, 3)).begin(plan(Shard(1, 3)))


def test_a_plan_does_not_depend_on_machines(tmp_path: Path) -> None:
    """Two that are started by mistake on machines of any size write the same files."""
    assert plan().id == replace(plan(), base="/elsewhere").id
