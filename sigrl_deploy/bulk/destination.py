"""The folder of a run, which says what the run is: nothing but its plan and its rows may lie there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sigrl_deploy.bulk.options import PLAN_NAME, Shard
from sigrl_deploy.bulk.parts import PART_NAME, Parts
from sigrl_deploy.bulk.plan import Plan
from sigrl_deploy.errors import UsageError
from sigrl_deploy.storage import Place

_MOST_PLAN_BYTES = 1 << 36


@dataclass(frozen=True)
class Destination:
    """The folder, as one shard of a source uses it. Other shards of the same run may use it, too."""

    place: Place
    shard: Shard

    def plan(self) -> Plan | None:
        """The plan of a run that began, or None. Raises UsageError where it is damaged, or there are several."""
        names = [name for name in self._names() if (match := PLAN_NAME.fullmatch(name)) and (match[1] or "") == self.shard.name]
        if len(names) > 1:
            raise self._refusal(f"holds the plans of two runs, {names[0]} and {names[1]}; give an empty folder")
        if not names:
            return None
        with self._parts("").errors():
            content = self.place.below(names[0]).read(_MOST_PLAN_BYTES)
        try:
            plan = Plan.from_bytes(content)
        except ValueError as error:
            raise self._refusal(f"{names[0]} is damaged ({error}); remove the folder, or choose another") from None
        if self.plan_name(plan) != names[0]:
            raise self._refusal(f"{names[0]} is that of another run; remove the folder, or choose another")
        return plan

    def begin(self, plan: Plan) -> Parts:
        """Begin a run, or go on with it. Raises UsageError where the folder holds another's files, or cannot be written."""
        file, parts = self.place.below(self.plan_name(plan)), self._parts(plan.id)
        with parts.errors():
            if not self.place.is_remote:
                self.place.filesystem.create_dir(self.place.path, recursive=True)
            names = self._names()
            self._check(plan, names)
            if self.plan_name(plan) not in names:
                file.write(plan.to_bytes())
                try:
                    self._check(plan, self._names())  # again: of two that begin together, at least one sees the other
                except UsageError:
                    with suppress(FileNotFoundError):
                        file.filesystem.delete_file(file.path)
                    raise
        return parts

    def _check(self, plan: Plan, names: Sequence[str]) -> None:
        plans = {name: match for name in names if (match := PLAN_NAME.fullmatch(name))}
        for name, match in plans.items():
            if int(match[3] or 1) != self.shard.count:
                problem = f"was begun with {match[3] or 'no'} shards; use the same, or another folder"
                raise UsageError(problem, argument="shard", value=f"{self.shard.number}/{self.shard.count}")
            if match[4] != plan.id:
                what = "another shard, or another run that began now, has other pictures, or another bundle, labels or options"
                raise self._refusal(f"{name}: {what}; give all the same, and begin in an empty folder")
        shards = {match[1] or "" for match in plans.values()}
        for name in names:
            part = PART_NAME.fullmatch(name)
            known = name in plans or (part and (part[1] or "") in shards)
            if not known and name.endswith((".parquet", ".arrow")):
                raise self._refusal(f"holds {name}, which is not of this run; give an empty folder")

    def plan_name(self, plan: Plan) -> str:
        return f"_plan-{self.shard.name}{plan.id}.arrow"

    def _names(self) -> list[str]:
        from pyarrow.fs import FileType

        with self._parts("").errors():
            (info,) = self.place.filesystem.get_file_info([self.place.path])
            return [name for name, _ in self.place.entries()] if info.type is FileType.Directory else []

    def _parts(self, plan: str) -> Parts:
        return Parts(self.place, self.shard, plan)

    def _refusal(self, problem: str) -> UsageError:
        return UsageError(problem, argument="out", value=self.place.url)
