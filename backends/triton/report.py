"""What the compilers say of a kernel: resources from the binary, instructions from the assembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from attnc.backends.protocol import Target
from attnc.backends.triton.assembler import assembler
from attnc.backends.triton.sass import disassemble, moves_in_loops

_TENSOR_CORE = {
    "cuda": r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\S*",
    "hip": r"\bv_mfma_\S+",
}

_GIVES = "setmaxnreg"
"""What kernels do that give registers from some warps to others."""
_SERIALISED = r"\(C75\d\d\).*serialized"
"""What ptxas says where it waits for each ``wgmma``: C7510 to C7519, by the reason why."""


@dataclass(frozen=True, slots=True)
class Report:
    """Resources of one kernel.

    Attributes:
        shared: bytes of shared memory of a program.
        registers: 32-bit registers of a thread.
        spilled: bytes of a thread's registers that did not fit.
        tensor_core: matrix instructions in the assembly, and ``kinds``, their distinct names without types.
        serialised: whether the assembler makes each of them wait for the one before, where it was asked.
        moved: how often a step of a loop of matrix instructions moves a register to memory or back, at most; on AMD all
            bytes that did not fit.
    """

    shared: int
    registers: int
    spilled: int
    tensor_core: int
    kinds: tuple[str, ...]
    serialised: bool = False
    moved: int = 0


SPARED = {"hopper": 64, "hopper_backward": 320, "stream": 2048}
"""Bytes of spills that kernels of a family may have: numbers that wait for the end of a tile, or of a walk."""
MOVED = {"hopper": 64, "hopper_backward": 96}
"""How often they may move one in a step. Masks are counted, though few steps need them.

A fused backward of 64 lanes that spills 272 bytes outran one of half the tile that spills none by a fifth (H200).
"""


def fault_in(report: Report, family: str, shared: int) -> str | None:
    """What a report holds against a kernel on a machine with ``shared`` bytes of shared memory."""
    if report.shared > shared:
        return f"takes {report.shared} bytes of shared memory, there are {shared}"
    if report.spilled > SPARED.get(family, 0):
        return f"spills {report.spilled} bytes of registers"
    if report.moved > MOVED.get(family, 0):
        return f"moves registers to memory or back {report.moved} times a step"
    if report.serialised:
        return "waits for every matrix product before it begins the next"
    return None


def read_report(code: bytes, assembly: str, shared: int, target: Target) -> Report:
    """The report of a cubin or hsaco, and its PTX or amdgcn text."""
    found = re.findall(_TENSOR_CORE[target.kind], assembly)
    kinds = tuple(sorted({".".join(name.split(".")[:2]) if target.kind == "cuda" else name for name in found}))
    if target.kind == "hip":
        registers, spilled = _amd(assembly)
        return Report(shared, registers, spilled, len(found), kinds, moved=spilled)
    registers, spilled, serialised = _nvidia(code, assembly)
    moved = moves_in_loops(disassemble(code)) if spilled else 0
    return Report(shared, registers, spilled, len(found), kinds, serialised, moved)


def _nvidia(cubin: bytes, ptx: str) -> tuple[int, int, bool]:
    """Registers of a cubin, bytes spilled, and whether matrix products are serialised.

    A stack is a sign of spills, but exact sines have one too; the assembler is then asked to tell them apart. It is
    also asked of kernels that give registers from some warps to others: their products are meant to overlap.
    """
    import triton

    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        said = _run(tools.cuobjdump.path, "-res-usage", str(path))
        usage = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", said)
        if usage is None:
            raise RuntimeError(f"cuobjdump said nothing of registers: {said}")
        registers, stack, local = map(int, usage.groups())
        if stack + local == 0 and _GIVES not in ptx:
            return registers, 0, False
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        arch = re.search(r"\.target (sm_(\d+)\w*)", ptx)
        assert arch is not None, "PTX names its target"
        command = ("-v", f"--gpu-name={arch[1]}", str(source), "-o", str(path))
        try:
            said = _run(assembler(int(arch[2])).path, *command)
        except subprocess.CalledProcessError:  # Triton 3.9 writes PTX that only the newer one reads
            said = _run(tools.ptxas_blackwell.path, *command)
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", said)))
        return registers, spilled, re.search(_SERIALISED, said) is not None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _amd(assembly: str) -> tuple[int, int]:
    """Vector registers and spills from the metadata at the end of amdgcn text."""
    numbers = {name: int(n) for name, n in re.findall(r"\.(vgpr_count|vgpr_spill_count|agpr_count):\s*(\d+)", assembly)}
    return numbers["vgpr_count"], 4 * numbers["vgpr_spill_count"]
