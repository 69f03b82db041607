"""The command line around a run: help, exit codes, one-line errors, and what must never be imported."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sigrl_deploy.cli.main import main

HEAVY = {"numpy", "onnxruntime", "torch", "PIL", "tqdm", "tokenizers", "onnx", "sklearn", "scipy", "lightning_fabric"}


def _sigrl(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sigrl_deploy", *map(str, arguments)]
    return subprocess.run(command, **{"capture_output": True, "text": True, **options})


def _error(run: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what was wrong; the line that names the engine may come before it."""
    assert "Traceback" not in run.stderr, run.stderr
    lines = [line for line in run.stderr.splitlines() if not line.startswith("engine: ")]
    assert len(lines) == 1, run.stderr
    return lines[0].removeprefix("error: ")


def _verbs(command: click.Command = main, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb and sub-verb, the groups too, by the words that call it."""
    yield path, command
    for name, verb in getattr(command, "commands", {}).items():
        yield from _verbs(verb, *path, name)


VERBS = dict(_verbs())
LEAVES = {path: verb for path, verb in VERBS.items() if not isinstance(verb, click.Group)}


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    script = f"""
import sys
from click.testing import CliRunner
from sigrl_deploy.cli.main import main
for verb in {list(VERBS)}:
    shown = CliRunner().invoke(main, [*verb, "--help"])
    assert shown.exit_code == 0 and "Usage:" in shown.output, (verb, shown.output)
print(*{{name.partition(".")[0] for name in sys.modules}})
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not HEAVY & set(run.stdout.split())


def test_help_answers_in_half_a_second() -> None:
    """The best of a few: the machine may do other things too."""

    def used() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert _sigrl("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(used() for _ in range(3)) < 0.5


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_and_option_says_what_it_is_for(path: tuple[str, ...]) -> None:
    verb = VERBS[path]
    assert verb.get_short_help_str()
    assert [option.opts for option in verb.params if isinstance(option, click.Option) and not option.help] == []
    assert path not in LEAVES or {"quiet", "verbose"} <= {option.name for option in verb.params}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("infer missing.jpg --bundle BUNDLE --labels labels.txt", "missing.jpg: "),
        ("infer cat.jpg --bundle missing --labels labels.txt", "--bundle missing: "),
        ("infer cat.jpg --bundle BUNDLE --labels missing.txt", "--labels missing.txt: "),
        ("labels build missing.txt --bundle BUNDLE", "missing.txt: "),
        ("labels build labels.txt --bundle missing", "--bundle missing: "),
        ("verify missing cat.jpg", "missing: "),
        ("verify BUNDLE missing.jpg --labels labels.txt", "missing.jpg: "),
        ("verify BUNDLE cat.jpg --labels missing.txt", "--labels missing.txt: "),
        ("verify BUNDLE cat.jpg --checkpoint missing.pth", "--checkpoint missing.pth: "),
        ("evaluate folder:missing --bundle BUNDLE", "folder:missing: "),
        ("evaluate missing.csv --bundle BUNDLE", "missing.csv: "),
        ("evaluate scenes --bundle missing", "--bundle missing: "),
        ("evaluate scenes --bundle BUNDLE --labels missing.txt", "--labels missing.txt: "),
        ("evaluate scenes --checkpoint missing.pth", "--checkpoint missing.pth: "),
        ("export onnx missing.pth", "missing.pth: "),
        ("export tensorrt missing", "missing: "),
        ("train scenes --init missing.pth --out run", "--init missing.pth: "),
        ("train folder:missing --init cat.jpg --out run", "folder:missing: "),
    ],
)
def test_a_file_that_is_not_there_is_one_line_with_the_option_that_names_it(
    bundle: Path, place: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    monkeypatch.chdir(place)
    done = CliRunner().invoke(main, [word.replace("BUNDLE", str(bundle)) for word in command.split()])
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("engine: ")]
    assert line.startswith(f"error: {said}")
    assert done.exit_code == 2


def test_help_says_what_each_exit_status_means() -> None:
    run = _sigrl("--help")
    assert run.returncode == 0
    assert all(f"{code} " in run.stdout.partition("Exit status")[2] for code in (0, 1, 2, 3, 130))


def test_infer_never_imports_torch(bundle: Path, photos: list[Path], label_file: Path, tmp_path: Path) -> None:
    """From a cold cache, so that tokenizer, text graph, visual graph and every decoder run with the training side absent."""
    script = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "onnx", "onnxscript", "open_clip", "safetensors", "ml_dtypes"}:
            raise ModuleNotFoundError(f"{name} is blocked")
