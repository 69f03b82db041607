"""One error, in Python's words and in the command line's."""

import logging
import pickle
from pathlib import Path

import click
import pytest

from sigrl_deploy.cli.error_lines import LogLines, error_line
from sigrl_deploy.cli.evaluate import evaluate
from sigrl_deploy.cli.export import export_onnx, export_tensorrt
from sigrl_deploy.cli.infer import infer
from sigrl_deploy.cli.verify import verify
from sigrl_deploy.config import Backend, Device
from sigrl_deploy.engines.engine import UnavailableError
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import SigRLError, UsageError, errors_about
from sigrl_deploy.extras import missing, require


def test_python_reads_arguments_and_a_shell_reads_options() -> None:
    error = UsageError("the bundle holds fp32 only; leave it out, or add `force`", argument="precision", value="fp16")
    assert str(error) == "precision='fp16': the bundle holds fp32 only; leave it out, or add `force`"
    assert error_line(error, export_onnx) == "--precision fp16: the bundle holds fp32 only; leave it out, or add --force"


def test_a_value_reads_as_python_spells_it() -> None:
    values = (0, 0.5, True, "0", Device.CPU, Path("a b"))
    spelled = [str(UsageError("no", argument="x", value=value)).removesuffix(": no") for value in values]
    assert spelled == ["x=0", "x=0.5", "x=True", "x='0'", "x='cpu'", "x='a b'"]


@pytest.mark.parametrize(
    ("problem", "verb", "line"),
    [
        ("use `backend='torch'`", infer, "use --backend torch"),
        ("use `device=cpu`", None, "use --device cpu"),
        ("leave out `build=False`", infer, "leave out --no-build"),
        ("leave out `force=True`", export_tensorrt, "leave out --force"),
        ('use `backend="torch"`', infer, "use --backend torch"),
        ("give `compute_capabilities=('8.9',)`", export_tensorrt, "give --compute-capability 8.9"),
        ("add `text_tower`", export_onnx, "add --text-tower"),
        ("give `null`", infer, "give --null"),
        ("see `sigrl-deploy doctor`", infer, "see `sigrl-deploy doctor`"),
        ("we`force`ird.jpg: no such file", infer, "we`force`ird.jpg: no such file"),
        ("two\nlines", infer, "two\\nlines"),
    ],
)
def test_arguments_in_a_message_become_the_options_of_the_verb(problem: str, verb: object, line: str) -> None:
    assert error_line(SigRLError(problem), verb) == line


def test_log_lines_have_the_options_of_the_verb_that_runs() -> None:
    record = logging.LogRecord(
        "sigrl_deploy.tagging", logging.WARNING, "", 0, "%s: go on with `resume`, or leave out `build=False`", ("a",), None
    )
    with click.Context(infer):
        assert LogLines().format(record) == "a: go on with --resume, or leave out --no-build"
    assert LogLines().format(record) == "a: go on with --resume, or leave out --build False"
    record.name = "another_package"
    assert LogLines().format(record) == "a: go on with `resume`, or leave out `build=False`"


def test_a_positional_argument_is_named_by_what_was_given() -> None:
    assert error_line(UsageError("no such file", argument="checkpoint", value="a.pth"), export_onnx) == "a.pth: no such file"
    assert error_line(UsageError("no such file", argument="checkpoint"), export_onnx) == "CHECKPOINT: no such file"


def test_a_missing_package_names_its_extra() -> None:
    require("json", extra="export")
    with pytest.raises(UsageError) as caught:
        require("json", "no_such_package", extra="openvino", argument="backend", value="openvino")
    error = pickle.loads(pickle.dumps(caught.value))  # as another process would get it
    assert (error.argument, error.value, error.extra) == ("backend", "openvino", "openvino")
    assert "no_such_package is not installed; pip install" in str(error)


def test_a_missing_package_has_the_name_that_pip_knows() -> None:
    assert missing("sklearn", "evaluate").problem.startswith("scikit-learn is not installed; pip install ")


@pytest.mark.parametrize(("verb", "advised"), [(evaluate, "--bundle"), (verify, "--backend")])
def test_an_argument_that_can_be_given_several_times_has_the_option_for_one(verb: click.Command, advised: str) -> None:
    name = f"{advised[2:]}s"
    error = UsageError(f"leave out `{name}`", argument=name, value="a")
    assert error_line(error, verb) == f"{advised} a: leave out {advised}"


def test_an_error_names_the_argument_of_the_caller() -> None:
    with pytest.raises(UsageError) as caught, errors_about(checkpoint="init"):
        raise UsageError("no such file", argument="checkpoint", value="a.pth")
    assert (caught.value.argument, caught.value.value) == ("init", "a.pth")
    with pytest.raises(UsageError) as caught, errors_about(checkpoint="init"):
        raise UsageError("no such file", argument="text_tower")
    assert caught.value.argument == "text_tower"


def test_an_error_with_arguments_of_its_own_reaches_another_process() -> None:
    error = pickle.loads(pickle.dumps(UnavailableError("no GPU", "use another", argument="device", value="cuda")))
    assert (error.argument, error.value, error.reason, str(error)) == (
        "device",
        "cuda",
        "no GPU",
        "device='cuda': no GPU; use another",
    )


@pytest.mark.parametrize(("name", "value"), [("backend", "onnx"), ("device", "gpu"), ("precision", "fp8"), ("threads", 0)])
def test_options_of_an_engine_check_themselves(name: str, value: object) -> None:
    assert EngineOptions(backend="torch").backend is Backend.TORCH  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        EngineOptions(**{name: value})  # type: ignore[arg-type]
    assert (caught.value.argument, caught.value.value) == (name, value)
