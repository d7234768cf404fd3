"""CPU kernels against the reference in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from triton_cases import CASES, find
from tvm_cases import CPU, build, call, specialized

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Workload
from attnc.backends.tvm import TvmBackend

SLIDING = "mask causal and i - j < 20"


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_case_in_float32(name: str, seed: int) -> None:
    c = find(name)
    made = call(c.spec, seed, made=c.made, params=c.params, extents=c.extents, lse=c.lse, **c.all_sizes)
    made.compare(c.loose)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f64"])
@pytest.mark.parametrize("name", ["causal", "cog", "normalised and rotated", "gate"])
def test_case_in_other_types(name: str, dtype: str, seed: int) -> None:
    c = find(name)
    call(c.spec, seed, dtype=dtype, made=c.made, lse=c.lse, **c.all_sizes).compare()


SHAPES = [(1, 1), (1, 300), (5, 3), (16, 16), (17, 61), (63, 64), (64, 60), (65, 121), (130, 70), (70, 130), (200, 200)]


@pytest.mark.parametrize(("M", "N"), SHAPES)
@pytest.mark.parametrize("spec", ["", "mask causal", SLIDING, "mask j % 7 == 3 or abs(i - j) < 3"])
def test_sizes_that_fit_no_tile(spec: str, M: int, N: int, seed: int) -> None:
    call(spec, seed, lse=True, M=M, N=N, B=1, H=2, G=1).compare()


@pytest.mark.parametrize(("D", "E"), [(1, 1), (7, 3), (40, 72), (80, 96), (192, 128), (16, 256)])
def test_widths(D: int, E: int, seed: int) -> None:
    call("mask causal", seed, D=D, E=E, M=35, N=66, lse=True).compare()


@pytest.mark.parametrize(("B", "M", "N"), [(0, 3, 3), (2, 0, 5), (2, 3, 0), (0, 0, 0)])
def test_nothing(B: int, M: int, N: int, seed: int) -> None:
    made = call("mask causal", seed, lse=True, B=B, M=M, N=N)
    out, lse = made.run()
    torch.testing.assert_close(out, torch.zeros_like(out))
    assert lse is not None
    torch.testing.assert_close(lse, torch.full_like(lse, float("-inf")))


def test_rows_that_see_nothing(seed: int) -> None:
    """Before the first key, and where an input hides everything, whatever the epilogue."""
    made = call("mask causal and j > 9 output o + 1", seed, M=40, N=40, lse=True)
    out, lse = made.run()
    made.compare()
    assert lse is not None
    assert (out[:, :, :10] == 0).all()
    assert torch.isneginf(lse[:, :, :10]).all()


def test_strides(seed: int) -> None:
    """Any strides of q, k, v, inputs and output, also those of expanded and transposed tensors."""
    spec = (
        "input bias: real[B, H, M, N] input z: real[H] mask causal score dot(q, k) * scale + bias[b, h, row, j] + z[h]"
    )
    base = call(spec, seed, M=33, N=45, B=2, H=2, G=2)
    expected, _ = base.expected()
    bias, z = base.inputs
    varied = [
        replace(base, q=base.q.transpose(1, 2).contiguous().transpose(1, 2)),
        replace(base, k=base.k.transpose(2, 3).contiguous().transpose(2, 3)),
        replace(base, v=torch.cat([base.v, base.v], -1)[..., : base.v.shape[-1]]),
        replace(base, inputs=[bias.transpose(2, 3).contiguous().transpose(2, 3), torch.stack([z, z], 1)[:, 0]]),
    ]
    for made in varied:
        out, _ = made.run()
        torch.testing.assert_close(out.double(), expected, rtol=3e-5, atol=3e-5)
    one = replace(base, inputs=[bias[:1, :, :1, :].expand(bias.shape), z])
    one.compare()
    holey = torch.full((2, 2, 33, 32), float("nan"))[..., ::2]
    base.kernel().run(base.q, base.k, base.v, base.inputs, (), (), holey, None)
    torch.testing.assert_close(holey.double(), expected, rtol=3e-5, atol=3e-5)


def test_what_is_hidden_is_not_read(seed: int) -> None:
    """Infinite keys and NaN inputs at hidden pairs leave no trace; reads outside an input give 0."""
    spec = "input t: real[8] mask causal and i - j < 8 score dot(q, k) * scale + t[i - j]"
    made = call(spec, seed, M=50, N=50, B=1, H=1, G=1)
    made.compare()
    wide = call("input t: real[8] mask causal score dot(q, k) * scale + t[i - j]", seed, M=50, N=50, B=1, H=1, G=1)
    out, _ = wide.run()
    padded = call("input t: real[50] mask causal score dot(q, k) * scale + t[i - j]", seed, M=50, N=50, B=1, H=1, G=1)
    filled = torch.cat([wide.inputs[0], torch.zeros(42)])
    expected, _ = replace(padded, q=wide.q, k=wide.k, v=wide.v, inputs=[filled]).expected()
    torch.testing.assert_close(out.double(), expected, rtol=3e-5, atol=3e-5)


def test_large_scores_do_not_overflow(seed: int) -> None:
    made = call("mask causal score 1000 * dot(q, k)", seed, lse=True, M=40, N=40)
    out, _ = made.run()
    assert out.isfinite().all()
    made.compare(30)


def test_not_a_number_stays(seed: int) -> None:
    """A NaN in a query shows in its row and nowhere else."""
    made = call("mask causal", seed, M=40, N=40, B=1, H=1, G=1)
    made.q[0, 0, 7] = float("nan")
    out, _ = made.run()
    assert out[0, 0, 7].isnan().all()
    assert out[0, 0, 8:].isfinite().all()


@settings(max_examples=25)
@given(st.integers(0, 90), st.integers(0, 150), st.integers(1, 3), st.integers(0, 2**31))
def test_any_size_with_one_kernel(M: int, N: int, heads: int, seed: int) -> None:
    call(SLIDING, seed, M=M, N=N, B=1, H=2 * heads, G=heads, lse=True).compare()


def test_threads(seed: int) -> None:
    """As many as torch uses, with the same result."""
    made = call("mask causal", seed, M=200, N=200)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, _ = made.run()
        torch.set_num_threads(2)
        together, _ = made.run()
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone, together, rtol=0, atol=0)


RELATIVE = "input rel: real[H, 99, D] mask window(30) score (dot(q, k) + dot(q, rel[h, j - i + 49, :])) * scale"
BY_PAIR = [
    RELATIVE,
    "mask causal value exp(q * 0.1 * v)",
    "input rel: real[99, E] mask window(30) value v + rel[j - i + 49, :]",
    "score max_d(q * k)",
    "mask sum_d(sign(q) * sign(k)) > 1.5",
]


@pytest.mark.parametrize("M", [3, 37])
@pytest.mark.parametrize("spec", BY_PAIR)
def test_vectors_of_a_pair(spec: str, M: int, seed: int) -> None:
    """Products and values that are another vector for each query and key."""
    call(spec, seed, M=M, D=16, E=16).compare(3)


def test_what_cannot_run_is_reported() -> None:
    program = specialized(
        "input a: real[B, H, N] let t = cumsum(a[b, h, j]) score dot(q, k) + t[b, h, i] - t[b, h, j]", 16, 16
    )
    problems = TvmBackend().problems(lower_program_to_plan(program), Workload("f32", ("f32",), False), CPU)
    assert [problem.message for problem in problems] == ["`cumsum` is not supported on CPUs"] * 2


def test_memory_does_not_grow_with_pairs(seed: int) -> None:
    """16k keys: scratch memory is some tiles for each thread."""
    made = call("mask causal and i - j < 100", seed, M=16384, N=16384, B=1, H=1, G=1, D=16, E=16)
    kernel = build(made.program, made.workload())
    assert kernel._layout.room < 2**20  # type: ignore[attr-defined]
    out, _ = made.run()
    assert out.isfinite().all()