if sys.argv.pop(1) == "blocked":
    sys.meta_path.insert(0, Blocker())
    try:
        import torch
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("the blocker does not block")
from sigrl_deploy.cli.main import main
main()
"""
    outputs = []
    for mode in ("blocked", "free"):
        command = ["infer", *photos, "--bundle", bundle, "--labels", label_file, "--cache-dir", tmp_path / mode]
        options = ["--scores", "all", "--format", "json", "--device", "cpu"]
        run = subprocess.run([sys.executable, "-c", script, mode, *map(str, command), *options], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        outputs.append(json.loads(run.stdout))
    blocked, free = outputs
    assert [record["path"] for record in blocked] == [str(photo) for photo in photos]
    for with_blocker, without in zip(blocked, free, strict=True):
        assert with_blocker["scores"] == pytest.approx(without["scores"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threshold", "nan"], "--threshold nan: expected a finite number"),
        (["--threshold", "inf"], "--threshold inf: expected a finite number"),
        (
            ["--scores", "all", "--top", "3"],
            "--scores all: gives every label, so leave out --top, --threshold and --thresholds",
        ),
        (["--resume"], "--resume: only a run with --format jsonl and --out can be resumed"),
        (["--resume", "--out", "a.csv"], "--resume: only a run with --format jsonl and --out"),
        (["--resume", "--overwrite", "--out", "a.jsonl"], "--resume: continues a file, and --overwrite starts it again"),
        (["--retry-errors", "--out", "a.jsonl"], "--retry-errors: is for a run that is continued; add --resume"),
        (["--overwrite"], "--overwrite: is for a file; give --out"),
        (
            ["--out", "tags.xml"],
            "--out tags.xml: no format has this ending; expected .jsonl, .json, .csv, .txt (a table), or give --format",
        ),
        (["--device", "cpu", "--unfused", "match"], "--unfused match: "),
        (["--out", "missing/a.json"], "--out missing/a.json: the folder missing does not exist"),
        (["--out", "folder"], "--out folder: is a folder, device or pipe"),
        (["--out", "pipe"], "--out pipe: is a folder, device or pipe"),
        (["--out", "cat.jpg"], "--out cat.jpg: is one of the files to read"),
        (["--out", "link.jpg"], "--out link.jpg: is one of the files to read"),
        (["--labels", "labels.txt", "--out", "labels.txt"], "--out labels.txt: is one of the files to read"),
        (["--out", "unfinished.jsonl"], "--out unfinished.jsonl: an interrupted run left unfinished.jsonl.partial"),
        (["--labels", "folder"], "--labels folder: cannot be read (Is a directory)"),
        (["--labels", "cat.jpg"], "--labels cat.jpg: line 1: not UTF-8"),
        (["--labels", "missing.txt"], "--labels missing.txt: cannot be read (No such file"),
        (["--labels", "empty.txt"], "--labels empty.txt: holds no labels"),
        ([], "--labels: the bundle has no vocabulary of its own; give labels or a label file"),
        (["--labels", "labels.txt", "--out", "o" * 251 + ".csv"], "cannot be written (File name too long)"),
        (["--labels", "labels.txt", "--resume", "--out", "o" * 249 + ".jsonl"], "cannot be written (File name too long)"),
        (["missing*.jpg"], "missing*.jpg: matches no file"),
        (["\x1b[31m*.jpg"], r"\x1b[31m*.jpg: matches no file"),
        (["folder"], "folder: no picture in this folder"),
    ],
)
def test_an_argument_that_cannot_be_used_is_one_line_and_status_2(
    bundle: Path, place: Path, options: list[str], said: str
) -> None:
    run = _sigrl("infer", "cat.jpg", "--bundle", bundle, *options, cwd=place)
    assert said in _error(run)
    assert run.returncode == 2
    assert run.stdout == ""


@pytest.fixture
def place(tmp_path: Path, photos: list[Path]) -> Path:
    """A working folder with one of everything that an option may wrongly point at. Nothing in it may change."""
    photo = next(photo for photo in photos if photo.name == "cat.jpg")
    shutil.copy(photo, tmp_path / "cat.jpg")
    (tmp_path / "link.jpg").symlink_to("cat.jpg")
    (tmp_path / "folder").mkdir()
    (tmp_path / "labels.txt").write_text("\n".join(f"label {i}" for i in range(10)))
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "unfinished.jsonl.partial").write_text("{")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def test_a_picture_is_not_overwritten_by_its_own_tags(bundle: Path, place: Path) -> None:
    before = (place / "cat.jpg").read_bytes()
    run = _sigrl("infer", ".", "--bundle", bundle, "--format", "json", "--out", "./cat.jpg", cwd=place)
    assert run.returncode == 2
    assert (place / "cat.jpg").read_bytes() == before


@pytest.mark.parametrize("harm", ["file", "folder", "graph", "manifest", "lost"])
def test_a_bundle_that_cannot_be_used_is_one_line_and_status_3(bundle: Path, place: Path, harm: str) -> None:
    broken = place / "bundle"
    expected = str(broken)
    if harm == "file":
        broken.write_text("no folder")
    elif harm == "folder":
        broken.mkdir()
    else:
        shutil.copytree(bundle, broken)
        file = broken / ("manifest.json" if harm == "manifest" else "visual.onnx")
        expected = str(file)
        if harm == "lost":
            file.unlink()
        else:
            content = bytearray(file.read_bytes())
            content[len(content) // 2 : len(content) // 2 + 1] = b"\x00"
            file.write_bytes(content)
    run = _sigrl("infer", "cat.jpg", "--bundle", broken, "--labels", "labels.txt", cwd=place)
    assert expected in _error(run)
    assert run.returncode == 3
    assert run.stdout == ""


def test_an_empty_list_is_one_line_and_status_2(bundle: Path) -> None:
    for stdin in (subprocess.PIPE, None):
        close = None if stdin else lambda: os.close(0)
        run = _sigrl("infer", "-", "--bundle", bundle, input="\n" if stdin else None, preexec_fn=close)
        assert "the list on standard input is empty" in _error(run)
        assert run.returncode == 2


def test_a_wrong_option_is_status_2(bundle: Path) -> None:
    run = _sigrl("infer", "cat.jpg", "--bundle", bundle, "--top", "0")
    assert run.returncode == 2
    assert "--top" in run.stderr.splitlines()[-1]


def test_a_closed_standard_output_is_one_line_and_status_2(bundle: Path, photos: list[Path]) -> None:
    run = _sigrl("infer", photos[0], "--bundle", bundle, preexec_fn=lambda: os.close(1))
    assert "standard output is closed; open it, or give --out" in _error(run)
    assert run.returncode == 2
