"""Derived gradients against autograd through the reference, in float64, and what was derived."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradient_interpreter import gradients
from hypothesis import event, given, settings
from hypothesis import strategies as st
from strategies import programs, sizes, tensors
from torch import Tensor

from attnc.analyse.gradient.derive import derive
from attnc.analyse.gradient.reverse import NotDifferentiable
from attnc.analyse.lower import stream_program
from attnc.check import check
from attnc.grammar.source import Source
from attnc.ir.nodes import Kind
from attnc.ir.printer import expression
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.reference import evaluate
from attnc.signature import size_value

SIZES = {"B": 2, "H": 4, "G": 2, "M": 5, "N": 7, "D": 6, "E": 4}

SPECS = {
    "softmax": "",
    "causal": "mask causal",
    "softmax1": "normalize softmax1(score)",
    "sink": "input z: real[H]  normalize softmax_sink(score, z[h])",
    "sigmoid": "normalize sigmoid(score - log(N))",
    "relu": "normalize relu(score)",
    "relu2": "normalize relu2(score)",
    "silu": "score silu(dot(q, k) * scale)",
    "laplace": "normalize laplace(score)",
    "cog": "normalize cog(score)",
    "affine": "input a: real[B, H, M]  param c: real = 0.3  normalize affine(score, a[b, h, row], c)",
    "inline": "normalize inline(score)",
    "softcap": "score softcap(dot(q, k) * scale, 2)",
    "alibi": "input slope: real[H]  mask causal  score dot(q, k) * scale + alibi(slope[h])",
    "table": "input t: real[H, 2 * N]  score dot(q, k) * scale + t[h, j - i + N]",
    "bucket": "input t: real[H, 4]  score dot(q, k) * scale + t[h, floor(log(1 + abs(i - j)))]",
    "tapa": (
        "param alpha: real = 0.2  score dot(q[0:D // 2], k[0:D // 2]) * scale "
        "* cos(6.283 * abs(i - j) ** alpha * dot(q[D // 2:D], k[D // 2:D]))"
    ),
    "norms": "query rope(rmsnorm(q), i)  key rope(l2norm(k), j)",
    "gain": "input w: real[H, D]  query rmsnorm(q) * w[h, :]",
    "alias": "value k[0:4]",
    "gate": "input gate: real[B, H, M, E]  output sigmoid(gate[b, h, row, :]) * o",
    "decay": "input mu: real[H]  normalize softmax(score) * exp(-abs(i - j) * mu[h] * mu[h])",
    "documents": "input doc: int[B, N]  mask doc[b, i] == doc[b, j] and causal",
    "neighbourhood": "mask neighborhood(3)",
    "empty rows": "mask j < i - 3",
    "twopass": "normalize relu(score - rowmean(score))",
    "temperature": "input tau: real[B, H, M]  score dot(q, k) * scale * tau[b, h, row]",
    "normalised score": "normalize softmax(score / sqrt(rowmean(score * score) + 0.1))",
    "detached": "normalize score / detach(max(abs(rowsum(score)), 1))",
    "key bias": "input u: real[B, G, N]  score dot(q, k) * scale + u[b, g, j]",
    "bilinear position": "input u: real[H]  score dot(q, k) * scale + u[h] * j",
    "entropy": "output o * rowsum(weight * score)",
}


def made(text: str) -> Program:
    return check(Source("spec", f"attention a {{ {text} }}"), None, {})


def arguments(program: Program, s: dict[str, int], seed: int) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """Random q, k, v, inputs and cotangent of the output."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    q, k, v = (
        rand(s["B"], s["H"], s["M"], s["D"]),
        rand(s["B"], s["G"], s["N"], s["D"]),
        rand(s["B"], s["G"], s["N"], s["E"]),
    )
    inputs = {}
    for source in program.inputs:
        dims = [size_value(dim, s) for dim in source.dims]
        real = source.kind is Kind.REAL
        inputs[source.name] = rand(*dims) if real else torch.randint(0, 3, dims, generator=generator)
    return [q, k, v], inputs, rand(s["B"], s["H"], s["M"], s["E"])


def check_gradients(program: Program, tokens: list[Tensor], inputs: dict[str, Tensor], d_out: Tensor) -> None:
    """The derived gradients of everything real are those of the reference."""
    defaults = {p.name: float(p.default or 0) for p in program.parameters}
    found = gradients(program, tuple(tokens), inputs, defaults, {}, d_out)  # type: ignore[arg-type]
    leaves: dict[str, Any] = dict(zip("qkv", tokens, strict=True)) | inputs
    leaves |= {name: torch.tensor(value, dtype=torch.float64) for name, value in defaults.items()}
    leaves = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in leaves.items()}
    q, k, v = (leaves[name] for name in "qkv")
    out = evaluate(program, q, k, v, {n: leaves[n] for n in inputs}, {n: leaves[n] for n in defaults})
    assert isinstance(out, Tensor)
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    expected = torch.autograd.grad(out, list(wanted.values()), d_out, allow_unused=True)
    for (name, leaf), gradient in zip(wanted.items(), expected, strict=True):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", SPECS)
def test_the_derived_backward_is_autograd_through_the_reference(name: str) -> None:
    at = SIZES | ({"M": 7} if name == "neighbourhood" else {})
    program = made(SPECS[name])
    check_gradients(program, *arguments(program, at, seed=len(name)))


@settings(max_examples=300)
@given(programs(), sizes(empty=False), st.integers(0, 9999))
def test_random_programs(program: Program, at: dict[str, int], seed: int) -> None:
    q, k, v, inputs = tensors(program, at, seed)
    width = size_value(specialize(program, at["D"], at["E"]).body.output.width, at)
    d_out = torch.randn(*q.shape[:-1], width, dtype=q.dtype, generator=torch.Generator().manual_seed(seed))
    try:
        check_gradients(program, [q, k, v], inputs, d_out)
    except NotDifferentiable as refused:
        event(str(refused))


def test_scores_of_exactly_zero() -> None:
    program = made("normalize cog(score)")
    tokens, inputs, d_out = arguments(program, SIZES, 1)
    tokens[0][:, :, 1] = 0.0
    check_gradients(program, tokens, inputs, d_out)


@pytest.mark.parametrize(
    ("text", "saved", "shifts"),
    [
        ("", {"m0", "l0"}, ["$m0"]),
        ("normalize sigmoid(score)", set(), []),
        ("input z: real[H]  normalize softmax_sink(score, z[h])", {"m0", "l0"}, ["max($m0, z[h])"]),
        ("normalize cog(score)", {"m0", "l0"}, ["$m0"]),
    ],
)
def test_what_is_saved_and_which_shifts_are_constant(text: str, saved: set[str], shifts: list[str]) -> None:
    backward = derive(stream_program(made(text)))
    assert set(backward.saved) == saved
    assert [expression(shift) for shift in backward.shifts] == shifts


@pytest.mark.parametrize("text", ["normalize exp(score - rowmax(score))", "normalize score / rowmax(abs(score))"])
def test_a_maximum_that_is_no_shift_is_refused(text: str) -> None:
    with pytest.raises(NotDifferentiable, match="row maximum"):
        derive(stream_program(made(text)))
