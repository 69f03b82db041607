"""`sigrl-deploy export`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from sigrl_deploy.architectures import Contract
from sigrl_deploy.bundle.engine_records import Ops, Range
from sigrl_deploy.cli.options import PATH
from sigrl_deploy.config import Arch, Backend, Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.extras import require
from sigrl_deploy.tensorrt.library import LIBRARIES


@click.group()
def export() -> None:
    """Turn a trained checkpoint into a bundle, and a bundle into TensorRT engines or a Triton repository."""


def _values(enum: type[Arch] | type[Contract] | type[Precision]) -> click.Choice[str]:
    return click.Choice([member.value for member in enum])


@export.command("onnx")
@click.argument("checkpoint", type=PATH)
@click.option(
    "--out",
    type=PATH,
    help="Folder to write [default: CHECKPOINT with -bundle in place of its suffix; for NAME:PRETRAINED, in this folder].",
)
@click.option(
    "--text-tower",
    help="CLIP text tower: a file, or NAME:PRETRAINED [default: CHECKPOINT's own, or OpenAI's of the same size, which the "
    "training recipes freeze].",
)
@click.option(
    "--labels", type=PATH, help="Put this vocabulary into the bundle; for SCPNet all labels of its training, in order."
)
@click.option(
    "--label-embeddings",
    type=PATH,
    help="Saved embeddings [C, D] of --labels, instead of a text tower; of BiAM and (ML)²P, word vectors.",
)
@click.option("--arch", type=_values(Arch), help="How pictures are scored [default: inferred from the checkpoint's tensors].")
@click.option(
    "--clip-config",
    help="open_clip config (a name, NAME:PRETRAINED or a .json file) of a CLIP model whose file does not say it [default: that "
    "of CHECKPOINT or --text-tower NAME:PRETRAINED, or OpenAI's convention].",
)
@click.option(
    "--precision",
    "precisions",
    type=_values(Precision),
    multiple=True,
    default=["fp32"],
    show_default=True,
    help="dtype of the exported graphs; repeatable. The bundle runs in the first one by default.",
)
@click.option(
    "--topk", type=int, help="Patches that the local match averages [default: 16; 18 for mkt, 6 for biam, 1 for ml2p]."
)
@click.option(
    "--preprocess",
    type=_values(Contract),
    help="How pictures were prepared in training [default: zero-shot; clip for --arch clip, clip-bilinear for scpnet, squash "
    "for biam and linear, squash-cifar for ml2p].",
)
@click.option("--template", help="Prompt with {label} in it [default: the checkpoint's or its architecture's].")
@click.option(
    "--tolerance",
    type=float,
    help="Largest score error [default: 1e-4 fp32, 5e-3 fp16, 3e-2 bf16, 1e-2 int8 and int8x3, 5e-2 int8-all].",
)
@click.option("--backbone", type=PATH, help="BiAM and linear classifiers: torchvision's weights of VGG19.")
@click.option("--heads", type=int, help="BiAM: heads of its attention; 8 for NUS-WIDE's checkpoint.")
@click.option("--word-vectors", type=PATH, help="BiAM, (ML)²P: GloVe's vectors as text, for --labels of one word each.")
@click.option("--raw-vectors", is_flag=True, help="(ML)²P: match by word vectors as they are, not at unit length.")
@click.option("--scaling", type=PATH, help="Linear classifiers: the .npz file of their features' minimum and maximum.")
@click.option("--relation", type=PATH, help="SCPNet: the .npy file [C, C] of related labels that training used.")
@click.option(
    "--preset", type=click.Choice(["coco", "voc", "nus-wide", "cub"]), help="SCPNet: the settings published for a data set."
)
@click.option("--sparse-topk", type=int, help="SCPNet: related labels that each keeps, itself too [default: --preset's].")
@click.option("--reweight", type=float, help="SCPNet: the share of the others in a label's row [default: --preset's].")
@click.option("--scale", help="SCPNet: the factor of the cosine, or clip for the checkpoint's own [default: --preset's].")
@click.option("--weights", is_flag=True, help="Also write weights.safetensors, which the torch backend (for GPUs) needs.")
@click.option("--force", is_flag=True, help="Replace an existing bundle at --out.")
def export_onnx(**options: Any) -> None:
    """Export CHECKPOINT to a bundle: visual.onnx, text.onnx, tokenizer and manifest. Scores are compared with the checkpoint's.

    CHECKPOINT is a file (SigRL, MKT, CLIP, SCPNet, BiAM, (ML)²P, a linear classifier, or saved by train), or NAME:PRETRAINED
    for weights that open_clip downloads, such as ViT-B-16:openai; `python -c "import open_clip;
    print(open_clip.list_pretrained())"` lists them.
    """
    from sigrl_deploy.checkpoints.open_clip_weights import check_source, default_bundle

    check_source(options["checkpoint"])  # before anything that takes seconds
    options["out"] = options["out"] or default_bundle(options["checkpoint"])
    require("torch", "onnx", "onnxscript", "open_clip", "safetensors", extra="export")
    from sigrl_deploy.checkpoints.options import SCPNetOptions
    from sigrl_deploy.export.options import ExportOptions
    from sigrl_deploy.export.run import export_bundle

    for name, enum in (("arch", Arch), ("preprocess", Contract)):
        options[name] = options[name] and enum(options[name])
    options["precisions"] = tuple(map(Precision, options["precisions"]))
    options["scpnet"] = SCPNetOptions(**{field.name: options.pop(field.name) for field in fields(SCPNetOptions)})
    for parity in export_bundle(ExportOptions(**options)):
        measured = f"largest score error {parity.largest_error:.1e} (tolerance {parity.tolerance:g})"
        click.echo(f"{options['out']}: exported; {measured}, {parity.backend}")


@export.command("tensorrt")
@click.argument("bundle", type=PATH)
@click.option("--precision", type=_values(Precision), help="One that BUNDLE holds, not int8 [default: its first].")
@click.option(
    "--ops",
    type=click.Choice([ops.value for ops in Ops]),
    help="How SVFR runs: fused, by this project's kernels after the engine; inlined, as standard ops inside it; plugin, by "
    "the kernels inside it (TensorRT only) [default: fused].",
)
@click.option("--batch", type=int, nargs=3, metavar="LEAST BEST MOST", help="Batch sizes [default: 1 1 32].")
@click.option(
    "--labels",
    type=int,
    nargs=3,
    metavar="LEAST BEST MOST",
    help="Numbers of labels [default: 1, as many as the bundle's own vocabulary or 100, 4096].",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="X.Y",
    help="Build ahead of time for GPUs of this compute capability, such as 8.9; repeatable (TensorRT for RTX only) [default: "
    "the GPU of this machine].",
)
@click.option("--hardware-compatible", is_flag=True, help="Let the engine run on all GPUs from Ampere on; it is slower.")
@click.option(
    "--version-compatible", is_flag=True, help="Let the engine run in later releases of the same major version (TensorRT only)."
)
@click.option("--workspace", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="The most scratch memory.")
@click.option("--timing-cache", type=PATH, help="File of measured times, read and updated, which makes builds faster.")
@click.option("--library", type=click.Choice(LIBRARIES), help="[default: tensorrt where it is installed, else tensorrt_rtx]")
@click.option("--force", is_flag=True, help="Also build engines that are there already.")
def export_tensorrt(bundle: Path, **options: Any) -> None:
    """Build TensorRT engines of BUNDLE, for this machine or ahead of time for others, and write them into it."""
    from sigrl_deploy.tensorrt.build import BuildOptions, build_engines

    for name in ("batch", "labels"):
        options[name] = options[name] and Range.of(name, options[name])
    for name, enum in (("precision", Precision), ("ops", Ops)):
        options[name] = options[name] and enum(options[name])
    if options["workspace"] is not None:
        if not options["workspace"] < 1e6:
            raise UsageError(
                "expected a number of gigabytes, such as 4", argument="workspace", value=f"{options['workspace']:g}"
            )
        options["workspace"] = int(options["workspace"] * 1e9)
    for record, built in build_engines(BuildOptions(bundle, **options)):
        key = record.key
        place = key.gpu or f"compute capability {' '.join(key.compute_capabilities)}"
        how = f"built in {record.seconds:.0f} s" if built else "kept"
        click.echo(f"{bundle / record.file}: {record.size / 1e6:.0f} MB, {how}, by {key.library} for {place}")


@export.command("triton")
@click.argument("bundle", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; it must not exist yet, or be empty.")
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the graphs in Triton; tensorrt needs engines in BUNDLE, built with --ops inlined.",
)
@click.option("--precision", type=_values(Precision), help="One that BUNDLE holds [default: the first that the backend runs].")
def export_triton(bundle: Path, out: Path, backend: str, precision: str | None) -> None:
    """Write BUNDLE as a model repository for Triton Inference Server."""
    from sigrl_deploy.triton_server.repository import RepositoryOptions, write_repository

    chosen = Precision(precision) if precision else None
    models = write_repository(RepositoryOptions(bundle, out, Backend(backend), chosen))
    click.echo(f"{out}: wrote the models {', '.join(models)}; start `tritonserver --model-repository {out}`")
