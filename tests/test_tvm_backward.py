"""Gradients of CPU kernels against autograd through the reference in float64."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from strategies import programs, sizes, tensors
from tvm_backward_cases import Training, backward_kernel, training
from tvm_cases import CPU

from attnc.analyse.gradient.backward import Walk
from attnc.analyse.gradient.derive import derive
from attnc.analyse.gradient.reverse import NotDifferentiable
from attnc.analyse.lower import stream_program
from attnc.backends.tvm import TvmBackend
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.signature import size_value

SPECS = {
    "softmax": "",
    "causal": "mask causal",
    "softmax1": "mask causal normalize softmax1(score)",
    "sink": "input z: real[H] mask causal normalize softmax_sink(score, z[h])",
    "sigmoid": "mask causal normalize sigmoid(score - log(N))",
    "relu": "normalize relu(score)",
    "relu2": "mask causal normalize relu2(score)",
    "silu": "mask causal score silu(dot(q, k) * scale)",
    "cog": "mask causal normalize cog(score)",
    "affine": "input a: real[B, H, M] param c: real = 0.3 normalize affine(score, a[b, h, row], c)",
    "inline": "normalize inline(score)",
    "softcap and alibi": ("input slope: real[H] mask causal score softcap(dot(q, k) * scale, 2) + alibi(slope[h])"),
    "bucket": "input t: real[H, 8] score dot(q, k) * scale + t[h, floor(log(1 + abs(i - j)))]",
    "window table": (
        "space (y: Y, x: X) input t: real[(2 * Y - 1) * (2 * X - 1), H] "
        "score dot(q, k) * scale + t[(i.y - j.y + Y - 1) * (2 * X - 1) + i.x - j.x + X - 1, h]"
    ),
    "bias": "input t: real[B, H, M, N] mask causal score dot(q, k) * scale + t[b, h, row, j]",
    "tapa": (
        "param alpha: real = 0.2 score dot(q[0:D // 2], k[0:D // 2]) * scale "
        "* cos(6.283 * abs(i - j) ** alpha * dot(q[D // 2:D], k[D // 2:D]))"
    ),
    "norms": "mask causal query rope(rmsnorm(q), i) key rope(l2norm(k), j)",
    "gain": "input w: real[H, D] mask i - j < 20 and causal query rmsnorm(q) * w[h, :]",
    "alias": "mask causal value k[0:8]",
    "gate": "input gate: real[B, H, M, E] mask causal output sigmoid(gate[b, h, row, :]) * o",
    "decay": "input mu: real[H] normalize softmax(score) * exp(-abs(i - j) * mu[h] * mu[h])",
    "documents": "input doc: int[B, N] mask doc[b, i] == doc[b, j] and causal",
    "neighbourhood": "mask neighborhood(3)",
    "empty rows": "mask j < i - 37",
    "empty rows, epilogue": "input w: real[B, H, M, E] mask j < i - 37 output o * w[b, h, row, :]",
    "empty rows, norm": "mask causal and i % 3 > 0 output rmsnorm(o)",
    "twopass": "mask causal normalize relu(score - rowmean(score))",
    "temperature and key bias": (
        "input tau: real[B, H, M] input u: real[B, G, N] mask causal "
        "score dot(q, k) * scale * tau[b, h, row] + u[b, g, j]"
    ),
    "saved": "input z: real[H] mask j < i - 37 normalize softmax_sink(score, z[h]) output sigmoid(o)",
    "entropy": "output o * rowsum(weight * score)",
}
PARAMS = {"affine": (0.3,), "tapa": (0.2,)}
SHAPES = {"neighbourhood": {"M": 71}, "window table": {"M": 48, "N": 48}}
EXTENTS = {"window table": (6, 8)}


def of(name: str, seed: int, **more: Any) -> Training:
    """A call of one of the specs."""
    given: dict[str, Any] = {"params": PARAMS.get(name, ()), "extents": EXTENTS.get(name, ()), **SHAPES.get(name, {})}
    return training(SPECS[name], seed, **given | more)


@pytest.mark.parametrize("name", SPECS)
def test_gradients_in_float64(name: str, seed: int) -> None:
    of(name, seed).compare()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("softmax", "f32"), ("norms", "f32"), ("gate", "f32"), ("bucket", "f32"), ("causal", "bf16"), ("gate", "f16")],
)
def test_after_the_forward_kernel_in_other_types(name: str, dtype: str, seed: int) -> None:
    """With the states that the forward kernel saves, of the rounded result."""
    of(name, seed, dtype=dtype).compare(exact=False)


def test_what_the_forward_kernel_saves(seed: int) -> None:
    made = of("saved", seed)
    exact, found = made.exact_reads(), made.kernel_reads()
    assert {"saved_m0", "saved_l0", "saved_a0"} <= found.keys()
    for name, x in found.items():
        torch.testing.assert_close(x, exact[name], rtol=1e-9, atol=1e-9)


def test_scores_of_exactly_zero(seed: int) -> None:
    made = of("cog", seed)
    made.tokens[0][:, :, 1] = 0.0
    made.compare()


def test_a_slope_of_zero(seed: int) -> None:
    made = of("affine", seed)
    made.inputs[0].zero_()
    made.compare()


@pytest.mark.parametrize(("M", "N"), [(1, 1), (5, 1), (1, 71), (64, 64), (130, 70), (70, 130)])
def test_one_kernel_for_all_sizes(M: int, N: int, seed: int) -> None:
    of("causal", seed, M=M, N=N, H=2, G=1).compare()


@pytest.mark.parametrize(("B", "M", "N"), [(0, 3, 3), (2, 0, 5), (2, 3, 0)])
def test_nothing(B: int, M: int, N: int, seed: int) -> None:
    for result in of("bucket", seed, B=B, M=M, N=N).results(exact=False):
        torch.testing.assert_close(result, torch.zeros_like(result))


def test_strides(seed: int) -> None:
    """Any strides of tokens, inputs, cotangent and results, also those of expanded and transposed tensors."""
    base = of("temperature and key bias", seed)
    q, k, v = base.tokens
    tau, u = base.inputs
    varied = (q.transpose(1, 3).contiguous().transpose(1, 3), k[:, :1].expand(k.shape), torch.cat([v, v], -1)[..., :8])
    inputs = [tau[:1, :, :1].expand(tau.shape), u.transpose(1, 2).contiguous().transpose(1, 2)]
    made = replace(base, tokens=varied, inputs=inputs, d_out=base.d_out[..., :1].expand(base.d_out.shape))
    made.compare()
    wanted = made.results()
    known = made.exact_reads()
    reads = [known[x.name] for x in made.backward.reads]
    results = [torch.full((*x.shape, 2), float("nan"), dtype=torch.float32)[..., 0] for x in wanted]
    backward_kernel(made.backward, made.workload()).run(*varied, inputs, (), (), reads, results)
    for result, expected in zip(results, wanted, strict=True):
        torch.testing.assert_close(result, expected.float())


def test_one_tensor_as_q_k_and_v(seed: int) -> None:
    made = of("causal", seed, D=8, E=8, H=2, G=2, M=50, N=50)
    q = made.tokens[0]
    replace(made, tokens=(q, q, q)).compare()


@pytest.mark.parametrize("name", ["bucket", "gain"])
def test_the_same_bits_each_time_on_any_number_of_threads(name: str, seed: int) -> None:
    made = of(name, seed, M=150, N=150)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            found.append(made.results())
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[1:], [found[0], found[0]], rtol=0, atol=0)


def test_only_what_is_wanted(seed: int) -> None:
    """Without the gradient of q no walk over the keys is left; what remains has the same bits."""
    made = of("softmax", seed)
    every = dict(zip((c.name for c in made.backward.contributions), made.results(), strict=True))
    some = replace(made, backward=made.backward.only({"k", "v"}))
    assert [step.over for step in some.backward.steps if isinstance(step, Walk)] == ["rows"]
    for contribution, result in zip(some.backward.contributions, some.results(), strict=True):
        torch.testing.assert_close(result, every[contribution.name], rtol=0, atol=0)


def test_a_saved_kernel(tmp_path: Path, seed: int) -> None:
    made = of("bucket", seed)
    manifest = json.loads(json.dumps(backward_kernel(made.backward, made.workload()).save(tmp_path)))
    loaded = TvmBackend().load_backward(tmp_path, manifest)
    torch.testing.assert_close(made.results(loaded), made.results(), rtol=0, atol=0)
    manifest["flags"].append("avx1024")
    with pytest.raises(OSError, match="avx1024"):
        TvmBackend().load_backward(tmp_path, manifest)


def test_memory_does_not_grow_with_pairs() -> None:
    made = of("causal", 0)
    kernel = backward_kernel(made.backward, made.workload())
    assert kernel._layout.room < 2**20  # type: ignore[attr-defined]


def test_what_cannot_run_is_reported() -> None:
    made = training("input t: real[2 * N, D] mask dot(q, t[j - i + N, :]) > 0", 0)
    problems = TvmBackend().backward_problems(made.backward, made.workload(), CPU)
    assert [p.message for p in problems] == ["no gradient is compiled for vectors that vary by pair on CPUs"]


@settings(max_examples=int(os.environ.get("ATTNC_BACKWARD_EXAMPLES", "4")))
@given(programs(), sizes(empty=False), st.integers(0, 9999))
def test_random_programs(program: Program, at: dict[str, int], seed: int) -> None:
    program = specialize(program, at["D"], at["E"])
    q, k, v, inputs = tensors(program, at, seed)
    try:
        backward = derive(stream_program(program, keep_detach=True))
    except NotDifferentiable:
        reject()
    width = size_value(program.body.output.width, at)
    d_out = torch.randn(*q.shape[:-1], width, dtype=q.dtype, generator=torch.Generator().manual_seed(seed))
    defaults = [float(p.default or 0) for p in program.parameters]
    made = Training(backward, (q, k, v), [inputs[x.name] for x in program.inputs], defaults, (), d_out)
    if TvmBackend().backward_problems(backward, made.workload(), CPU):
        reject()
    made.compare(100)
