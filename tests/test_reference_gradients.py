"""Gradients of the reference: checked numerically, finite, and zero where nothing is visible."""

from __future__ import annotations

import pytest
import strategies as make
import torch
from hypothesis import given, settings
from strategies import I, J, K, Q, both, program

from attnc.ir.build import apply, literal
from attnc.ir.nodes import Node
from attnc.ir.program import Program
from attnc.reference import evaluate

AT = {"B": 1, "H": 2, "G": 1, "M": 3, "N": 4, "D": 4, "E": 4}
SCORE = make.scaled(Q, K)
EMPTY_FIRST_ROW = both("lt", J, both("sub", I, 1))
MASKS = {"full": literal(True), "causal": both("le", J, I), "empty row": EMPTY_FIRST_ROW, "none": literal(False)}


def check(spec: Program, seed: int = 0) -> None:
    q, k, v, inputs = make.tensors(spec, AT, seed)
    names = [name for name, x in inputs.items() if x.is_floating_point()]
    real = [x.requires_grad_() for x in (q, k, v, *(inputs[name] for name in names))]

    def fn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        output = evaluate(spec, q, k, v, inputs | dict(zip(names, given, strict=True)))
        assert isinstance(output, torch.Tensor)
        return output

    assert torch.autograd.gradcheck(fn, real)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", make.NORMALIZATIONS)
def test_normalisations(name: str, mask: str) -> None:
    check(program(SCORE, MASKS[mask], make.NORMALIZATIONS[name](SCORE)))


@pytest.mark.parametrize(
    "score",
    [
        make.tapa(),
        make.scaled(make.rotated(Q, I), make.rotated(K, J)),
        make.dot(make.l2norm(Q), make.rmsnorm(K, make.D)),
        apply("add", make.softcap(SCORE, 2.0), make.reading("table")),
        apply("mul", make.reading("warmth"), apply("add", SCORE, make.reading("weigh"))),
    ],
)
def test_scores(score: Node) -> None:
    check(program(score, MASKS["empty row"], make.softmax(score), gate=apply("sigmoid", make.reading("gate"))))


@settings(max_examples=40)
@given(make.programs(), make.sizes())
def test_gradients_are_finite(spec: Program, at: dict[str, int]) -> None:
    q, k, v, inputs = make.tensors(spec, at)
    real = [x.requires_grad_() for x in (q, k, v, *inputs.values()) if x.is_floating_point()]
    output = evaluate(spec, q, k, v, inputs)
    assert isinstance(output, torch.Tensor)
    assert output.isfinite().all()
    gradients = torch.autograd.grad(output.square().sum(), real, allow_unused=True)
    assert all(found is None or found.isfinite().all() for found in gradients)


def test_rows_and_keys_that_are_not_visible_have_no_gradient() -> None:
    q, k, v, _ = make.tensors(program(), AT)
    with torch.no_grad():
        k[:, :, 3], v[:, :, 3] = torch.nan, torch.inf
    for x in (q, k, v):
        x.requires_grad_()
    output = evaluate(program(mask=EMPTY_FIRST_ROW), q, k, v)
    assert isinstance(output, torch.Tensor)
    output.sum().backward()
    for x, hidden in ((q, 0), (k, 3), (v, 3)):
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert (x.grad[:, :, hidden] == 0).all()
    assert q.grad is not None
    assert (q.grad[:, :, 2] != 0).all()


def test_what_is_not_chosen_cannot_spoil_a_gradient() -> None:
    """`log` of a negative number and `sqrt` at 0, masked or on the other side of an `if`."""
    distance = both("real", apply("sub", I, J))
    far = both("mul", both("log", distance), SCORE)
    check(program(far, both("gt", apply("sub", I, J), 0), make.softmax(far)))
    guarded = both("where", both("gt", SCORE, 0.0), both("sqrt", SCORE), 0.0)
    check(program(guarded, None, make.softmax(guarded)))
    zero = both("mul", SCORE, 0.0)
    q, k, v, _ = make.tensors(program(), AT)
    at_zero = both("where", both("gt", zero, 0.0), both("sqrt", zero), 0.0)
    output = evaluate(program(at_zero, None, make.softmax(at_zero)), q.requires_grad_(), k, v)
    assert isinstance(output, torch.Tensor)
    output.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_detach_and_parameters() -> None:
    spec = program(
        apply("add", both("detach", SCORE), both("mul", make.reading("weigh"), make.parameter("temperature")))
    )
    q, k, v, inputs = make.tensors(spec, AT)
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    q.requires_grad_()
    output = evaluate(spec, q, k, v, inputs, {"temperature": temperature})
    assert isinstance(output, torch.Tensor)
    gradients = torch.autograd.grad(output.square().sum(), (q, temperature), allow_unused=True)
    assert gradients[0] is None or (gradients[0] == 0).all()
    assert gradients[1] is not None
    assert gradients[1] != 0
