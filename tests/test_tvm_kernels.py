"""Building, saving and loading CPU kernels."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

from tvm_cases import CPU, build, call

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target, Workload
from attnc.backends.tvm import TvmBackend
from attnc.backends.tvm import compile as compile_module
from attnc.backends.tvm.compile import compile_plan
from attnc.backends.tvm.kernel import CpuKernel
from attnc.backends.tvm.link import link
from attnc.backends.tvm.machine import flags

SPEC = "input slope: real[H] mask causal query rope(q, i) score dot(q, k) * scale + slope[h] * (j - i)"

LOAD = """
import json, sys, time
sys.modules["tvm"] = sys.modules["tvm_ffi"] = None
import torch
from attnc.backends.tvm import TvmBackend
from pathlib import Path
folder = Path(sys.argv[1])
start = time.perf_counter()
kernel = TvmBackend().load(folder, json.loads((folder / "manifest.json").read_text()))
seconds = time.perf_counter() - start
data = torch.load(folder / "data.pt")
out, lse = torch.full_like(data["out"], float("nan")), torch.full_like(data["lse"], float("nan"))
kernel.run(data["q"], data["k"], data["v"], data["inputs"], (), (), out, lse)
torch.testing.assert_close(out, data["out"], rtol=0, atol=0)
torch.testing.assert_close(lse, data["lse"], rtol=0, atol=0)
with open("/proc/self/maps") as maps:
    assert "libtvm" not in maps.read()
print(seconds)
"""


def test_a_saved_kernel_runs_without_the_compiler(tmp_path: Path, seed: int) -> None:
    made = call(SPEC, seed, lse=True)
    kernel = made.kernel()
    manifest = kernel.save(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    out, lse = made.run()
    torch.save(
        {"q": made.q, "k": made.k, "v": made.v, "inputs": made.inputs, "out": out, "lse": lse}, tmp_path / "data.pt"
    )
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0  # 0.1 s on an idle machine


def test_a_loaded_kernel_can_be_saved_again(tmp_path: Path, seed: int) -> None:
    made = call(SPEC, seed, lse=True)
    backend = TvmBackend()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    loaded = backend.load(tmp_path / "one", made.kernel().save(tmp_path / "one"))
    again = backend.load(tmp_path / "two", json.loads(json.dumps(loaded.save(tmp_path / "two"))))
    torch.testing.assert_close(made.run(again), made.run(), rtol=0, atol=0)


def test_a_kernel_for_a_richer_processor_is_refused(tmp_path: Path, seed: int) -> None:
    manifest = dict(call("", seed).kernel().save(tmp_path))
    manifest["flags"] = [*manifest["flags"], "avx1024"]
    with pytest.raises(OSError, match="avx1024"):
        TvmBackend().load(tmp_path, manifest)


def test_other_sizes_compile_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = call(SPEC, seed).kernel()
    monkeypatch.setattr(compile_module, "lower_tir_to_llvm", None)
    for B, H, G, M, N in ((1, 2, 1, 5, 9), (3, 4, 4, 70, 33), (2, 6, 3, 1, 200)):
        call(SPEC, seed, B=B, H=H, G=G, M=M, N=N).compare(kernel=kernel)


def test_texts(seed: int) -> None:
    texts = call("mask causal", seed).kernel().texts
    assert "def attention(" in texts["kernel.tir.py"]
    assert "fmadd" in texts["kernel.s"] or "fmla" in texts["kernel.s"]


def test_kernels_for_another_processor_build_and_do_not_run(tmp_path: Path, seed: int) -> None:
    made = call("mask causal", seed)
    kernel = TvmBackend().build(lower_program_to_plan(made.program), made.workload(), Target("cpu", "haswell"))
    assembly = kernel.texts["kernel.s"]
    assert "%ymm" in assembly
    assert "%zmm" not in assembly
    with pytest.raises(OSError, match="haswell"):
        made.run(kernel)


@pytest.mark.skipif("avx2" not in flags(), reason="runs code for older processors of this kind")
@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
@pytest.mark.parametrize(("dtype", "M"), [("f32", 70), ("bf16", 7), ("f64", 38)])
def test_shorter_vectors(processor: str, dtype: str, M: int, seed: int) -> None:
    """Processors with fewer and shorter registers cut tiles differently."""
    made = call(SPEC, seed, dtype=dtype, M=M, N=75, lse=True)
    plan = lower_program_to_plan(made.program)
    built = compile_plan(plan, made.workload(), Target("cpu", processor))
    made.compare(kernel=CpuKernel(built._code, built._layout, built._maps, ""))


def test_a_damaged_library_is_an_error_of_the_system(tmp_path: Path, seed: int) -> None:
    manifest = call("", seed).kernel().save(tmp_path)
    (tmp_path / "kernel.so").write_bytes(b"not a library")
    with pytest.raises(OSError, match=r"kernel\.so"):
        TvmBackend().load(tmp_path, manifest)


def test_without_a_linker_kernels_run_but_are_not_saved(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = call("mask causal", seed)
    monkeypatch.setenv("PATH", str(tmp_path))
    kernel = TvmBackend().build(lower_program_to_plan(made.program), made.workload(), CPU)
    made.compare(kernel=kernel)
    with pytest.raises(OSError, match="install a C compiler"):
        kernel.save(tmp_path)


def test_the_linker_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "kernel.o").write_text("not an object")
    with pytest.raises(OSError, match="could not link"):
        link(tmp_path / "kernel.o", tmp_path / "kernel.so")


def test_toolchain_names_versions_and_processor() -> None:
    toolchain = TvmBackend().toolchain(Target("cpu"))
    assert "apache-tvm" in toolchain
    assert Workload.__name__ not in toolchain


def test_building_is_quick(seed: int) -> None:
    """Code generation alone, TVM being imported: well under a second on an idle machine."""
    build(call("", seed).program, Workload("f32", (), False))
    start = time.process_time()
    build(call("mask causal score dot(q, k) * scale * 1.5", seed).program, Workload("f32", (), False))
    assert time.process_time() - start < 3
