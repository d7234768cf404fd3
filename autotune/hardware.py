"""What of a machine decides which config is fastest, and what is worth writing down beside it."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from attnc.backends.protocol import Target
from attnc.errors import TargetError

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAVES_OUT = {"tsc_known_freq", "hypervisor", "arch_capabilities"}
"""Flags that say how a machine is run, not what it computes."""


@functools.cache
def hardware_of(target: Target) -> dict[str, Any]:
    """The ``hardware`` part of a key.

    Raises:
        TargetError: there is no such device here.
    """
    return _cpu() if target.kind == "cpu" else _gpu(target)


def name_of(hardware: dict[str, Any]) -> str:
    """A readable file name for results on this hardware."""
    from attnc.autotune.canonical import digest

    return f"{hardware['vendor']}-{hardware['arch']}-{digest(hardware)[:12]}".lower()


def environment(target: Target) -> dict[str, Any]:
    """What is recorded and not keyed: names, versions, power limits."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2),
    }
    if target.kind == "cpu":
        return found | {"name": _cpuinfo().get("model name", platform.processor())[:80]}
    return found | {"name": torch.cuda.get_device_name(), "driver": _driver(), "power_limit": ask_gpu("power.limit")}


def ask_gpu(field: str) -> str:
    """What ``nvidia-smi`` says of a field of the current GPU; ``unknown`` where it says nothing."""
    try:
        which = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        command = ("nvidia-smi", f"--id={which}", f"--query-gpu={field}", "--format=csv,noheader")
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, AttributeError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()[:40] or "unknown"


def _cpu() -> dict[str, Any]:
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {
        "vendor": (info.get("vendor_id") or platform.system()).lower(),
        "arch": platform.machine(),
        "flags": sorted(set(flags) - _LEAVES_OUT),
        "cores": cores,
        "caches": _caches(),
    }


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The description of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _caches() -> list[str]:
    """``L1 Data 48K`` and so on."""
    found = []
    for index in sorted(_CACHES.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found.append(f"L{level} {kind} {size}")
    return found


def _gpu(target: Target) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise TargetError(f"tuning for `{target}` takes such a GPU, and there is none here", missing=True)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    hip = torch.version.hip is not None
    arch = properties.gcnArchName.partition(":")[0] if hip else f"sm_{properties.major}{properties.minor}"
    if hip != (target.kind == "hip") or arch[:-1] != target.arch[:-1]:
        raise TargetError(f"the GPU here is {arch}, tuning for `{target}` takes that", missing=True)
    return {
        "vendor": "amd" if hip else "nvidia",
        "arch": arch + ("a" if arch in ("sm_90", "sm_100") else ""),
        "multiprocessors": properties.multi_processor_count,
        "shared": getattr(properties, "shared_memory_per_block_optin", 0),
        "l2": getattr(properties, "L2_cache_size", 0),
        "memory_gib": round(properties.total_memory / 2**30),
        "mig": "MIG" in properties.name,
    }


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0][:120]
    except (OSError, IndexError):
        return "unknown"
