"""The inner loops of CPU kernels, as LLVM's assembly has them: accumulators stay in registers, nothing is called."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tvm_cases import specialized

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target, Workload
from attnc.backends.tvm import TvmBackend
from attnc.backends.tvm.compile import compile_plan
from attnc.backends.tvm.kernel import CpuKernel

X86 = platform.machine() == "x86_64"
PROCESSORS = {"aarch64": 20, **({"haswell": 12, "skylake-avx512": 24} if X86 else {})}
"""And how many accumulators there are: as many as registers have room for."""
STORE = re.compile(r"(vmov\w+\s+%[xyz]mm\d+,\s.*\(|st[rp]\s+q)")
SPEC = "mask causal and i - j < 512 score softcap(dot(q, k) * scale, 30)"


SCALAR = re.compile(r"(v?(mul|add|sub|div|max|min)ss|vf[n]?m(add|sub)\d+ss)\s|f(mul|add|sub|div|madd|msub|nmsub)\s+s\d")


@cache
def kernel(arch: str, dtype: str = "f32") -> CpuKernel:
    plan = lower_program_to_plan(specialized(SPEC, 64, 64))
    return compile_plan(plan, Workload(dtype, (), False), Target("cpu", arch))


def inner_loops(assembly: str) -> list[list[str]]:
    """The instructions of loops without jumps inside: from a label to the jump back to it."""
    found, body, label = [], list[str](), ""
    for line in assembly.splitlines():
        if start := re.match(r"(\.L(?!tmp)\w+):", line):
            body, label = [], start[1]
        elif line.startswith("\t") and not line.startswith("\t."):
            body.append(line.strip())
            if jump := re.match(r"\t(?:j\w+|b\.\w+|cbn?z|tbn?z)\s.*?(\.L\w+)$", line):
                if jump[1] == label:
                    found.append(body)
                body, label = [], ""
    return found


def blocks(assembly: str) -> list[list[str]]:
    """The instructions between labels and jumps."""
    found: list[list[str]] = [[]]
    for line in assembly.splitlines():
        if re.match(r"\.L(?!tmp)\w+:", line):
            found.append([])
        elif line.startswith("\t") and not line.startswith("\t."):
            found[-1].append(line.strip())
            if re.match(r"\t(j\w+|b|b\.\w+|cbn?z|tbn?z)\s", line):
                found.append([])
    return found


@pytest.mark.parametrize("arch", list(PROCESSORS))
def test_accumulators_stay_in_registers(arch: str) -> None:
    """The loop of weights times values: a multiply-add for each accumulator, no store, few loads."""
    wanted = PROCESSORS[arch]
    loops = []
    for block in blocks(kernel(arch).texts["kernel.s"]):
        adds = sum("fmadd" in line or line.startswith("fmla") for line in block)
        if adds == wanted and len(block) <= 2 * wanted + 2 and not any(STORE.match(line) for line in block):
            loops.append(block)
    assert loops


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("arch", list(PROCESSORS))
def test_inner_loops_are_of_vectors(arch: str, dtype: str) -> None:
    """Products, weights and sums: what is done for each pair is done for a vector of rows, in whole tiles and edges.

    The states of parts of few rows are merged a row at a time, in one loop.
    """
    loops = inner_loops(kernel(arch, dtype).texts["kernel.s"])
    multiply = re.compile(r"fmla\s+v\d+\.4s" if arch == "aarch64" else r"vfmadd\d+ps")
    busy = [loop for loop in loops if sum(bool(multiply.match(line)) for line in loop) >= 8]
    assert len(busy) >= 6  # products, weights, sums; of whole tiles, of edges
    scalar = [[line for line in loop if SCALAR.match(line)] for loop in busy]
    assert len(list(filter(None, scalar))) <= 1, scalar


@pytest.mark.parametrize("arch", list(PROCESSORS))
def test_whole_tiles_spill_nothing(arch: str) -> None:
    """The two busiest loops store nothing: their accumulators, rows and elements fit the registers."""
    loops = inner_loops(kernel(arch).texts["kernel.s"])
    adds = [sum("fmadd" in line or line.startswith("fmla") for line in loop) for loop in loops]
    of_products = [loop for loop, count in zip(loops, adds, strict=True) if count == 4 * PROCESSORS[arch]]
    assert of_products  # four elements a turn
    assert not [line for loop in of_products for line in loop if STORE.match(line)]


@pytest.mark.parametrize("arch", list(PROCESSORS))
def test_no_function_is_called_a_lane(arch: str) -> None:
    calls = re.findall(r"\t(?:bl|callq?)\s+(\S+)", kernel(arch).texts["kernel.s"])
    assert {name.partition("@")[0] for name in calls} <= {"memset", "memcpy"}


def test_a_kernel_for_another_architecture_is_saved_as_an_object(tmp_path: Path) -> None:
    arch = "aarch64" if platform.machine() != "aarch64" else pytest.skip("this is one")
    made = kernel(arch)
    manifest = made.save(tmp_path)
    assert (tmp_path / manifest["code"]).read_bytes()[:5] == b"\x7fELF\x02"
    loaded = TvmBackend().load(tmp_path, manifest)
    (tmp_path / "again").mkdir()
    assert loaded.save(tmp_path / "again")["code"] == manifest["code"]


@pytest.mark.skipif(not X86, reason="links code for this machine")
def test_an_object_is_linked_where_it_is_loaded(tmp_path: Path, seed: int) -> None:
    from tvm_cases import call

    from attnc.backends.tvm.compile import _Built

    made = call("mask causal", seed)
    kernel = made.kernel()
    manifest = dict(kernel.save(tmp_path))
    code = kernel._code  # type: ignore[attr-defined]
    assert isinstance(code, _Built)
    (tmp_path / "kernel.o").write_bytes(code._emit("o"))
    made.compare(kernel=TvmBackend().load(tmp_path, {**manifest, "code": "kernel.o"}))
