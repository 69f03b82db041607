"""Compile the kernels ahead of time, without a GPU, and print what each needs.

    python -m sigrl_deploy.kernels.compile            # a table of everything that tuning tries, for all chips
    python -m sigrl_deploy.kernels.compile 90         # for sm_90
    python -m sigrl_deploy.kernels.compile --untuned  # of each kernel the first that tuning tries, which also runs untuned

Exit status 1 where a kernel needs more than a chip has or spills registers (more than SPILL_LIMIT and SPILLED_ELSEWHERE allow),
and where on sm_90 a loop of SVFR has no warpgroup product, or waits for each before it starts the next (but for the specialised
kernel, where another warpgroup's go on meanwhile).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.runtime.errors import PTXASError

from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import between, gmc, match, sass, svfr, svfr_hopper, vit
from sigrl_deploy.kernels.blocks import Launch, interpreted

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program may use (CUDA C Programming Guide)
# Patches of ViT-B/32, B/16 and L/14 at 224 px, of B/16 at 384 px, and of B/16 at 384 px with one more: code differs by size far
# more than between the two types of 16 bits.
PATCHES = {torch.bfloat16: (49, 196, 256, 576, 577), torch.float16: (196,), torch.float32: (49, 196, 577)}
DIM = 512
VIT_WIDTHS = (768, 1280)  # of ViT-B and ViT-H, whose rows fill 3/4 and 5/8 of a block
GRAPH_WIDTHS = ((4, 32), (1, 512))  # heads and their features, of GMC's layers
# Bytes a thread. In the specialised kernel a consumer's accumulators leave eight registers, and the launch that was the fastest
# on an H100 is one that puts some addresses aside.
SPILL_LIMIT = {"svfr stage 1, Hopper": 96, "svfr stage 2, Hopper": 96}
# Blocks are made for sm_90, the chip that was measured; on the others some bytes may be put aside, and more where SVFR has more
# than 256 patches, whose tiles fill the registers.
SPILLED_ELSEWHERE, SPILLED_BY_LARGE = 64, 320
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
class Compiled:
    """A kernel for one chip: its code, and the bytes of shared memory of a program."""

    variant: Variant
    capability: int
    code: sass.Code
    shared: int

    @property
    def fault(self) -> str:
        """What is wrong with it, or ""."""
        if self.shared > SHARED_LIMIT[self.capability]:
            return "more shared memory than there is"
        if self.code.spilled > self._may_spill():
            return "spills"
        if reads_loops(self.variant, self.capability) and not self.variant.case.endswith("fp32"):
            if not self.code.loops or any(loop.warpgroup_products == 0 for loop in self.code.loops):
                return "no warpgroup product in a loop"
            # In the specialised kernel another warpgroup's products go on meanwhile.
            if self.variant.name not in SPILL_LIMIT and any(loop.waits_for_all for loop in self.code.loops):
                return "waits for every product"
        return ""

    def _may_spill(self) -> int:
        """Bytes a thread."""
        if self.capability == 90:
            return SPILL_LIMIT.get(self.variant.name, 0)
        large = self.variant.name.startswith("svfr") and self.variant.launch.constants["TOKENS"] > 256
        return SPILLED_BY_LARGE if large else SPILLED_ELSEWHERE


def variants(capability: int, untuned: bool = False) -> list[Variant]:
    """Every kernel at every real size and dtype, with all candidates of tuning, or `untuned` with the first."""
    return [variant for found in _cases(divmod(capability, 10)) for variant in found[: 1 if untuned else None]]


def _cases(capability: tuple[int, int]) -> Iterator[list[Variant]]:
    for dtype, short in _TYPES.items():
        yield from _vit_cases(short)
        yield from _between_cases(dtype)
        for tokens in PATCHES[dtype]:
            case, x = f"P = {tokens}, {short}", f"*{short}"
            inputs = {"patches": x, "labels": x, "weight": x, "count": "*i32"}
            for stage, kernel in ((1, svfr.decouple_kernel), (2, svfr.reconstruct_kernel)):
                outputs = {"semantic": "*fp32", "rows": "i32", "partial": "*fp32", "splits": "i32"}
                hows = svfr.candidates(tokens, DIM, dtype, stage, capability=capability)
                yield _variants(f"svfr stage {stage}", case, kernel, inputs | outputs, hows)
                hows = svfr.candidates(tokens, DIM, dtype, stage, bounded=True, capability=capability)
                outputs = {"rows": "i32", "splits": "i32", "out": "*fp32"}
                specialised = [how for how in hows if isinstance(how, svfr_hopper.HopperLaunch)]
                yield _variants(
                    f"svfr stage {stage}, Hopper", case, svfr_hopper.stage_kernel, inputs | outputs, specialised, STAGE=stage
                )
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
    launches = [replace(launch, constants=launch.constants | constants) for launch in launches]
    return [
        Variant(name, case, kernel, signature | dict.fromkeys(launch.constants, "constexpr"), launch) for launch in launches
    ]


def reads_loops(variant: Variant, capability: int) -> bool:
    """Whether a kernel's loops are read: SVFR's, which take nearly all the time, on the chip that they are made for."""
    return capability == 90 and variant.name.startswith("svfr")


def compile_variant(variant: Variant, capability: int) -> Compiled:
    """Compile for sm_`capability`. Raises UsageError in Triton's interpreter, which has no compiler."""
    if interpreted():
        raise UsageError("TRITON_INTERPRET is set, and the interpreter compiles nothing; unset it")
    names = variant.kernel.arg_names
    types = {name: variant.signature[name] for name in names}
    # As Triton compiles for torch's tensors, which start at multiples of 16 bytes: only then are loads asynchronous, and the
    # pipeline's buffers take shared memory.
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(types.values()) if type_.startswith("*")}
    options: dict[str, Any] = {"num_warps": variant.launch.warps}
    if isinstance(variant.kernel, GluonJITFunction):
        source: ASTSource = GluonASTSource(
            variant.kernel, types, {(names.index(name),): value for name, value in variant.launch.constants.items()}, aligned
        )
        options["maxnreg"] = svfr_hopper.REGISTERS
    else:
        source = ASTSource(variant.kernel, types, variant.launch.constants, aligned)
        options["num_stages"] = variant.launch.stages
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    code = sass.read(compiled.asm["cubin"], reads_loops(variant, capability))
    return Compiled(variant, capability, code, compiled.metadata.shared)


