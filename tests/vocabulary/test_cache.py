"""The cache by what it saves: how often the encoder runs, and that nothing on disk can make a result wrong."""

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.errors import BundleError
from sigrl_deploy.files import write_arrays
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.vocabularies import Vocabularies
from sigrl_deploy.vocabulary.cache import digest
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from tests.support.label_encoder import DIM, GRAPH, TEXT, Encoder, assert_right, names
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("new_process", [False, True])
def test_one_label_more_encodes_one_label(folder: Path, new_process: bool) -> None:
    first = Encoder()
    cache = first.cache(folder)
    assert_right(cache.vocabulary(names(1006)), names(1006))
    assert sorted(first.asked) == sorted(names(1006))
    second = Encoder() if new_process else first
    second.asked.clear()
    cache = second.cache(folder) if new_process else cache
    assert_right(cache.vocabulary((*names(1006), "one more")), (*names(1006), "one more"))
    assert second.asked == ["one more"]


def test_real_recognizer_does_no_text_work_twice(bundle: Path, folder: Path) -> None:
    counted: list[int] = []

    def opened() -> Vocabularies:
        engine = Recognizer(bundle, device="cpu", cache_dir=False).engine
        for method in ("encode_labels", "project_graph"):
            setattr(engine, method, counting(getattr(engine, method)))
        return Vocabularies(Bundle(bundle), engine, folder, ())

    def counting(function: Callable[[FloatArray], FloatArray]) -> Callable[[FloatArray], FloatArray]:
        def call(rows: FloatArray) -> FloatArray:
            counted.append(len(rows))
            return function(rows)

        return call

    vocabularies = opened()
    first = vocabularies.of(names(70))
    assert counted == [64, 6, 70]
    counted.clear()
    again = vocabularies.of(names(70)[::-1])
    from_disk = opened().of(names(70))
    assert counted == []
    assert np.array_equal(from_disk.label_embedding, first.label_embedding)
    assert np.array_equal(from_disk.graph_projection, first.graph_projection)
    assert np.array_equal(again.graph_projection[::-1], first.graph_projection)
    opened().of(names(71))
    assert counted == [1, 71]


@pytest.mark.parametrize("disk", [False, True])
def test_order_changes_restore_rows(folder: Path, disk: bool) -> None:
    encoder = Encoder()
    cache = encoder.cache(folder if disk else None)
    shuffled = tuple(np.random.RandomState(0).permutation(names(30)).tolist())
    for labels in (names(30), shuffled, shuffled[::-1]):
        assert_right(cache.vocabulary(labels), labels)
        if disk:
            assert_right(Encoder(fail_after=0).cache(folder).vocabulary(labels), labels)
    assert len(encoder.asked) == 30
    assert encoder.projected == 1


def test_results_can_be_changed_by_the_caller(folder: Path) -> None:
    cache = Encoder().cache(folder)
    cache.vocabulary(names(5)).label_embedding[:] = 0
    assert_right(cache.vocabulary(names(5)), names(5))


@pytest.mark.parametrize("change", ["text", "graph"])
def test_another_identity_misses_the_cache(folder: Path, change: str) -> None:
    Encoder().cache(folder).vocabulary(names(5))
    encoder = Encoder()
    other = digest("another")
    encoder.cache(
        folder, text_key=other if change == "text" else TEXT, graph_key=other if change == "graph" else GRAPH
    ).vocabulary(names(5))
    assert len(encoder.asked) == (5 if change == "text" else 0)  # a label's embedding does not depend on the graph
    assert encoder.projected == 1


def test_without_a_graph(folder: Path) -> None:
    Encoder().cache(folder).vocabulary(names(5))
    vocabulary = Encoder(fail_after=0).cache(folder, graph_key="").vocabulary(names(5))
    assert vocabulary.graph_projection is None


