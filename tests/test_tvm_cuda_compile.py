"""TVM's kernels for GPUs as machine code: registers, bundles with and without nvcc, what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

import triton_cases
from triton_cases import find, make, specialized
from typer.testing import CliRunner

import attnc
from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target, Workload
from attnc.backends.tvm import TvmBackend
from attnc.backends.tvm.cuda import compile as compiling
from attnc.backends.tvm.cuda import nvcc
from attnc.backends.tvm.cuda.kernel import CudaKernel
from attnc.backends.tvm.cuda.launches import LARGEST, Launch, SizeError
from attnc.bundle import Bundle
from attnc.cli import app

SM_90 = Target("cuda", "sm_90")
needs_nvcc = pytest.mark.skipif(nvcc.find_nvcc() is None, reason="needs nvcc")


def build(spec: str, D: int, E: int, dtype: str, arch: str, **more: Any) -> CudaKernel:
    plan = lower_program_to_plan(specialized(spec, D, E))
    kinds = tuple("f32" for _ in plan.program.inputs)
    made = TvmBackend().build(plan, Workload(dtype, kinds, False), Target("cuda", arch), **more)
    assert isinstance(made, CudaKernel)
    return made


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (nvcc, compiling):
        monkeypatch.setattr(module, "find_nvcc", lambda: None)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("widths", [(40, 40), (64, 64), (128, 128), (192, 128), (256, 256)])
def test_nothing_is_spilled(widths: tuple[int, int], dtype: str, arch: str) -> None:
    kernel = build("mask causal", *widths, dtype, arch)
    assert all(0 < report.registers <= 255 for report in kernel.parts.reports.values())
    assert TvmBackend().rejection(kernel, Target("cuda", arch)) is None


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in triton_cases.CASES])
def test_every_case_compiles(name: str) -> None:
    data = make(find(name), "bf16", 0)
    plan = lower_program_to_plan(data.program)
    kernel = TvmBackend().build(plan, data.workload(), Target("cuda", "sm_80"))
    assert TvmBackend().rejection(kernel, SM_90) is None


@needs_nvcc
def test_spills_are_told() -> None:
    """Two groups of rows with sums of 256 elements take more registers than there are."""
    kernel = build("mask causal", 256, 256, "bf16", "sm_90", config={"warps": 4, "groups": 2, "keys": 32})
    assert re.match(r"spills \d+ bytes", TvmBackend().rejection(kernel, SM_90) or "")


@needs_nvcc
def test_reports_are_what_the_assembler_says() -> None:
    said = (
        "ptxas info    : Compiling entry function 'a' for 'sm_90'\n    16 bytes stack frame, 8 bytes spill stores, "
        "4 bytes spill loads\nptxas info    : Used 12 registers\nptxas info    : Compiling entry function 'b' for "
        "'sm_90'\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used 34 registers"
    )
    assert nvcc.read_reports(said) == {"a": nvcc.Report(12, 12), "b": nvcc.Report(34, 0)}
    with pytest.raises(OSError, match="refuses"):
        nvcc.compile_source("nonsense", "sm_90", fast=True)


@needs_nvcc
def test_a_bundle_is_loaded_without_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "f.attn").write_text("attention f { input bias: real[H, M, N] query rope(q, i) mask causal "
                                     "score dot(q, k) + bias[h, row, j] }")  # fmt: skip
    attnc.compile(tmp_path / "f.attn", "cuda:sm_90", tmp_path / "out", backend="tvm", head_dims=[64], dtypes=["bf16"])
    program = """