def _row(number: int, capability: int, untuned: bool) -> tuple[bool, str]:
    """Whether one variant is right, and its line of the table. It goes by number, since kernels cannot be pickled."""
    variant = variants(capability, untuned)[number]
    start = f"{variant.name:21} {variant.case:16} {capability:3}  {variant.launch.name:66}"
    try:
        found = compile_variant(variant, capability)
    except PTXASError:  # too few registers for one of its instructions
        return False, f"{start} does not assemble"
    code = found.code
    loops = "; ".join(
        f"{loop.instructions} instructions, {loop.warpgroup_products} wgmma"
        + "".join(f", {n} pending" for n in set(loop.pending))
        for loop in code.loops
    )
    return (
        not found.fault,
        f"{start} {code.registers:4} {code.spilled:4} {found.shared:7}  {loops}{found.fault and f'  FAULT: {found.fault}'}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the kernels without a GPU, and print what each needs.")
    parser.add_argument("capabilities", type=int, nargs="*", metavar="CAPABILITY", help="some of 80, 90 and 100 [default: all]")
    parser.add_argument("--untuned", action="store_true", help="of each kernel only the launch that tuning tries first")
    arguments = parser.parse_args()
    capabilities, untuned = arguments.capabilities or list(SHARED_LIMIT), arguments.untuned
    print(f"Triton {triton.__version__}")
    print(f"{'kernel':21} {'case':16} {'sm':>3}  {'launch':66} {'regs':>4} {'spill':>4} {'shared':>6}  loops of products")
    right = True
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        for capability in capabilities:
            numbers = range(len(variants(capability, untuned)))
            for fits, line in pool.map(_row, numbers, repeat(capability), repeat(untuned), chunksize=4):
                right &= fits
                print(line, flush=True)
    raise SystemExit(0 if right else 1)


if __name__ == "__main__":
    main()
