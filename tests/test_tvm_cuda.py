"""TVM's kernels for GPUs, run by an emulator of what they are made of, beside the reference in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tvm")

from cuda_emulator import is_possible
from spec_cases import CASES as SPECS
from test_specs import load, make_inputs, tokens
from triton_cases import CASES, WIDTHS, Case, find
from tvm_cuda_cases import CUTS, SM_90, make

from attnc.backends.protocol import Workload
from attnc.backends.tvm import TvmBackend
from attnc.backends.tvm.cuda import compile as compiling

pytestmark = pytest.mark.skipif(not is_possible(), reason="the emulator takes g++ on x86-64")

FEW = ("causal", "cog", "documents", "two passes over a mask", "normalised and rotated", "gate", "neighbourhood")
each_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("name", ["causal", "cog", "documents"])
def test_case(name: str, dtype: str, seed: int) -> None:
    make(find(name), dtype, seed).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@each_case
def test_every_case(case: Case, dtype: str, seed: int) -> None:
    make(case, dtype, seed).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", FEW)
def test_cuts(name: str, cut: tuple[int, int, int], dtype: str, seed: int) -> None:
    """Tiles of other sizes, and threads in the other order."""
    make(find(name), dtype, seed, cut, backwards=True).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("widths", WIDTHS, ids=lambda widths: "{}-{}".format(*widths))
def test_head_widths(widths: tuple[int, int], dtype: str, seed: int) -> None:
    make(find("causal").at(D=widths[0], E=widths[1], M=70, N=150, B=1), dtype, seed).check()


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_widths_that_fit_no_instruction(dtype: str, seed: int) -> None:
    make(find("causal").at(D=17, E=5), dtype, seed).check()


SHAPES = [(1, 1), (1, 300), (5, 3), (16, 16), (17, 61), (63, 64), (64, 128), (130, 70), (70, 130), (300, 200)]


@pytest.mark.parametrize(("M", "N"), SHAPES)
@pytest.mark.parametrize("spec", ["", "mask causal and i - j < 20", "mask j % 70 == 3 or abs(i - j) < 3"])
def test_sizes_that_fit_no_tile(spec: str, M: int, N: int, seed: int) -> None:
    make(Case("sizes", spec, {"M": M, "N": N, "B": 1}, lse=True), "f32", seed, CUTS["small"]).check()


@pytest.mark.parametrize("empty", ["B", "M", "N"])
def test_nothing_there(empty: str, seed: int) -> None:
    make(find("causal").at(**{empty: 0}), "bf16", seed).check()


def test_rows_that_see_nothing(seed: int) -> None:
    """Before the first key, whatever the epilogue."""
    case = Case("late", "mask causal and j > 9 output o + 1", {"M": 40, "N": 40}, lse=True)
    data = make(case, "f32", seed)
    data.check()
    out, lse = data.results()
    assert lse is not None
    assert (out[:, :, :10] == 0).all()
    assert torch.isneginf(lse[:, :, :10]).all()


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("name", ["causal", "gate"])
def test_strides(name: str, dtype: str, seed: int) -> None:
    """Tensors that can be copied in chunks of 16 bytes and ones that cannot; results with gaps."""
    data = make(find(name), dtype, seed)
    q, k, v = data.q, data.k, data.v
    expected, _ = data.expected()
    tolerance = {"bf16": 3e-2, "f32": 3e-5}[dtype]
    varied = [
        (q.transpose(1, 2).contiguous().transpose(1, 2), k, v),
        (q, torch.stack((k, k), -1).flatten(-2)[..., ::2], v),
        (q, k, torch.cat((v.new_zeros(*v.shape[:-1], 3), v), -1)[..., 3:]),
        (torch.cat((q, q[..., :1]), -1)[..., :-1], k, torch.cat((v, v), -1)[..., : v.shape[-1]]),
        (q, torch.cat((k[..., :2], k, k[..., :6]), -1)[..., 2:-6], v),
    ]
    for data.q, data.k, data.v in varied:
        out, _ = data.results()
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    data.k = k[:, :1].expand_as(k)
    data.check()
    data.k = k
    out = q.new_full((*q.shape[:2], 2 * q.shape[2], 2 * v.shape[-1]), float("nan"))
    data.results(out[..., ::2, ::2])
    torch.testing.assert_close(out[..., ::2, ::2].double(), expected, rtol=tolerance, atol=tolerance)
    assert out[..., 1::2, :].isnan().all()


def test_a_value_that_is_not_a_number_stays_in_its_row(seed: int) -> None:
    data = make(find("causal").at(M=50, N=50, B=1), "f32", seed)
    clean, _ = data.results()
    data.q[0, 0, 7] = float("nan")
    out, _ = data.results()
    assert out[0, 0, 7].isnan().all()
    kept = [row for row in range(50) if row != 7]
    torch.testing.assert_close(out[:, :, kept], clean[:, :, kept], rtol=0, atol=0)


def test_large_scores_do_not_overflow(seed: int) -> None:
    data = make(
        Case("large", "mask causal score 1000 * dot(q, k)", {"M": 40, "N": 40}, lse=True, loose=30), "f32", seed
    )
    data.check()


@pytest.mark.parametrize("held", [0, 8])
def test_reads_outside_an_input_give_zero(held: int, seed: int) -> None:
    """Also of an input without elements."""
    spec = "input t: real[{}] mask causal score dot(q, k) * scale + t[i - j]"
    data, whole = (make(Case("outside", spec.format(size), {"M": 30, "N": 30}), "f32", seed) for size in (held, 30))
    whole.q, whole.k, whole.v = data.q, data.k, data.v
    whole.inputs = [torch.cat((data.inputs[0], torch.zeros(30 - held)))]
    expected, _ = whole.expected()
    torch.testing.assert_close(data.results()[0].double(), expected, rtol=3e-5, atol=3e-5)


BY_PAIR = [
    "input rel: real[H, 99, D] mask window(30) score (dot(q, k) + dot(q, rel[h, j - i + 49, :])) * scale",
    "mask causal value exp(q * 0.1 * v)",
    "input rel: real[99, E] mask window(30) value v + rel[j - i + 49, :]",
    "score max_d(q * k)",
    "mask sum_d(sign(q) * sign(k)) > 1.5",
]


@pytest.mark.parametrize("spec", BY_PAIR)
def test_vectors_of_a_pair(spec: str, seed: int) -> None:
    make(Case("pair", spec, {"D": 16, "E": 16}, loose=3), "f32", seed).check()


@pytest.mark.parametrize(
    "spec", ["mask causal key k * 2 value v * 3 + 1", "query q + 1 key k[0:16] value exp(v) * 0.1"]
)
def test_vectors_that_are_computed(spec: str, seed: int) -> None:
    make(Case("computed", spec, {"D": 16, "E": 24}), "f32", seed).check()


def test_two_calls_give_the_same_bits(seed: int) -> None:
    data = make(find("documents"), "bf16", seed)
    assert torch.equal(data.results()[0], data.results()[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SPECS if case.kernels])
def test_every_spec(case: object, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda_emulator import emulate

    from attnc.backends.tvm.cuda.kernel import CudaKernel

    op = load(case.name, **case.constants)  # type: ignore[attr-defined]
    inputs = make_inputs(case, op, generator, torch.float32)  # type: ignore[arg-type]
    q, k, v = tokens(case, generator, torch.float32)  # type: ignore[arg-type]
    just = op.source
    names = {torch.float32: "f32", torch.int32: "i32", torch.int64: "i64", torch.bool: "bool"}
    given = [inputs[source.name] for source in op.program.inputs]
    workload = Workload("f32", tuple(names[x.dtype] for x in given), False)
    plan = just.plan((q.shape[-1], v.shape[-1]))
    assert not (problems := TvmBackend().problems(plan, workload, SM_90)), problems
    monkeypatch.setattr(compiling, "find_nvcc", lambda: None)
    kernel = TvmBackend().build(plan, workload, SM_90)
    assert isinstance(kernel, CudaKernel)
    emulate(kernel)
    arguments = {**inputs, **case.params, **case.extents}  # type: ignore[attr-defined]
    expected = op.reference(q.double(), k.double(), v.double(), **arguments)
    out = torch.full(expected.shape, float("nan"))
    params = [case.params[parameter.name] for parameter in op.program.parameters]  # type: ignore[attr-defined]
    extents = [case.extents[name] for name in op.program.extents]  # type: ignore[attr-defined]
    kernel.run(q, k, v, given, params, extents, out, None)
    torch.testing.assert_close(out.double(), expected, rtol=3e-5, atol=3e-5)
