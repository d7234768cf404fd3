"""CUDA source to machine code, by the compiler of the CUDA toolkit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

MISSING = "nvcc of the CUDA toolkit is not here (looked in PATH, CUDA_HOME and /usr/local/cuda)"


@dataclass(frozen=True, slots=True)
class Report:
    """What the assembler says of one kernel: registers of a thread, and bytes of them that did not fit."""

    registers: int
    spilled: int


def find_nvcc() -> Path | None:
    """The compiler: in ``PATH``, in ``CUDA_HOME``, or where toolkits are installed."""
    folders = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(str(f / "bin") for f in folders))
    found = found or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def describe() -> str:
    """Which compiler there is, without starting it."""
    path = find_nvcc()
    if path is None:
        return "no nvcc"
    state = path.resolve().stat()
    return f"nvcc {path.resolve()} {state.st_size} {state.st_mtime_ns}"


def options_of(arch: str, *, fast: bool) -> list[str]:
    """How the compiler is called. At its usual level, the assembler rather spills than takes a few registers more."""
    options = ["-cubin", f"-arch={arch}", "-O3", "-std=c++17", "-w", "-Xptxas", "--register-usage-level=10"]
    return [*options, *(["-ftz=true", "-prec-div=false"] if fast else [])]


def compile_source(source: str, arch: str, *, fast: bool) -> tuple[bytes, dict[str, Report]]:
    """A cubin of a source for ``arch``, and what is said of each kernel.

    ``fast`` takes divisions and subnormal numbers less exactly than ``float32`` has them.

    Raises:
        OSError: there is no compiler, or it refuses.
    """
    path = find_nvcc()
    if path is None:
        raise OSError(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        written, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        written.write_text(source, encoding="utf-8")
        command = [str(path), *options_of(arch, fast=fast), "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, "-o", str(made), str(written)], capture_output=True, text=True, check=False, cwd=folder
        )
        if done.returncode:
            raise OSError(f"{path} refuses a kernel for {arch}: {done.stderr.strip()}")
        return made.read_bytes(), read_reports(done.stderr)


def read_reports(said: str) -> dict[str, Report]:
    """The reports in what ``ptxas -v`` says, by kernel."""
    reports = {}
    for part in said.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        registers = re.search(r"Used (\d+) registers", part)
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", part))
        reports[name] = Report(int(registers[1]) if registers else 0, spilled)
    return reports
