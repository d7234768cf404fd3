"""Any plan, run over tiles of keys in any order, gives what the program means."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_interpreter import run_plan
from strategies import (
    I,
    J,
    both,
    masks,
    program,
    programs,
    reading,
    relu,
    rowmax,
    rowsum,
    scaled,
    sizes,
    softmax,
    tensors,
)

from attnc.analyse.lower import lower_program_to_plan
from attnc.ir.build import apply, literal, token
from attnc.ir.nodes import Node
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.plan import Plan
from attnc.reference import evaluate

SIZES = {"B": 2, "H": 2, "G": 1, "M": 5, "N": 13, "D": 4, "E": 6}


def compare(program: Program, at: dict[str, int], seed: int, magnitude: float = 1.0) -> Plan:
    """Runs plan and reference in float64; returns the plan."""
    program = specialize(program, at["D"], at["E"])
    q, k, v, inputs = tensors(program, at, seed)
    q = q * magnitude
    params = {parameter.name: parameter.default or 0.0 for parameter in program.parameters}
    plan = lower_program_to_plan(program)
    out, lse = run_plan(plan, at, q, k, v, inputs, params, random.Random(seed))
    expected = evaluate(program, q, k, v, inputs, params, return_lse=plan.lse is not None)
    if isinstance(expected, tuple):
        expected, expected_lse = expected
        torch.testing.assert_close(lse, expected_lse.double(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-7)
    assert out.isfinite().all()
    return plan


@settings(max_examples=60)
@given(programs(), sizes(empty=False), st.integers(0, 9999))
def test_programs(program: Program, at: dict[str, int], seed: int) -> None:
    compare(program, at, seed)


def _over_one_and(x: Node) -> Node:
    return apply("div", x, both("add", 1.0, rowsum(apply("abs", x))))


def _mean(x: Node) -> Node:
    return apply("div", rowsum(x), rowsum(literal(1.0)))


def weights(score: Node) -> st.SearchStrategy[Node]:
    """Any mixture of pair terms, row statistics and what can be done with them."""
    leaves = st.sampled_from(
        [
            score,
            relu(score),
            apply("exp", apply("sub", score, rowmax(score))),
            softmax(score),
            softmax(score, literal(0.0)),
            apply("sigmoid", score),
            literal(1.0),
            reading("warmth"),
            reading("weigh"),
            rowmax(score),
            _mean(score),
            both("div", 1.0, rowsum(literal(1.0))),
        ]
    )

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        scalar = st.sampled_from([0.5, -1.0, 2.0, 0.0])
        return st.one_of(
            st.builds(apply, st.sampled_from(["add", "sub", "mul", "max", "min"]), inner, inner),
            st.builds(apply, st.sampled_from(["neg", "abs", "sign", "tanh"]), inner),
            st.builds(both, st.just("mul"), inner, scalar),
            st.builds(lambda x: both("pow", x, 2.0), inner),
            st.builds(lambda a, b: both("where", both("le", J, I), a, b), inner, inner),
            st.builds(lambda a, b: both("where", both("lt", I, 3), a, b), inner, inner),
            st.builds(_over_one_and, inner),
            st.builds(softmax, inner),
            st.builds(_mean, inner),
            st.builds(rowmax, inner),
            st.builds(lambda x: relu(apply("sub", x, _mean(x))), inner),
        )

    return st.recursive(leaves, grow, max_leaves=4)


SCORE = scaled(token("q"), token("k"))


@settings(max_examples=150)
@given(weights(SCORE), masks(), st.integers(0, 9999))
def test_weights(weight: Node, mask: Node, seed: int) -> None:
    compare(program(SCORE, mask, weight), SIZES, seed)


@pytest.mark.parametrize("sink", [None, 0.0, 300.0])
def test_scores_of_ten_thousand_do_not_overflow(sink: float | None) -> None:
    weight = softmax(SCORE, None if sink is None else literal(sink))
    compare(program(SCORE, None, weight), SIZES, 1, magnitude=1e4)


def test_a_row_without_a_visible_key_is_zero() -> None:
    plan = compare(program(SCORE, both("lt", J, I)), SIZES | {"M": 13}, 1)
    assert plan.lse is not None


def test_statistics_in_the_output() -> None:
    weight = softmax(SCORE)
    whole = program(SCORE, None, weight)
    entropy = rowsum(apply("mul", weight, SCORE))
    output = apply("mul", whole.body.output, entropy)
    compare(replace(whole, body=replace(whole.body, output=output)), SIZES, 1)
