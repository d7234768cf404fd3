"""``attnc doctor``: what is installed, which targets work here, and why others do not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys

from rich.markup import escape
from rich.table import Table

import attnc
from attnc import cache, targets
from attnc.backends.protocol import Target, Workload
from attnc.backends.tvm.cuda import nvcc
from attnc.backends.tvm.machine import runs_here
from attnc.cli.console import out
from attnc.errors import TargetError
from attnc.grammar.source import Source
from attnc.jit import JustInTime, recall_spec
from attnc.spec import Spec
from attnc.targets import KNOWN, PACKAGES, backend_for, parse_target

OTHERS = (("cuda", "tvm"),)
"""Targets that a backend serves if it is named, beside the usual one."""
DISTRIBUTIONS = {"torch": "torch", "triton": "triton", "tvm": "apache-tvm", "lark": "lark"}


def doctor(as_json: bool) -> None:
    """Print the state of this machine."""
    facts = {"attnc": attnc.__version__, "python": platform.python_version(), "machine": _machine()}
    facts |= {name: _version(name) for name in DISTRIBUTIONS}
    facts["gpu"] = _gpu()
    facts["cache"] = _cache()
    states = {(name, targets.DEFAULT_BACKEND[name.partition(":")[0]]): _state(name) for name in KNOWN}
    states |= {(name, backend): _state(name, backend) for name, backend in OTHERS if backend in targets.BACKENDS}
    if as_json:
        rows = {
            name if backend == targets.DEFAULT_BACKEND[name.partition(":")[0]] else f"{name} ({backend})": {
                "compiles": compiles,
                "runs": runs,
                "why": why,
            }
            for (name, backend), (compiles, runs, why) in states.items()
        }
        print(json.dumps({"installed": facts, "targets": rows}, indent=2))
        return
    for name, value in facts.items():
        out.print(f"{name:>8}  {value}", markup=False)
    table = Table("target", "backend", "compiles", "runs here", "why not")
    for (name, backend), (compiles, runs, why) in states.items():
        table.add_row(name, backend, _mark(compiles), _mark(runs), escape(why))
    out.print(table)


def _mark(yes: bool) -> str:
    return "[green]yes[/]" if yes else "[red]no[/]"


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(DISTRIBUTIONS[name])
    except importlib.metadata.PackageNotFoundError:
        install = PACKAGES[name][1] if name in PACKAGES else name
        return f"not installed (pip install '{install}')"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {torch.cuda.device_count()} of them"


def _cache() -> str:
    where = cache.folder()
    size = sum(path.stat().st_size for path in where.rglob("*") if path.is_file()) if where.is_dir() else 0
    return f"{where} ({size / 2**20:.1f} MiB)"


def _state(name: str, by: str | None = None) -> tuple[bool, bool, str]:
    """Whether a target compiles (by a backend) and runs here, and why not."""
    target = parse_target(name)
    try:
        backend = backend_for(target, by)
        plain = JustInTime(recall_spec(Spec(Source("<doctor>", "attention full {}")))).plan((64, 64))
        if problems := backend.problems(plain, Workload("f32", (), False), target):
            return False, False, problems[0].message
    except (TargetError, ImportError, OSError) as error:
        return False, False, str(error)
    if (target.kind, backend.name) == ("cuda", "tvm") and nvcc.find_nvcc() is None:
        return False, False, f"CUDA source alone: {nvcc.MISSING}"
    return True, *_runs(target)


def _runs(target: Target) -> tuple[bool, str]:
    import torch

    match target.kind:
        case "cpu":
            runs = runs_here(target.arch)
            return runs, "" if runs else f"the processor here is {platform.machine()}"
        case "cuda" if torch.cuda.is_available() and not torch.version.hip:
            here = parse_target("cuda")
            return here == target, "" if here == target else f"the GPU here is {here}"
        case "hip" if torch.cuda.is_available() and torch.version.hip:
            arch = torch.cuda.get_device_properties(0).gcnArchName.partition(":")[0]
            return arch == target.arch, "" if arch == target.arch else f"the GPU here is {arch}"
        case _:
            return False, f"no {'AMD' if target.kind == 'hip' else 'NVIDIA'} GPU that torch can use"