def test_interrupted_encoding_keeps_finished_batches(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Encoder(fail_after=8).cache(folder).vocabulary(names(10))
    encoder = Encoder()
    assert_right(encoder.cache(folder).vocabulary(names(10)), names(10))
    assert len(encoder.asked) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def other_labels(path: Path) -> None:
    Vocabulary(("x", "y"), np.zeros((2, DIM), np.float32), np.zeros((2, DIM), np.float32)).write(path)


def another_width(path: Path) -> None:
    labels = tuple(Vocabulary.read(path, graph=False, width=DIM).labels)
    rows = np.zeros((len(labels), DIM + 1), np.float32)
    Vocabulary(labels, rows, rows).write(path)


def compressed(path: Path) -> None:
    """4 MB of zeros in 4 kB; a thousand times as much is as easily had."""
    with path.open("wb") as file:
        np.savez_compressed(file, labels=np.array(names(8)), label_embedding=np.zeros((8, 1 << 17), np.float32))


def larger_than_it_is(path: Path) -> None:
    """A header that announces 2 TB."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("labels", np.array(names(8))), ("label_embedding", np.zeros((8, DIM), np.float32))):
            with archive.open(f"{name}.npy", "w") as file:
                shape = (8, 1 << 36) if name == "label_embedding" else array.shape
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(array.tobytes())


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def an_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def a_pickle(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": cut,
    "flipped byte": flip,
    "other labels": other_labels,
    "other arrays": lambda path: write_arrays(path, {"a": np.zeros(2)}),
    "a single array": an_array,
    "a pickle": a_pickle,
    "text": lambda path: path.write_text("hello"),
    "another width": another_width,
    "compressed": compressed,
    "larger than it is": larger_than_it_is,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["labels", "vocabulary"])
def test_damaged_file_is_reported_and_rebuilt(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], kind: str
) -> None:
    Encoder().cache(folder).vocabulary(names(8))
    victim = sorted(folder.glob(f"*/{kind}-*.npz"))[0]
    damage(victim)
    if kind == "labels":
        next(folder.glob("*/vocabulary-*")).unlink()
    encoder = Encoder()
    with caplog.at_level(logging.WARNING):
        assert_right(encoder.cache(folder).vocabulary(names(8)), names(8))
    (record,) = caplog.records
    assert str(victim) in record.getMessage()
    assert "computed again" in record.getMessage()
    assert len(encoder.asked) == (4 if kind == "labels" else 0)
    caplog.clear()
    assert_right(Encoder(fail_after=0).cache(folder).vocabulary(names(8)), names(8))
    assert not caplog.records


def test_file_of_another_text_tower_is_not_taken(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Encoder().cache(folder, text_key=digest("another")).vocabulary(names(8))
    (folder / digest("another")).rename(folder / TEXT)
    encoder = Encoder()
    assert_right(encoder.cache(folder).vocabulary(names(8)), names(8))
    assert len(encoder.asked) == 8
    assert len(caplog.records) == 2  # both packs; the vocabulary's name is not asked for


def test_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file in the folder's place, which not even root can write into."""
    (tmp_path / "cache").write_text("")
    encoder = Encoder()
    cache = encoder.cache(tmp_path / "cache")
    for labels in (names(10), names(11)):
        assert_right(cache.vocabulary(labels), labels)
    assert len(encoder.asked) == 11
    (record,) = caplog.records
    assert "kept in memory only" in record.getMessage()
    assert "None" not in record.getMessage()


def test_folder_that_can_only_be_read_is_still_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Encoder().cache(folder).vocabulary(names(8))
    encoder = Encoder()
    cache = encoder.cache(folder)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Vocabulary, "write", refuse)
    assert_right(cache.vocabulary(names(9)), names(9))
    assert_right(cache.vocabulary(names(8)), names(8))
    assert encoder.asked == ["label 8"]
    assert encoder.projected == 1
    assert len(caplog.records) == 1


def test_threads_share_a_cache(folder: Path) -> None:
    encoder = Encoder()
    cache = encoder.cache(folder)
    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(lambda i: cache.vocabulary(names(20 + i % 20)), range(80))):
            assert_right(found, names(20 + i % 20))
    assert len(encoder.asked) == len(set(encoder.asked)) == 39


