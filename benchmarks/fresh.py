"""What only a process of its own can show: the memory of one call, and the time from loading to the first result."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

MEMORY = """
import sys, torch, attnc
N, D = map(int, sys.argv[1:])

def resident(which):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(which))

op = attnc.loads("attention causal { mask causal }")
small = torch.randn(1, 1, 64, D)
op(small, small, small)
q, k, v = (torch.randn(1, 1, N, D) for _ in range(3))
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # the high-water mark starts anew
before = resident("VmRSS")
out = op(q, k, v)
print(max(0, resident("VmHWM") - before - out.nbytes))
"""

LATENCY = """
import sys, time
import torch
device, dtype = sys.argv[1], getattr(torch, sys.argv[2])
q = torch.randn(1, 2, 128, 64).to(device, dtype)
begun = time.perf_counter()
import attnc
op = attnc.loads("attention fresh { mask causal and i - j < 1000  score softcap(dot(q, k) * scale, 31.5) }")
op(q, q, q).cpu()
print(time.perf_counter() - begun)
"""


def in_fresh_process(program: str, *arguments: object, cache: str, bytecode: str = "") -> float:
    """What a program prints, run in its own process with its own kernel cache.

    ``bytecode`` is a folder for that of all modules: where it is not written, as in some images, each process would
    compile Python anew, which an installed package spares.
    """
    environment = {**os.environ, "ATTNC_CACHE_DIR": cache, "TRITON_CACHE_DIR": os.path.join(cache, "triton")}
    if bytecode:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = bytecode
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        cwd=cache,  # not where a folder is called attnc
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def memory(n: int, d: int = 64) -> dict[str, Any]:
    """Peak memory of one call beyond its inputs and output, beside a row vector each of q and v for every row."""
    with tempfile.TemporaryDirectory() as cache:
        extra = in_fresh_process(MEMORY, n, d, cache=cache)
    rows = 4 * n * (d + d)
    text = (
        f"{extra / 2**20:.2f} MiB beyond inputs and output at N = {n}, D = {d}; N x N scores: {4 * n * n / 2**20:.0f}"
    )
    return {"case": "memory", "N": n, "D": d, "extra_bytes": extra, "of_rows": extra / rows, "text": text}


def latency(device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Seconds from importing attnc, torch being there, to the first result: nothing cached, then from the disk."""
    with tempfile.TemporaryDirectory() as bytecode:
        for _ in range(2):  # the first writes the bytecode
            with tempfile.TemporaryDirectory() as cache:
                cold = in_fresh_process(LATENCY, device, dtype, cache=cache, bytecode=bytecode)
                warm = [in_fresh_process(LATENCY, device, dtype, cache=cache, bytecode=bytecode) for _ in range(5)]
    text = f"{cold:.2f} s cold, {sorted(warm)[2]:.3f} s from the cache ({min(warm):.3f} to {max(warm):.3f})"
    return {"case": "latency", "cold_seconds": cold, "warm_seconds": sorted(warm)[2], "all_warm": warm, "text": text}
