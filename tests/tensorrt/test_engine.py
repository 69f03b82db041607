"""What the TensorRT backend decides before it needs a GPU: which engine fits, what it logs before a build, what it refuses."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import EngineKey, Ops, Profile, Range
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.engine import UnavailableError
from sigrl_deploy.engines.tensorrt import TensorRtEngine, check_range, rebuild_options
from sigrl_deploy.errors import UsageError
from sigrl_deploy.machine.gpu import Gpu
from sigrl_deploy.tensorrt.find import find_engine
from sigrl_deploy.tensorrt.library import open_library
from tests.support.refusals import assert_refused

H200 = Gpu("NVIDIA H200", "9.0", "580.65.06", "13.0", 141 << 30)


@pytest.fixture
def built(bundle: Path, tmp_path: Path) -> Path:
    """A bundle with engines for another GPU than this machine's."""
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    done = CliRunner().invoke(main, ["export", "tensorrt", str(own), "--compute-capability", "8.9"])
    assert done.exit_code == 0, done.output
    return own


def test_without_a_build_it_says_why_there_is_no_engine(bundle: Path, built: Path) -> None:
    with pytest.raises(UnavailableError, match=r"sigrl-deploy export tensorrt") as none:
        TensorRtEngine(Bundle(bundle), open_library(), H200, Precision.FP32, build=False)
    assert "the bundle has no visual engine in fp32; the bundle has no text engine in fp32" in none.value.reason
    with pytest.raises(UnavailableError) as other:
        TensorRtEngine(Bundle(built), open_library(), H200, Precision.FP32, build=False)
    assert "it was built for compute capability 8.9, and NVIDIA H200 has 9.0" in other.value.reason


def test_before_a_build_it_says_what_and_how_long_it_took(
    built: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build itself then fails, since there is no GPU to build for."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with caplog.at_level(logging.INFO), pytest.raises(UsageError) as caught:
        TensorRtEngine(Bundle(built), open_library(), H200, Precision.FP32)
    assert caught.value.argument == "compute_capabilities"
    reason, announced = (record.getMessage() for record in caplog.records[:2])
    assert "built for compute capability 8.9" in reason
    assert announced.startswith(f"building engines of {built} for NVIDIA H200; it took ")
    assert announced.endswith(" s before")


def test_what_is_built_again_is_like_the_visual_engine_that_was_there(bundle: Path, built: Path) -> None:
    """A text engine has no batch sizes, so that without a visual engine the defaults apply."""
    arguments = ["--compute-capability", "8.9", "--batch", "1", "2", "4", "--labels", "1", "7", "99", "--ops", "inlined"]
    done = CliRunner().invoke(main, ["export", "tensorrt", str(built), *arguments])
    assert done.exit_code == 0, done.output
    library = open_library()
    visual, text = (find_engine(Bundle(built), graph, Precision.FP32, library.full_name, H200) for graph in ("visual", "text"))
    options = rebuild_options(built, library, Precision.FP32, visual)
    assert (options.ops, options.batch, options.labels) == (Ops.INLINED, Range(1, 2, 4), Range(1, 7, 99))
    assert options.compute_capabilities == ()  # for this machine's GPU
    assert text.nearest is not None
    assert text.nearest.key.profile.batch == Range(1, 1, 1)
    none = find_engine(Bundle(bundle), "visual", Precision.FP32, library.full_name, H200)
    assert rebuild_options(bundle, library, Precision.FP32, none).batch is None


@pytest.mark.parametrize(("size", "labels"), [(5000, "1 81 5000"), (2, "2 81 4096")])
def test_a_request_outside_the_profile_names_the_range_and_the_command_that_widens_it(size: int, labels: str) -> None:
    profile = Profile(Range(1, 1, 32), Range(3, 81, 4096) if size < 3 else Range(1, 81, 4096))
    key = EngineKey("visual", "a", "tensorrt 10.1", Precision.BF16, Ops.INLINED, profile, ("8.9",))
    command = f"sigrl-deploy export tensorrt 'my bundle' --precision bf16 --ops inlined --labels {labels}"
    assert_refused(lambda: check_range(Path("my bundle"), "labels", size, key), UsageError, f"{size} labels", "4096", command)
    check_range(Path("my bundle"), "labels", 81, key)


def test_no_build_is_for_infer(built: Path, photos: list[Path]) -> None:
    done = CliRunner().invoke(
        main, ["infer", str(photos[0]), "--bundle", str(built), "--backend", "tensorrt", "--no-build", "--device", "cpu"]
    )
    assert done.exit_code == 2
    assert "--device cpu: TensorRT does not run there" in done.output