def test_encoding_many_labels_blocks_no_other_vocabulary(folder: Path) -> None:
    """One that is known comes at once; one that is new comes between two batches, not behind all of them."""
    known, waiting, encoder = ("cat", "dog"), threading.Event(), Encoder()
    cache = encoder.cache(folder)
    cache.vocabulary(known)
    started, order = threading.Event(), []
    encode = encoder.encode

    def slow(labels: Sequence[str]) -> FloatArray:
        started.set()
        assert waiting.wait(60)
        time.sleep(0.001)
        return encode(labels)

    cache._encode = slow
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(cache.vocabulary, names(2000))
        large.add_done_callback(lambda _: order.append("large"))
        assert started.wait(60)
        assert_right(pool.submit(cache.vocabulary, known).result(timeout=60), known)
        new = pool.submit(cache.vocabulary, ("new",))
        new.add_done_callback(lambda _: order.append("new"))
        waiting.set()
        assert_right(new.result(timeout=60), ("new",))
        assert_right(large.result(timeout=60), names(2000))
    assert order == ["new", "large"]


def test_vocabularies_that_fail_leave_nothing_behind(folder: Path) -> None:
    cache = Encoder(fail_after=0).cache(folder)
    for count in range(1, 20):
        with pytest.raises(KeyboardInterrupt):
            cache.vocabulary(names(count))
    assert not cache._building


def test_rows_that_mean_nothing_are_not_kept(folder: Path) -> None:
    for name, wrong, facts in (
        ("wide", np.zeros((1, DIM + 1), np.float32), ("[1, 9]", "[1, 8]")),
        ("not a number", np.full((1, DIM), np.nan, np.float32), ()),
    ):
        for step in ("_encode", "_project"):
            cache = Encoder().cache(folder / name)
            setattr(cache, step, lambda _, wrong=wrong: wrong)
            assert_refused(lambda cache=cache: cache.vocabulary(("cat",)), BundleError, *facts)
        assert_right(Encoder().cache(folder / name).vocabulary(("cat",)), ("cat",))


def test_memory_of_a_cache_without_a_folder_is_bounded() -> None:
    """By rows of vocabularies and by embeddings; what is used stays, and what is forgotten is encoded again."""
    encoder = Encoder()
    cache = encoder.cache(None)
    cache.embeddings_in_memory, cache.rows_in_memory = 12, 20
    for start in range(0, 100, 5):
        labels = (*names(2), *(f"passing {i}" for i in range(start, start + 5)))
        assert_right(cache.vocabulary(labels), labels)
        assert len(cache._embeddings) <= 12
        assert sum(map(len, cache._vocabularies.values())) <= 20
    assert all(row.base is None for row in cache._embeddings.values())  # else a batch stays for a row
    assert len(encoder.asked) == 2 + 100
    assert_right(cache.vocabulary(names(50)), names(50))  # more than may stay
    assert len(cache._embeddings) == 12
    assert len(encoder.asked) == 102 + 48
    assert_right(cache.vocabulary(("passing 0", "passing 1")), ("passing 0", "passing 1"))
    assert len(encoder.asked) == 150 + 2


def test_a_cache_with_a_folder_forgets_no_embedding(folder: Path) -> None:
    encoder = Encoder()
    cache = encoder.cache(folder)
    cache.embeddings_in_memory = 12
    for count in (50, 51):
        assert_right(cache.vocabulary(names(count)), names(count))
    assert len(encoder.asked) == 51


def test_processes_share_a_folder(folder: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.support.label_encoder import Encoder, assert_right, names
        sys.stdin.read()  # all begin at once
        for count in range(40, 60):
            assert_right(Encoder().cache(Path(sys.argv[1])).vocabulary(names(count)), names(count))
        """
    )
    command = [sys.executable, "-c", script, str(folder)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    for process in running:
        process.stdin.close()
    for process in running:
        assert process.wait(60) == 0, process.stderr.read()
        assert process.stderr.read() == ""
        process.stderr.close()
    assert not list(folder.glob("**/*.tmp"))
    assert not list(folder.glob("**/.*"))
    assert_right(Encoder(fail_after=0).cache(folder).vocabulary(names(59)), names(59))
