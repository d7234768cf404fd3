"""Machine code of NVIDIA GPUs as text, and what its loops do."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LABEL = re.compile(r"\.(L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
_TARGET = re.compile(r"`\(\.(L_x_\d+)\)")
_PRODUCTS = ("HGMMA", "HMMA")
_LOCAL = ("LDL", "STL")


def disassemble(cubin: bytes) -> str:
    """The instructions of a cubin, in the order of their addresses."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.nvdisasm.path
        return subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout


def moves_in_loops(sass: str) -> int:
    """How often a step of a loop of matrix products moves registers to memory or back, at most: its ``LDL``, ``STL``.

    A loop is what lies between a label and a branch back to it; of nested ones the inner counts. Branches within are
    counted whether they are taken or not. Of a kernel without such loops everything counts.
    """
    names = list(_instructions(sass))
    loops = _inner_loops(names) or [(0, len(names))]
    return max(sum(name.startswith(_LOCAL) for name, _ in names[first : last + 1]) for first, last in loops)


def _instructions(sass: str) -> Iterator[tuple[str, str]]:
    """Name and operands of each; labels as they are, with no operands."""
    for line in sass.splitlines():
        if label := _LABEL.match(line.strip()):
            yield f".{label[1]}", ""
        elif found := _INSTRUCTION.match(line):
            yield found[1], found[2]


def _inner_loops(names: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """The loops of products that hold no other such loop."""
    places = {name[1:]: at for at, (name, _) in enumerate(names) if name.startswith(".")}
    loops = []
    for at, (name, operands) in enumerate(names):
        target = _TARGET.search(operands) if name.startswith("BRA") else None
        if target and places.get(target[1], at) < at:
            loops.append((places[target[1]], at))
    loops = [(a, b) for a, b in loops if any(name.startswith(_PRODUCTS) for name, _ in names[a:b])]
    loops.sort(key=lambda span: span[1] - span[0])
    inner: list[tuple[int, int]] = []
    for a, b in loops:
        if not any(a <= d and c <= b for c, d in inner):
            inner.append((a, b))
    return inner
