"""What the compilers say of a kernel: resources from the binary, instructions from the assembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from attnc.backends.protocol import Target
from attnc.backends.triton.assembler import assembler

_TENSOR_CORE = {
    "cuda": r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\S*",
    "hip": r"\bv_mfma_\S+",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Resources of one kernel.

    Attributes:
        shared: bytes of shared memory of a program.
        registers: 32-bit registers of a thread.
        spilled: bytes of a thread's registers that did not fit.
        tensor_core: matrix instructions in the assembly, and ``kinds``, their distinct names without types.
    """

    shared: int
    registers: int
    spilled: int
    tensor_core: int
    kinds: tuple[str, ...]


def read_report(code: bytes, assembly: str, shared: int, target: Target) -> Report:
    """The report of a cubin or hsaco, and its PTX or amdgcn text."""
    found = re.findall(_TENSOR_CORE[target.kind], assembly)
    kinds = tuple(sorted({".".join(name.split(".")[:2]) if target.kind == "cuda" else name for name in found}))
    if target.kind == "hip":
        registers, spilled = _amd(assembly)
    else:
        registers, spilled = _nvidia(code, assembly)
    return Report(shared, registers, spilled, len(found), kinds)


def _nvidia(cubin: bytes, ptx: str) -> tuple[int, int]:
    """Registers of a cubin, and bytes spilled.

    A stack is a sign of spills, but exact sines have one too; the assembler is then asked to tell them apart.
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
        if stack + local == 0:
            return registers, 0
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        arch = re.search(r"\.target (sm_(\d+)\w*)", ptx)
        assert arch is not None, "PTX names its target"
        said = _run(assembler(int(arch[2])).path, "-v", f"--gpu-name={arch[1]}", str(source), "-o", str(path))
        return registers, sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", said)))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _amd(assembly: str) -> tuple[int, int]:
    """Vector registers and spills from the metadata at the end of amdgcn text."""
    numbers = {name: int(n) for name, n in re.findall(r"\.(vgpr_count|vgpr_spill_count|agpr_count):\s*(\d+)", assembly)}
    return numbers["vgpr_count"], 4 * numbers["vgpr_spill_count"]
