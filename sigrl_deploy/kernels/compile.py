"""Compile the kernels ahead of time, without a GPU, and say what each needs of a chip.

python -m sigrl_deploy.kernels.compile        # a table; exit status 1 where a kernel spills or needs more than a chip has
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import gmc, match, svfr
from sigrl_deploy.kernels.blocks import Launch, interpreted

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program may use (CUDA C Programming Guide)
PATCHES = (49, 196, 256, 576, 577)  # of ViT-B/32, B/16 and L/14 at 224 px, B/16 at 384 px with 24², and with one more
DIM = 512
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


def variants() -> Iterator[Variant]:
    """Every kernel at every real size and dtype."""
    for dtype, short in _TYPES.items():
        for tokens in PATCHES:
            case, x = f"P = {tokens}, {short}", f"*{short}"
            inputs = {"patches": x, "labels": x, "weight": x, "count": "*i32"}
            how = svfr.launch(tokens, DIM, dtype, accumulators=1)
            yield _variant("svfr stage 1", case, svfr.decouple_kernel, inputs | {"semantic": "*fp32", "rows": "i32"}, how)
            how = svfr.launch(tokens, DIM, dtype, accumulators=2)
            outputs = {"partial": "*fp32", "rows": "i32", "splits": "i32"}
            yield _variant("svfr stage 2", case, svfr.reconstruct_kernel, inputs | outputs, how)
            how = match.launch(tokens, DIM, dtype)
            how = Launch(how.constants | {"WITH_EVIDENCE": False}, how.warps, how.stages)
            features = {"local_feature": x, "global_feature": x, "labels": x}
            scores = {"local_score": "*fp32", "global_score": "*fp32", "evidence": "*fp32", "rows": "i32", "topk": "i32"}
            yield _variant("match", case, match.match_kernel, features | scores, how)
    mix = dict.fromkeys(("local_score", "global_score", "score"), "*fp32") | {"rows": "i32"}
    yield _variant("match, norms", "fp32", match.mix_kernel, mix, Launch({"BLOCK": match.NORM_BLOCK}, 4, 2))
    for heads, width in GRAPH_WIDTHS:
        how = gmc.launch(width)
        how = Launch(how.constants | {"HEADS": heads, "ABSOLUTE": 0.4}, how.warps, how.stages)
        tensors = dict.fromkeys(("nodes", "attention", "own", "out"), "*fp32") | {"rows": "i32"}
        yield _variant("gmc", f"{heads} × {width}, fp32", gmc.graph_attention_kernel, tensors, how)


def _variant(name: str, case: str, kernel: Any, signature: dict[str, str], launch: Launch) -> Variant:
    return Variant(name, case, kernel, signature | dict.fromkeys(launch.constants, "constexpr"), launch)


def compile_variant(variant: Variant, capability: int) -> Resources:
    """Compile for sm_`capability`. Raises UsageError in Triton's interpreter, which has no compiler."""
    if interpreted():
        raise UsageError("TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it")
    source = ASTSource(variant.kernel, {n: variant.signature[n] for n in variant.kernel.arg_names}, variant.launch.constants)
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


def _row(number: int) -> tuple[bool, str]:
    """Whether one variant fits every chip, and its lines of the table."""
    variant = list(variants())[number]
    fit, lines = True, []
    for capability in SHARED_LIMIT:
        found = compile_variant(variant, capability)
        fits = found.fits(capability)
        fit &= fits
        lines.append(
            f"{variant.name:14} {variant.case:16} {capability:4} {variant.launch.warps:5} {found.registers:9} "
            f"{found.spilled:8} {found.shared:8}{'' if fits else '  too much'}"
        )
    return fit, "\n".join(lines)


def main() -> None:
    print(f"{'kernel':14} {'case':16} {'sm':>4} {'warps':>5} {'registers':>9} {'spilled':>8} {'shared':>8}")
    fit = True
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for fits, lines in pool.map(_row, range(len(list(variants())))):
            fit &= fits
            print(lines, flush=True)
    raise SystemExit(0 if fit else 1)


if __name__ == "__main__":
    main()
