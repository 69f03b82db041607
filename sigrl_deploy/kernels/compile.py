"""Compile the kernels ahead of time, without a GPU, and say what each needs of a chip.

python -m sigrl_deploy.kernels.compile        # a table; exit status 1 where a kernel spills or needs more than a chip has
python -m sigrl_deploy.kernels.compile --candidates      # with everything that tuning tries, which must fit sm_90
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.errors import PTXASError

from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import between, gmc, match, svfr, vit
from sigrl_deploy.kernels.blocks import Launch, interpreted

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program may use (CUDA C Programming Guide)
PATCHES = (49, 196, 256, 576, 577)  # of ViT-B/32, B/16 and L/14 at 224 px, B/16 at 384 px with 24², and with one more
DIM = 512
VIT_WIDTHS = (768, 1280)  # of ViT-B and ViT-H, whose rows fill 3/4 and 5/8 of a block
GRAPH_WIDTHS = ((4, 32), (1, 512))  # heads and their features, of GMC's layers
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Variant:
    """One kernel as it is compiled for one case. `signature` has a type for every argument, "constexpr" for constants."""

    name: str
    case: str
    kernel: Any
    signature: dict[str, str]
    launch: Launch


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers a thread, bytes spilled a thread, bytes of shared memory a program."""

    registers: int
    spilled: int
    shared: int

    def fits(self, capability: int) -> bool:
        return self.spilled == 0 and self.shared <= SHARED_LIMIT[capability]


def variants(candidates: bool = False) -> list[Variant]:
    """Every kernel at every real size and dtype, as it runs untuned, and with all `candidates` of tuning if asked for."""
    return [variant for variants in _cases() for variant in (variants if candidates else variants[:1])]


def _cases() -> Iterator[list[Variant]]:
    for dtype, short in _TYPES.items():
        yield from _vit_cases(short)
        yield from _between_cases(dtype)
        for tokens in PATCHES:
            case, x = f"P = {tokens}, {short}", f"*{short}"
            inputs = {"patches": x, "labels": x, "weight": x, "count": "*i32"}
            hows = svfr.candidates(tokens, DIM, dtype, accumulators=1)
            yield _variants("svfr stage 1", case, svfr.decouple_kernel, inputs | {"semantic": "*fp32", "rows": "i32"}, hows)
            hows = svfr.candidates(tokens, DIM, dtype, accumulators=2)
            outputs = {"partial": "*fp32", "rows": "i32", "splits": "i32"}
            yield _variants("svfr stage 2", case, svfr.reconstruct_kernel, inputs | outputs, hows)
            hows = match.candidates(tokens, DIM, dtype)
            inputs = {"local_feature": x, "labels": x, "similarity": "*fp32", "rows": "i32"}
            yield _variants("match", case, match.similarity_kernel, inputs, hows)
            scores = {"similarity": "*fp32", "local_score": "*fp32", "global_score": "*fp32", "rows": "i32", "topk": "i32"}
            inputs = {"global_feature": x, "labels": x} | scores
            yield _variants("match, best", case, match.select_kernel, inputs, [match.select_launch(tokens, DIM)])
    mix = dict.fromkeys(("local_score", "global_score", "score"), "*fp32") | {"rows": "i32"}
    yield _variants("match, norms", "fp32", match.mix_kernel, mix, [Launch({"BLOCK": match.NORM_BLOCK}, 4, 2)])
    for heads, width in GRAPH_WIDTHS:
        tensors = dict.fromkeys(("nodes", "attention", "own", "out"), "*fp32") | {"rows": "i32"}
        case, kernel = f"{heads} × {width}, fp32", gmc.graph_attention_kernel
        yield _variants("gmc", case, kernel, tensors, gmc.candidates(width), HEADS=heads, ABSOLUTE=0.4)


def _between_cases(dtype: torch.dtype) -> Iterator[list[Variant]]:
    x, case, hows = f"*{_TYPES[dtype]}", f"D = {DIM}, {_TYPES[dtype]}", between.candidates(DIM, dtype)
    inputs = {"semantic": "*fp32", "labels": x, "partial": "*fp32", "rows": "i32", "splits": "i32"}
    yield _variants("between, Sᵀ T", case, between.relation_kernel, inputs, hows, CHUNK=between.CHUNK)
    for parts in (1, between.MOST_SPLITS):
        inputs = {"partial": "*fp32", "weight": x, "fused": "*fp32"}
        yield _variants("between, R Waᵀ", case, between.fuse_kernel, inputs, hows, SPLITS=parts)
    inputs = {"semantic": "*fp32", "fused": "*fp32", "projection": x, "v": x, "rows": "i32"}
    yield _variants("between, V", case, between.combine_kernel, inputs, hows)


