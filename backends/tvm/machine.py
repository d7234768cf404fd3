"""The processor kernels are made for: LLVM's name and features for it, and how its registers are used."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnc.backends.protocol import Target


@dataclass(frozen=True, slots=True)
class Machine:
    """``options`` of the LLVM target, its features, bytes of a vector register, and how many of them there are."""

    options: dict[str, Any]
    features: frozenset[str]
    vector_bytes: int
    registers: int


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

    triple = str(tvm_ffi.get_global_func("tvm.codegen.llvm.GetDefaultTargetTriple")())
    options: dict[str, Any] = {"kind": "llvm", "mtriple": triple}
    if target.arch:
        if not llvm_is_valid_cpu(target.arch, triple):
            raise ValueError(f"LLVM knows no processor `{target.arch}` for {triple}")
        options["mcpu"] = target.arch
        features = set(llvm_get_cpu_features(TvmTarget(options)))
    else:
        options["mcpu"] = str(tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
        found = tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
        present = {str(name): bool(on) for name, on in found.items()}
        features = {name for name, on in present.items() if on}
        known = set(llvm_get_cpu_features(TvmTarget(options)))
        options["mattr"] = [f"-{name}" for name in sorted(known) if present.get(name) is False]
    if "avx512f" in features:
        return Machine(options, frozenset(features), 64, 32)
    if "avx2" in features and "fma" in features:
        return Machine(options, frozenset(features), 32, 16)
    return Machine(options, frozenset(features), 16, 32 if "neon" in features else 16)
