"""What every benchmark writes down beside its figures, and where."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def processor() -> str:
    """The processor's model name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def vector_units() -> str:
    """The widest vector instructions that torch uses here, such as ``AVX512``."""
    return torch.backends.cpu.get_cpu_capability()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit measured, with ``+`` where the tree differs from it; ``None`` outside a checkout."""

    def git(*arguments: str) -> str:
        command = ("git", *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Date, device and versions."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in ("torch", "triton", "apache-tvm", "numpy", "attnc")},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["device"] = {
            "name": properties.name,
            "arch": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    else:
        facts["device"] = {
            "name": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "vectors": vector_units(),
        }
    return facts


def write(name: str, device: torch.device, settings: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write ``results/<name>.json``: the environment, the settings, a row a measurement."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"environment": environment(device), "settings": settings, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
