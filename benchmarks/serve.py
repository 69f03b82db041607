"""Measure the service beside others around the same model, on this machine, into one JSON file.

    python -m benchmarks.serve --out benchmarks/results/serve.json
    python -m benchmarks.serve --models demo --clients 1 8 --seconds 3 --rounds 1   # a quick look

Contenders take turns in rounds, each in processes of its own, with clients in another one, all on the same cores. `in process`
is no service: `recognize` for one picture alone, `stream` for many. LitServe takes part where it is installed. All are asked
for tags of the same pictures in the same JSON. What FILE has of other models is kept, and with `--rounds 0` of these too.
`report.py` makes tables and plot.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.machine import identity
from benchmarks.workload import bundle_of, prepare
from sigrl_deploy.files import replacing

CLIENTS = (1, 8, 64, 256, 1000)
STEADY_CLIENTS = 64
READY_SECONDS = 60
MODELS = {"demo": "the model that ships", "vit-b16": "ViT-B/16, fp32, 100 labels, random weights"}
# `{bundle}` and `{port}` are filled in.
SERVICES = {
    "sigrl-deploy serve": ("sigrl_deploy", "serve", "--bundle", "{bundle}", "--port", "{port}"),
    "FastAPI, unbatched": ("benchmarks.serving.plain_service", "{bundle}", "{port}"),
    "LitServe, batches": ("benchmarks.serving.litserve_service", "{bundle}", "{port}", "batches"),
    "LitServe, a worker a core": ("benchmarks.serving.litserve_service", "{bundle}", "{port}", "workers"),
}
OURS, IN_PROCESS = "sigrl-deploy serve", "in process"
Record = dict[str, Any]


def main() -> None:
    args = parse()
    results = begun(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for model in args.models:
            bundle = made(folder, model)
            for number in range(args.rounds):
                for record in one_round(bundle, args):
                    results["records"].append({"model": model, "round": number, **record})
                    write(args.out, results)
            if args.steady:
                results["steady"] += [{"model": model, **sample} for sample in steady(bundle, args.steady)]
    write(args.out, results)
    if not args.out:
        print(json.dumps(results, indent=1))


def begun(args: argparse.Namespace) -> Record:
    """New results, with what an earlier run on this machine has and this one does not measure again."""
    results: Record = {"machine": identity("cpu"), "records": [], "steady": []}
    old: Record = json.loads(args.out.read_text(encoding="utf-8")) if args.out and args.out.exists() else results
    if old["machine"] == results["machine"]:
        for kind, again in (("records", args.rounds), ("steady", args.steady)):
            results[kind] = [record for record in old[kind] if not again or record["model"] not in args.models]
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=10, help="for which clients send")
    parser.add_argument("--patience", type=float, default=30, help="seconds after which a client leaves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steady", type=int, default=0, help="then so many requests of 64 clients, with the service's memory")
    parser.add_argument("--folder", type=Path, help="where bundles are kept [default: a temporary folder]")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


def made(folder: Path, model: str) -> Path:
    """The bundle of a model, as a user would make it."""
    if model == "demo":
        if not (folder / "demo").exists():
            run("sigrl_deploy", "demo", "--out", folder / "demo")
        return folder / "demo" / "bundle"
    (folder / model).mkdir(parents=True, exist_ok=True)
    prepare(folder / model, model, (), [("onnxruntime", "fp32")], "cpu")
    return bundle_of(folder / model, "fp32")


def one_round(bundle: Path, args: argparse.Namespace) -> Iterator[Record]:
    """Every contender once."""
    yield {"contender": IN_PROCESS} | run("benchmarks.serving.in_process", bundle, args.seconds)
    for name, command in SERVICES.items():
        if "LitServe" in name and not find_spec("litserve"):
            continue
        with serving(bundle, command) as (_, url):
            for clients in args.clients:
                found = loaded(url, clients, args.seconds, args.patience)
                yield {"contender": name, **found}
                print(f"{name}, {clients} clients: {found['per_second']} a second", file=sys.stderr)


def steady(bundle: Path, requests: int) -> Iterator[Record]:
    """The service's memory, now and then, until so many requests are answered."""
    with serving(bundle, SERVICES[OURS]) as (process, url):
        answered = 0
        yield {"answered": answered, "rss_bytes": resident(process)}
        while answered < requests:
            answered += loaded(url, STEADY_CLIENTS, 10, 30)["statuses"].get("200", 0)
            yield {"answered": answered, "rss_bytes": resident(process)}


def loaded(url: str, clients: int, seconds: float, patience: float) -> Record:
    options = ("--clients", clients, "--seconds", seconds, "--patience", patience)
    return run("benchmarks.serving.load", f"{url}/v1/tag", *options)


def run(module: str, *arguments: object) -> Record:
    """Run a module in a process of its own. What its last line says, if that is JSON."""
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    found: Record = json.loads(last) if last.startswith("{") else {}
    return found


@contextmanager
def serving(bundle: Path, command: tuple[str, ...]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service that has answered a first request, and its address."""
    port = free_port()
    arguments = [part.format(bundle=bundle, port=port) for part in command]
    command = (sys.executable, "-m", *arguments)
    # A process group of its own: LitServe leaves children behind.
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=os.setpgrp) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/docs", process)
            loaded(url, 4, 1, 30)
            yield process, url
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} did not start")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that a process has now."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def write(path: Path | None, results: Record) -> None:
    if path:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
