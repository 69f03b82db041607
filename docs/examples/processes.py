"""Tag a folder with several processes, without Ray: python processes.py FOLDER BUNDLE LABELS OUT PROCESSES

Each process writes a file of its own, whole or not at all, so a run that was stopped goes on with the files that are missing.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from sigrl_deploy import Recognizer

PICTURES = 100  # of a file


def tag(job: tuple[Path, list[Path], str, str]) -> int:
    """Write one file; returns how many of its pictures could not be read."""
    file, pictures, bundle, labels = job
    failed, unfinished = 0, file.with_suffix(".unfinished")
    with Recognizer(bundle, threads=1) as recognizer, unfinished.open("w", encoding="utf-8") as out:
        for record in recognizer.stream(pictures, labels, top=5):
            tags = {prediction.label: prediction.score for prediction in record.predictions}
            out.write(json.dumps({"path": record.path, "tags": tags, "error": record.error}) + "\n")
            failed += record.error is not None
    unfinished.rename(file)
    return failed


def main(folder: str, bundle: str, labels: str, out: str, processes: str) -> None:
    Path(out).mkdir(exist_ok=True)
    with Recognizer(bundle) as recognizer:
        recognizer.vocabulary(labels)  # into the cache, from which all processes read it
    pictures = sorted(Path(folder).rglob("*.jpg"))
    parts = {Path(out, f"{start:09}.jsonl"): pictures[start : start + PICTURES] for start in range(0, len(pictures), PICTURES)}
    jobs = [(file, part, bundle, labels) for file, part in parts.items() if not file.exists()]
    with ProcessPoolExecutor(int(processes), mp_context=get_context("spawn")) as pool:
        print(f"{len(pictures)} pictures, {sum(pool.map(tag, jobs))} could not be read")


if __name__ == "__main__":
    main(*sys.argv[1:])
