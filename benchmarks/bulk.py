"""How fast `sigrl-deploy bulk` is beside `infer`, what start and memory it costs, and its rows over time while it is killed.

python -m benchmarks.bulk FOLDER        # makes what it needs in FOLDER; writes results/bulk.json. A quarter of an hour.

The model is ViT-B/16 with random weights in fp32, with a hundred labels. Rounds of `infer` and of each way to share the cores
take turns. Rates and CPU seconds are from a run's first rows to its last ones, so without the start. Where other programs have
the cores too, CPU seconds say more than rates.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from benchmarks.machine import identity
from benchmarks.opened_files import counting_opens
from benchmarks.workload import bundle_of, prepare
from sigrl_deploy.bundle.manifest import read_manifest
from sigrl_deploy.export.parity import PHOTOS
from sigrl_deploy.files import replacing
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.version import version_of
from tests.support.bulk_runs import BULK, about, below, kill_worker, rows
from tests.support.processes import INFER

RESULTS = Path(__file__).resolve().parent / "results" / "bulk.json"
PICTURES = 240
SIDE = 640  # pixels of a picture's longer side
SHARES = ((1, 2), (2, 1))  # workers, CPUs of each

Run = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--variant", default="vit-b16")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    prepare(args.folder, args.variant, [], [("onnxruntime", "fp32")], "cpu")
    bundle, pictures = bundle_of(args.folder, "fp32"), args.folder / "pictures"
    make_pictures(pictures, args.pictures)
    measured = rounds(pictures, bundle, args.folder / "rows", args.rounds)
    machine = identity("cpu") | {"ray": version_of("ray")}
    results = {"machine": machine, "variant": args.variant, "pictures": args.pictures} | measured
    results["reading_ms"] = reading_ms(pictures, bundle)
    results["killed"] = killed(pictures, bundle, args.folder / "killed")
    with replacing(args.out) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def make_pictures(folder: Path, count: int) -> None:
    """Crops of the package's photographs, as JPEG files."""
    folder.mkdir(exist_ok=True)
    photos = [Image.open(path) for path in sorted(PHOTOS.glob("*.jpg"))]
    for i in range(count):
        photo, shift = photos[i % len(photos)], i // len(photos)
        picture = photo.crop((shift, shift, photo.width, photo.height))
        picture.thumbnail((SIDE, SIDE))
        picture.save(folder / f"{i:04}.jpg", quality=90)


def rounds(pictures: Path, bundle: Path, folder: Path, count: int) -> dict[str, Any]:
    """What `infer` and each way to share the cores needed, by round."""
    infer: list[Run] = []
    bulk: dict[tuple[int, int], list[Run]] = {share: [] for share in SHARES}
    for _ in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        lines = folder / "infer.jsonl"
        run = [*INFER, str(pictures), "--bundle", str(bundle), "--device", "cpu", "--format", "jsonl"]
        infer.append(one_run(run, partial(lines_in, lines), lines))
        for workers, cpus in SHARES:
            out = folder / f"{workers}x{cpus}"
            bulk[workers, cpus].append(one_run(command(pictures, bundle, out, workers, cpus), partial(done, out)))
    shares = [{"workers": workers, "cpus": cpus, "runs": runs} for (workers, cpus), runs in bulk.items()]
    return {"infer": infer, "bulk": shares}


def command(pictures: Path, bundle: Path, out: Path, workers: int, cpus: int) -> list[str]:
    options = ["--bundle", bundle, "--device", "cpu", "--out", out, "--workers", workers, "--cpus-per-worker", cpus]
    return [*BULK, str(pictures), *map(str, options)]


def one_run(run: list[str], rows_now: Callable[[], int], stdout: Path = Path(os.devnull)) -> Run:
    """A run that nothing disturbs, observed from outside: `first` is when the first rows were seen, in seconds."""
    samples: list[tuple[float, float, int]] = []
    start, most, used = time.monotonic(), 0, dict[int, float]()
    with stdout.open("wb") as stream:
        process = subprocess.Popen(run, stdout=stream, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            pids = [process.pid, *below(process.pid)]
            most = max(most, sum(map(own_bytes, pids)))
            used |= {pid: seconds for pid in pids if (seconds := cpu_seconds(pid)) is not None}
            samples.append((time.monotonic() - start, sum(used.values()), rows_now()))
            time.sleep(0.2)
    assert process.returncode == 0, run
    rows = [sample for sample in samples if sample[2]]
    (first, cpu, before), last = rows[0], next(sample for sample in rows if sample[2] == rows[-1][2])
    counted = last[2] - before
    return {
        "first": round(first, 2),
        "memory_bytes": most,
        "pictures_per_s": round(counted / (last[0] - first), 3),
        "cpu_seconds_per_picture": round((last[1] - cpu) / counted, 4),
    }


def cpu_seconds(pid: int) -> float | None:
    """What a process has computed so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def files(out: Path) -> list[tuple[float, int]]:
    """When each file of a run was written, and how many rows it has."""
    return sorted((path.stat().st_mtime, about(path)["rows"]) for path in out.glob("part-*"))


def own_bytes(pid: int) -> int:
    """Memory of a process; what it shares with others is shared among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def killed(pictures: Path, bundle: Path, out: Path) -> dict[str, Any]:
    """A run whose worker is killed, then its driver; and the same command again. Seconds and rows."""
    shutil.rmtree(out, ignore_errors=True)
    run, start = command(pictures, bundle, out, 2, 1), time.time()
    total = len(list(pictures.iterdir()))
    events: list[dict[str, Any]] = []
    with counting_opens(pictures) as times_opened:
        process = subprocess.Popen(run, stderr=subprocess.DEVNULL)
        for what, share in (("worker", 0.2), ("driver", 0.6)):
            while done(out) < share * total:
                assert process.poll() is None, run
                time.sleep(0.1)
            kill_worker(process.pid) if what == "worker" else process.kill()
            events.append({"killed": what, "at": time.time() - start, "rows": done(out)})
        process.wait()
        events.append({"started": "driver", "at": time.time() - start, "rows": done(out)})
        subprocess.run(run, check=True, stderr=subprocess.DEVNULL)
    paths = [row["path"] for row in rows(out)]
    assert len(paths) == len(set(paths)) == total
    return {
        "events": events,
        "rows": [[when - start, count] for when, count in cumulative(files(out))],
        "opened_again": times_opened.total() - len(times_opened),
        "rows_per_file": max(count for _, count in files(out)),
    }


def reading_ms(pictures: Path, bundle: Path) -> float:
    """What one thread computes to decode and prepare a picture, the median, in ms."""
    manifest, times = read_manifest(bundle), []
    for path in sorted(pictures.iterdir()):
        start = time.thread_time()
        manifest.preprocess(read_image(path))
        times.append(1000 * (time.thread_time() - start))
    return round(median(times), 3)


def done(out: Path) -> int:
    return sum(about(path)["rows"] for path in out.glob("part-*"))


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def cumulative(written: list[tuple[float, int]]) -> Iterator[tuple[float, int]]:
    whole = 0
    for when, count in written:
        whole += count
        yield when, whole


if __name__ == "__main__":
    main()