def _vit_cases(dtype: str) -> Iterator[list[Variant]]:
    x, norm, flat = f"*{dtype}", {"weight": "*fp32", "bias": "*fp32"}, [Launch({"BLOCK": vit.ELEMENTS}, 4, 1)]
    for pixels, patch in (("*fp32", 16), ("*u8", 14)):
        inputs, normalise = {"pixels": pixels, "statistics": "*fp32", "rows": x}, pixels == "*u8"
        kernel, case = vit.patches_kernel, f"p = {patch}, {dtype}"
        yield _variants("vit patches", case, kernel, inputs, flat, SIZE=224, PATCH=patch, NORMALISE=normalise)
    yield _variants("vit QuickGELU", dtype, vit.quick_gelu_kernel, {"x": x, "out": x, "size": "i32"}, flat)
    for width in VIT_WIDTHS:
        case, hows, constants = f"W = {width}, {dtype}", vit.candidates(width), {"TOKENS": 197, "EPS": 1e-5}
        inputs = dict.fromkeys(("embedded", "class_token", "positions"), x) | {"pre_weight": "*fp32", "pre_bias": "*fp32"}
        yield _variants("vit embedding", case, vit.embed_kernel, inputs | norm | {"x": x, "normed": x}, hows, **constants)
        inputs = {"x": x, "delta": x} | norm | {"normed": x}
        yield _variants("vit add, norm", case, vit.add_norm_kernel, inputs, hows, LAST=False, **constants)


def _variants(
    name: str, case: str, kernel: Any, signature: dict[str, str], launches: Sequence[Launch], **constants: Any
) -> list[Variant]:
    launches = [Launch(launch.constants | constants, launch.warps, launch.stages) for launch in launches]
    return [
        Variant(name, case, kernel, signature | dict.fromkeys(launch.constants, "constexpr"), launch) for launch in launches
    ]


def compile_variant(variant: Variant, capability: int) -> Resources:
    """Compile for sm_`capability`. Raises UsageError in Triton's interpreter, which has no compiler."""
    if interpreted():
        raise UsageError("TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it")
    types = {name: variant.signature[name] for name in variant.kernel.arg_names}
    # As Triton compiles for torch's tensors, which start at multiples of 16 bytes: only then are loads asynchronous, and the
    # pipeline's buffers take shared memory.
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(types.values()) if type_.startswith("*")}
    source = ASTSource(variant.kernel, types, variant.launch.constants, aligned)
    options = {"num_warps": variant.launch.warps, "num_stages": variant.launch.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _resource_usage(compiled.asm["cubin"])
    return Resources(usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared)


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout)}


def _row(variant: Variant, capabilities: Sequence[int]) -> tuple[bool, str]:
    """Whether one variant fits these chips, and its lines of the table."""
    fit, lines = True, []
    launch = variant.launch
    side = next((launch.constants[name] for name in ("BLOCK_O", "BLOCK_C", "BLOCK_I") if name in launch.constants), "")
    depth = next((launch.constants[name] for name in ("BLOCK_K", "BLOCK_J") if name in launch.constants), "")
    for capability in capabilities:
        try:
            found = compile_variant(variant, capability)
            fits, needs = found.fits(capability), f"{found.registers:9} {found.spilled:8} {found.shared:8}"
        except PTXASError:  # too few registers for one of its instructions
            fits, needs = False, f"{'none':>9} {'':8} {'':8}"
        fit &= fits
        lines.append(
            f"{variant.name:14} {variant.case:16} {side:5} {depth:5} {launch.warps:5} {launch.stages:6} {capability:4} {needs}"
            f"{'' if fits else '  too much'}"
        )
    return fit, "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernels without a GPU, and say what each needs of a chip.")
    parser.add_argument("--candidates", action="store_true", help="everything that tuning tries")
    candidates = parser.parse_args().candidates
    titles = f"{'side':>5} {'depth':>5} {'warps':>5} {'stages':>6} {'sm':>4} {'registers':>9} {'spilled':>8} {'shared':>8}"
    print(f"{'kernel':14} {'case':16} {titles}")
    fit = True
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for fits, lines in pool.map(_numbered_row, range(len(variants(candidates))), repeat(candidates)):
            fit &= fits
            print(lines, flush=True)
    raise SystemExit(0 if fit else 1)


def _numbered_row(number: int, candidates: bool) -> tuple[bool, str]:
    """By number, since kernels do not travel between processes. A candidate beside the first must fit one chip, sm_90."""
    variant = variants(candidates)[number]
    fit, lines = _row(variant, tuple(SHARED_LIMIT))
    first = variant.launch in [untuned.launch for untuned in variants()]
    return fit or (not first and _row(variant, (90,))[0]), lines


if __name__ == "__main__":
    main()
