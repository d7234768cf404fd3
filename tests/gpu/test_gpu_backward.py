"""Gradients by compiled kernels on a real GPU: every element type, larger sizes, the same bits, graphs, memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import triton_backward_cases
import triton_cases
from triton_backward_cases import MORE, compare, results
from triton_cases import CASES, Case, make

from attnc.analyse.gradient.reverse import NotDifferentiable
from attnc.backends.protocol import Target
from attnc.backends.triton import TritonBackend
from attnc.targets import target_of_device

pytestmark = pytest.mark.gpu

FEW = ("causal", "sigmoid", "cog", "softcap", "alibi", "buckets", "documents", "normalised and rotated", "gate")


def here() -> Target:
    return target_of_device("cuda")


def larger(case: Case) -> Case:
    """The case at a size that no tile divides; grids and single keys stay as they are."""
    sizes = case.all_sizes
    if case.extents or sizes["N"] == 1:
        return case
    keys = 389 if sizes["N"] >= sizes["M"] else 277
    return case.at(M=1 if sizes["M"] == 1 else {True: 389, False: 277}[sizes["M"] >= 53], N=keys)


def _compare(case: Case, dtype: str, seed: int) -> None:
    data = make(case, dtype, seed, "cuda")
    try:
        triton_backward_cases.backward_of(data)
    except NotDifferentiable as refused:
        pytest.skip(str(refused))
    problems = TritonBackend().backward_problems(
        triton_backward_cases.backward_of(data), triton_backward_cases.workload_of(data), here()
    )
    if problems:
        pytest.skip(problems[0].message)
    compare(data, here())


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in (*CASES, *MORE)])
def test_gradients_in_float32(case: Case, seed: int) -> None:
    _compare(larger(case), "f32", seed)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", FEW)
def test_gradients_in_half_precision(name: str, dtype: str, seed: int) -> None:
    _compare(larger(triton_backward_cases.find(name)), dtype, seed)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize(
    "widths", [(16, 16), (40, 40), (64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (17, 5)]
)
def test_head_widths(widths: tuple[int, int], dtype: str, seed: int) -> None:
    _compare(triton_cases.find("causal").at(D=widths[0], E=widths[1], M=300, N=515), dtype, seed)


def test_strides(seed: int) -> None:
    data = make(larger(triton_cases.find("causal")), "bf16", seed, "cuda")
    data.q = data.q.transpose(1, 2).contiguous().transpose(1, 2)
    data.k = torch.stack((data.k, data.k), -1).flatten(-2)[..., ::2]
    data.v = data.v[:, :, :1].expand_as(data.v)
    compare(data, here())


@pytest.mark.parametrize("name", ["causal", "buckets", "relative table"])
def test_the_same_bits_twice(name: str, seed: int) -> None:
    data = make(larger(triton_backward_cases.find(name)), "bf16", seed, "cuda")
    d_out = triton_backward_cases.cotangent(data)
    for first, second in zip(*(results(data, d_out, here()) for _ in range(2)), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_memory_is_proportional_to_the_rows(seed: int) -> None:
    """16384 rows and keys: no tensor of all pairs, 512 MiB a head in bf16."""
    case = triton_cases.find("causal").at(B=1, H=2, G=2, M=16384, N=16384, D=64, E=64)
    data = make(case, "bf16", seed, "cuda")
    d_out = triton_backward_cases.cotangent(data)
    results(data, d_out, here())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = results(data, d_out, here())
    used = torch.cuda.max_memory_allocated() - before
    assert used <= 2 * sum(x.numel() * x.element_size() for x in made)


def test_a_saved_backward_runs(tmp_path: Path, seed: int) -> None:
    data = make(larger(triton_cases.find("documents")), "bf16", seed, "cuda")
    compare(data, here())
    made = triton_backward_cases.kernels(data, here())[1]
    manifest = json.loads(json.dumps(dict(made.save(tmp_path))))
    loaded = TritonBackend().load_backward(tmp_path, manifest)
    derived, d_out = triton_backward_cases.backward_of(data), triton_backward_cases.cotangent(data)
    right = results(data, d_out, here())
    forward = triton_backward_cases.kernels(data, here())[0]
    out = torch.empty_like(d_out)
    saved = [torch.empty(out.shape[:3], device="cuda") for _ in derived.saved]
    forward.run(data.q, data.k, data.v, data.inputs, (), (), out, None, saved)
    known = {"out": out, "d_out": d_out} | {f"saved_{n}": x for n, x in zip(derived.saved, saved, strict=True)}
    found = [torch.full_like(x, float("nan")) for x in right]
    loaded.run(data.q, data.k, data.v, data.inputs, (), (), [known[x.name] for x in derived.reads], found)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
