"""Reads a compiled kernel's machine code: registers, spills, and what its loops of products contain and wait for."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_PRODUCT = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|UTCQMMA)\b")
_LABEL = re.compile(r"^\s*(\.L_\S+):")
_BRANCH = re.compile(r"\bBRA\b.*?`\((\.L_\S+)\)")
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)")


@dataclass(frozen=True)
class Loop:
    """An innermost loop that multiplies matrices: its instructions, of them warpgroup products (wgmma, on sm_90), and for each
    of its waits how many groups of products may still be under way."""

    instructions: int
    warpgroup_products: int
    pending: tuple[int, ...]

    @property
    def waits_for_all(self) -> bool:
        """Whether every product is waited for before the next begins."""
        return bool(self.pending) and max(self.pending) == 0


@dataclass(frozen=True)
class Code:
    """Registers a thread, bytes spilled a thread, and the loops of products of a kernel."""

    registers: int
    spilled: int
    loops: tuple[Loop, ...]


def read(cubin: bytes, with_loops: bool = True) -> Code:
    """Read a kernel's code with Triton's tools. Only `loops` need disassembly, which takes longest."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        lines = _run("nvdisasm", "-c", file.name).splitlines() if with_loops else []
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Code(found["REG"], found["STACK"] + found["LOCAL"], tuple(_loops(lines)))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _loops(lines: list[str]) -> list[Loop]:
    """A loop is what lies between a label and a branch back to it; of nested ones the innermost with products counts."""
    labels = {match[1]: i for i, line in enumerate(lines) if (match := _LABEL.match(line))}
    spans = [
        (labels[match[1]], i) for i, line in enumerate(lines) if (match := _BRANCH.search(line)) and labels.get(match[1], i) < i
    ]
    spans = [span for span in spans if any(_PRODUCT.search(line) for line in lines[slice(*span)])]
    inner = [
        span for span in spans if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    return [_loop(lines[slice(*span)]) for span in inner]


def _loop(lines: list[str]) -> Loop:
    products = sum("HGMMA" in line for line in lines)
    pending = tuple(int(match[1], 16) for line in lines if (match := _WAIT.search(line)))
    return Loop(sum("/*" in line for line in lines), products, pending)
