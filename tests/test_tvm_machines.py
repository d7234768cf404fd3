"""Machines that lack something: vectors, cores, a place to write, room on the disk. What they lack is done without.

Each in a process of its own, from text to result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tvm_backward_cases import training
from tvm_cases import call

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target
from attnc.backends.tvm import TvmBackend, machine
from attnc.backends.tvm.compile import compile_backward, compile_plan
from attnc.backends.tvm.kernel import CpuBackwardKernel, CpuKernel
from attnc.backends.tvm.machine import flags

PROGRAM = """
import logging, sys
logging.basicConfig(stream=sys.stdout)
import torch, attnc
threads = int(sys.argv[1])
if threads:
    torch.set_num_threads(threads)
op = attnc.loads("attention a { mask causal score softcap(dot(q, k) * scale, 31.25) }")
q = torch.randn(1, 2, 70, 16, requires_grad=True)
out = op(q, q, q)
torch.testing.assert_close(out, op.reference(q, q, q), rtol=1e-4, atol=1e-5)
found, = torch.autograd.grad(out.square().sum(), q)
wanted, = torch.autograd.grad(op.reference(q, q, q).square().sum(), q)
torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
from attnc.jit import build_count
print("built", build_count())
"""


def run(*before: str, threads: int = 0, **environment: str) -> str:
    """What the program prints, started with ``before``."""
    done = subprocess.run(
        [*before, sys.executable, "-c", PROGRAM, str(threads)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif("sse2" not in flags(), reason="runs code for older processors of this kind")
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("spec", ["", "mask causal and i - j < 9 score softcap(dot(q, k) * scale, 3)"])
def test_without_avx(spec: str, dtype: str, seed: int) -> None:
    made = call(spec, seed, dtype=dtype, M=45, N=83, lse=True)
    built = compile_plan(lower_program_to_plan(made.program), made.workload(), Target("cpu", "x86-64"))
    assert "%ymm" not in built.texts["kernel.s"]
    made.compare(kernel=CpuKernel(built._code, built._layout, built._maps, ""))


@pytest.mark.skipif("sse2" not in flags(), reason="runs code for older processors of this kind")
def test_gradients_without_avx(seed: int) -> None:
    made = training("mask causal", seed)
    built = compile_backward(made.backward, made.workload(), Target("cpu", "x86-64"))
    assert "%ymm" not in built.texts["kernel.s"]
    kernel = CpuBackwardKernel(built._code, built._layout, built._maps, "", built._scattered)
    made.compare(kernel=kernel)


def test_kernels_of_another_processor_are_not_those_of_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home on a network serves machines of many kinds: the cache is keyed by what the processor can do."""
    here = TvmBackend().toolchain(Target("cpu"))
    machine.describe.cache_clear()
    monkeypatch.setattr(machine, "flags", lambda: ("sse2",))
    try:
        assert TvmBackend().toolchain(Target("cpu")) != here
    finally:
        machine.describe.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 3])
def test_one_core(threads: int, tmp_path: Path) -> None:
    """As many threads as torch takes there, and more than there are cores."""
    if not (taskset := shutil.which("taskset")):
        pytest.skip("there is no taskset")
    core = str(min(os.sched_getaffinity(0)))
    assert "built 2" in run(taskset, "-c", core, threads=threads, ATTNC_CACHE_DIR=str(tmp_path))


@pytest.mark.slow
def test_a_home_that_cannot_be_written() -> None:
    """``/proc`` lets nobody make a folder."""
    said = run(**dict.fromkeys(("HOME", "XDG_CACHE_HOME"), "/proc/self"), ATTNC_CACHE_DIR="")
    assert "built 2" in said
    assert "no cache at /proc/self" in said


@pytest.mark.slow
def test_nowhere_to_write_at_all() -> None:
    """Without temporary files nothing can be linked: LLVM compiles in memory."""
    places = ("HOME", "XDG_CACHE_HOME", "TMPDIR")
    assert "built 2" in run(**dict.fromkeys(places, "/proc/self"), ATTNC_CACHE_DIR="")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "160k"])
def test_a_full_disk(size: str, tmp_path: Path) -> None:
    """Cache and temporary files on a disk that has no room for an object file, or for the linked library."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={size} tmpfs {disk}"
    alone: Sequence[str] = ("unshare", "-rm", "sh", "-c")
    if not shutil.which("unshare") or subprocess.run([*alone, mount], capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    said = run(*alone, f'{mount} && "$@"', "sh", TMPDIR=str(disk), ATTNC_CACHE_DIR=str(disk / "cache"))
    assert "built 2" in said
    assert "the cache could not keep" in said


@pytest.mark.slow
def test_processes_that_begin_at_once_share_a_cache(tmp_path: Path) -> None:
    """Each gets a whole kernel, whoever is first; the next one builds nothing."""
    command = [sys.executable, "-c", PROGRAM, "1"]
    environment = {**os.environ, "ATTNC_CACHE_DIR": str(tmp_path)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        said, _ = process.communicate()
        assert process.returncode == 0
        assert "WARNING" not in said
    assert "built 0" in run(ATTNC_CACHE_DIR=str(tmp_path))
    assert not list(tmp_path.rglob(".new-*"))
