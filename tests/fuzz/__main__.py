"""The long run: `python -m tests.fuzz pictures --count 30000 --seed 1`. Exits with status 1 where it finds a fault."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from tqdm import tqdm

from .workers import make_case, outcomes


@click.command()
@click.argument("target")
@click.option("--count", default=30_000, show_default=True, help="How many damaged files.")
@click.option("--seed", default=1, show_default=True, help="Another seed damages files differently.")
@click.option("--processes", default=2, show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="CPU time that one file may take.")
@click.option("--megabytes", default=1024.0, show_default=True, help="Memory that one file may take.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the files that show a fault.")
def main(target: str, count: int, seed: int, processes: int, seconds: float, megabytes: float, keep: Path | None) -> None:
    """Examine damaged files of TARGET (pictures, checkpoints, bundles); report what failed, the slowest and the largest."""
    first, target = seed * 10**9, f"{__package__}.{target}"
    done, found = [], 0
    for each in tqdm(outcomes(target, range(first, first + count), processes), total=count, unit="file"):
        done.append(each)
        if each.fault or each.seconds > seconds or each.megabytes > megabytes:
            found += 1
            tqdm.write(f"case {each.case}: {each.seconds:.1f} s, {each.megabytes:.0f} MB {each.fault}", sys.stdout)
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / str(each.case)).write_bytes(make_case(target, each.case))
    print(f"{len(done)} files, {sum(each.read for each in done)} read, {found} faults")
    for name in ("seconds", "megabytes"):
        most = sorted(done, key=lambda each: getattr(each, name), reverse=True)[:5]
        print(f"most {name}: " + ", ".join(f"{getattr(each, name):.2f} (case {each.case})" for each in most))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