import sys
sys.modules["tvm"] = sys.modules["tvm_ffi"] = sys.modules["triton"] = None
from pathlib import Path
from attnc.backends.protocol import Target, Workload
from attnc.bundle import Bundle
bundle = Bundle(Path(sys.argv[1]))
kernel = bundle.kernel((64, 64), Workload("bf16", ("f32",), False), Target("cuda", "sm_90"), {})
assert not bundle.missing
calls = []
kernel.start = lambda number, blocks, places, device: calls.append((number, blocks, len(places)))
import torch
q = torch.zeros(2, 4, 100, 64, dtype=torch.bfloat16)
kernel.run(q, q[:, :2], q[:, :2], [torch.zeros(4, 100, 100)], [], [], q.clone(), None)
rows = kernel.parts.launches[-1].grid[1][1]
assert [(number, blocks) for number, blocks, _ in calls] == [(0, 7), (1, 8 * -(-100 // rows))], calls
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    source = (tmp_path / "out" / "sources" / "bf16-d64-e64" / "kernels.cu").read_text()
    assert "__global__" in source


@pytest.mark.usefixtures("no_nvcc")
def test_without_nvcc_a_bundle_holds_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))
    spec = tmp_path / "f.attn"
    spec.write_text("attention f { mask causal }")
    where = tmp_path / "out"
    command = ["compile", str(spec), "--target", "cuda:sm_80", "--backend", "tvm", "-o", str(where), "--head-dim", "64"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "holds no machine code: nvcc of the CUDA toolkit is not here" in done.stderr
    assert "nvcc -cubin -arch=sm_80" in done.stderr
    bundle = Bundle(where)
    kernel = bundle.kernel((64, 64), Workload("bf16", (), False), Target("cuda", "sm_80"), {})
    q = torch.zeros(1, 1, 4, 64, dtype=torch.bfloat16)
    with pytest.raises(OSError, match="CUDA source alone: nvcc"):
        kernel.run(q, q, q, [], [], [], q.clone(), None)
    folder = where / "kernels" / "bf16-d64-e64"
    assert [path.name for path in folder.iterdir()] == ["kernels.cu"]
    (folder / "kernels.cubin").write_bytes(b"code")
    entry = json.loads((where / "manifest.json").read_text())["kernels"][0]["kernel"]
    assert TvmBackend().load(folder, entry)._code == b"code"  # type: ignore[attr-defined]
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["targets"]["cuda (tvm)"]
    assert (report["compiles"], "nvcc" in report["why"]) == (False, True)


def test_what_is_refused() -> None:
    def messages(spec: str, D: int, dtype: str, target: Target) -> list[str]:
        plan = lower_program_to_plan(specialized(spec, D, D))
        return [problem.message for problem in TvmBackend().problems(plan, Workload(dtype, (), False), target)]

    assert messages("", 288, "bf16", SM_90) == ["heads are at most 256 wide, found 288"] * 2
    assert messages("", 64, "f64", SM_90) == ["GPU kernels compute in f32: float64 q, k and v run on the CPU"]
    assert "not for `hip:gfx942`" in messages("", 64, "bf16", Target("hip", "gfx942"))[0]
    assert "not for `cuda:sm_75`" in messages("", 64, "bf16", Target("cuda", "sm_75"))[0]
    turned = "mask causal value rope(v, i - j)"
    assert messages(turned, 64, "bf16", SM_90) == ["a value that rotates or multiplies by pair has no kernel"]
    assert not messages("mask causal", 256, "f32", Target("cuda", "sm_80"))


def test_training_falls_back() -> None:
    """No backward is compiled; the reason is told, and the reference serves gradients."""
    from attnc.grammar.source import Source
    from attnc.jit import JustInTime, recall_spec
    from attnc.spec import Spec

    just = JustInTime(recall_spec(Spec(Source("f.attn", "attention f { mask causal }"))), "tvm")
    why = just.training((64, 64), {"q", "k", "v"}, Workload("bf16", (), False), SM_90)
    assert isinstance(why, str)
    assert "TVM compiles no backward for GPUs" in why
    assert "f.attn:1" in why


def test_too_many_tiles() -> None:
    launch = Launch("f", 128, 0, ((("B", "H"), 1), (("M",), 64)))
    assert launch.blocks({"B": 2, "H": 3, "M": 65}) == 12
    with pytest.raises(SizeError, match=str(LARGEST)):
        launch.blocks({"B": 2**16, "H": 2**14, "M": 256})


def test_configs_that_cannot_be_are_excluded() -> None:
    plan = lower_program_to_plan(specialized("mask causal", 256, 256))
    space = TvmBackend().space(plan, Workload("bf16", (), False), SM_90, {})
    assert space.problem(space.default) is None
    assert "shared memory" in (space.problem({"warps": 8, "groups": 2, "keys": 128}) or "")
    assert space.problem({"warps": 4, "groups": 1, "keys": 64}) is None


SPECS = ["mask causal", "normalize cog(score)", "normalize softmax(score * rowmax(score))", "score max_d(q * k)"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.usefixtures("no_nvcc")
def test_shared_memory_is_foreseen(spec: str, dtype: str) -> None:
    from attnc.backends.tvm.cuda.space import shape_of, shared_of

    config = {"warps": 4, "groups": 1, "keys": 32}
    workload, plan = Workload(dtype, (), False), lower_program_to_plan(specialized(spec, 72, 40))
    kernel = build(spec, 72, 40, dtype, "sm_90", config=config)
    assert kernel.parts.launches[-1].shared == shared_of(plan, shape_of(workload, config))
