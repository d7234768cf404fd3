"""The processor kernels are made for: LLVM's name and features for it, and how its registers are used."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnc.backends.protocol import Target

TRIPLES = {"aarch64": "aarch64-unknown-linux-gnu"}
"""Of the architectures that kernels can be made for elsewhere: what every processor of it has."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor to compile for.

    Attributes:
        options: of the LLVM target.
        features: as LLVM names them.
        vector_bytes: of a vector register.
        registers: how many of them there are.
        foreign: its architecture is not that of this machine, whose linker does not know it.
    """

    options: dict[str, Any]
    features: frozenset[str]
    vector_bytes: int
    registers: int
    foreign: bool


def runs_here(arch: str) -> bool:
    """Whether kernels for the processor that a target names run on this machine; a model of processor is not asked."""
    return arch in ("", platform.machine())


@functools.cache
def flags() -> tuple[str, ...]:
    """Features of this processor as the kernel names them; empty where it does not say. No compiler needed."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(value.split()))
    return ()


@functools.cache
def describe() -> str:
    """This processor in a line: architecture and a digest of what kernels are made for."""
    import hashlib

    digest = hashlib.sha256(" ".join(flags()).encode()).hexdigest()[:12]
    vectors = "avx512" if "avx512f" in flags() else "avx2" if "avx2" in flags() else "base"
    return f"{platform.machine()} {vectors} {digest}"


@functools.cache
def machine_of(target: Target) -> Machine:
    """The machine of ``target``: the host's processor, or the one that ``target.arch`` names to LLVM."""
    import tvm_ffi
    from tvm.target import Target as TvmTarget
    from tvm.target.codegen import llvm_get_cpu_features, llvm_is_valid_cpu

    here = str(tvm_ffi.get_global_func("tvm.codegen.llvm.GetDefaultTargetTriple")())
    triple = TRIPLES.get(target.arch, here)
    options: dict[str, Any] = {"kind": "llvm", "mtriple": triple}
    if target.arch:
        options["mcpu"] = "generic" if target.arch in TRIPLES else target.arch
        if not llvm_is_valid_cpu(options["mcpu"], triple):
            raise ValueError(f"LLVM knows no processor `{target.arch}` for {triple}")
        features = set(llvm_get_cpu_features(TvmTarget(options)))
    else:
        options["mcpu"] = str(tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
        found = tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
        present = {str(name): bool(on) for name, on in found.items()}
        features = {name for name, on in present.items() if on}
        known = set(llvm_get_cpu_features(TvmTarget(options)))
        options["mattr"] = [f"-{name}" for name in sorted(known) if present.get(name) is False]
    vector_bytes, registers = 16, 32 if "neon" in features else 16
    if "avx512f" in features:
        vector_bytes, registers = 64, 32
    elif "avx2" in features and "fma" in features:
        vector_bytes = 32
    foreign = target.arch in TRIPLES and target.arch != platform.machine()
    return Machine(options, frozenset(features), vector_bytes, registers, foreign)
