"""The printed form of expressions and programs, and reading it back."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import strategies as make
from hypothesis import given, settings
from strategies import I, J, K, Q, V, both, program

from attnc.ir.build import apply, branch_output, cumsum, literal, matvec, read, size, slice_, solve, state
from attnc.ir.nodes import Input, Kind, Node
from attnc.ir.printer import expression, print_program
from attnc.ir.program import Program, Route, Select
from attnc.ir.reader import Unreadable, read_expression, read_program
from attnc.ir.specialize import specialize

MATRIX = Input("matrix", Kind.REAL, (size("H"), size("D"), size("D")))
CAUSAL = both("le", J, I)


@settings(max_examples=60)
@given(make.programs())
def test_programs_come_back(spec: Program) -> None:
    assert read_program(print_program(spec)) == spec
    special = specialize(spec, 8, 4)
    assert read_program(print_program(special)) == special


@settings(max_examples=60)
@given(make.masks())
def test_masks_come_back(mask: Node) -> None:
    assert read_expression(expression(mask, depth=100), make.INPUTS.values(), make.PARAMETERS.values()) is mask


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (literal(-5), "-5"),
        (both("neg", 5), "-(5)"),
        (both("neg", both("neg", I)), "-(-i)"),
        (both("sub", I, -5), "i - -5"),
        (both("pow", -5.0, 2.0), "(-5.0) ** 2.0"),
        (both("neg", both("pow", 5.0, 2.0)), "-(5.0 ** 2.0)"),
        (both("pow", both("pow", I, 2.0), 3.0), "(real(i) ** 2.0) ** 3.0"),
        (both("pow", 2.0, both("pow", I, 3.0)), "2.0 ** (real(i) ** 3.0)"),
        (both("sub", I, both("sub", I, J)), "i - (i - j)"),
        (both("sub", both("sub", I, J), J), "i - j - j"),
        (both("shl", 1, both("add", I, J)), "1 << i + j"),
        (both("eq", CAUSAL, both("not", CAUSAL)), "(j <= i) == (not j <= i)"),
        (both("not", both("and", CAUSAL, True)), "not (j <= i and true)"),
        (both("where", CAUSAL, both("where", CAUSAL, I, J), J), "(i if j <= i else j) if j <= i else j"),
        (both("where", CAUSAL, I, both("where", CAUSAL, J, I)), "i if j <= i else j if j <= i else i"),
        (both("add", both("where", CAUSAL, I, J), 1), "(i if j <= i else j) + 1"),
        (both("mul", I, 0.1), "real(i) * 0.1"),
        (both("max", 1e-24, both("div", 1e30, I)), "max(1e-24, 1e+30 / real(i))"),
        (slice_(both("mul", Q, 2.0), literal(0), literal(4)), "(q * 2.0)[0:4]"),
        (make.rotated(K, J), "rope(k, real(j), 10000.0, D)"),
        (make.rowmax(make.dot(Q, K)), "rowmax(dot(q, k))"),
        (make.reduce_width("max", Q), "max_d(q)"),
        (make.reading("gate"), "gate[b, h, row, :]"),
        (slice_(make.reading("gate"), literal(0), literal(2)), "gate[b, h, row, :][0:2]"),
        (matvec(Q, read(MATRIX, (make.index("h"), None, None))), "matmul(q, matrix[h, :, :])"),
        (cumsum(make.reading("weigh"), I), "cumsum(weigh[b, g, j], i)"),
        (solve(make.dot(Q, K), V), "solve(dot(q, k), v)"),
        (branch_output(("near", "far"), size("E")), "merge(near, far)"),
        (state("m0"), "$m0"),
        (state("a0", literal(64)), "$a0[:64]"),
    ],
)
def test_expressions(node: Node, text: str) -> None:
    assert expression(node) == text
    assert read_expression(text, [MATRIX, *make.INPUTS.values()]) is node


def test_a_program() -> None:
    score = make.softcap(make.scaled(Q, K), 50.0)
    spec = program(score, CAUSAL, make.softmax(score, make.reading("sink")), name="capped")
    assert print_program(specialize(spec, 64, 32)) == GOLDEN


GOLDEN = """\
program capped
widths D=64 E=32
input sink: real[H]
%0 = tanh(dot(q, k) * 0.125 / 50.0) * 50.0
%1 = max(rowmax(%0), sink[h])
%2 = exp(%0 - %1)
%3 = %2 / (exp(sink[h] - %1) + rowsum(%2))
group  h // (H // G)
mask   j <= i
score  %0
weight %3
value  v
output rowsum(%3 * v)
"""


def test_all_that_a_program_may_have_comes_back() -> None:
    select = Select("mass", (literal(0.5),), (("least", literal(1)), ("crossing", "include")))
    always: tuple[tuple[str, Node | None], ...] = (("self", None), ("first", literal(1)))
    routes = (
        Route(
            literal(64),
            "queries",
            literal(16),
            make.dot(Q, K),
            select,
            always,
            (("where", literal(True)),),
            literal(False),
        ),
        Route(literal(1), "head", None, None, None, ()),
    )
    plain = program(score=both("mul", make.dot(Q, K), make.parameter("temperature")))
    far = replace(plain.body, routes=routes)
    spec = replace(
        plain,
        space=(("t", size("T")), ("x", literal(4))),
        branches=(("near", plain.body), ("far", far)),
        body=replace(plain.body, output=branch_output(("near", "far"), size("E")), routes=routes[1:]),
    )
    assert read_program(print_program(spec)) == spec


def test_deep_and_shared_graphs_print_in_little_space() -> None:
    deep = make.dot(Q, K)
    for _ in range(3000):
        deep = both("add", deep, 1.0)
    spec = program(deep)
    assert read_program(print_program(spec)) == spec
    shared = make.dot(Q, K)
    for _ in range(60):
        shared = apply("add", shared, shared)
    assert len(print_program(program(shared))) < 5_000
    assert len(expression(shared)) < 5_000
    assert len(repr(shared)) < 200


@pytest.mark.parametrize(
    "text", ["", "1 +", "1 2", "foo(1)", "dot(q k)", "(1", "i ? j", "%9", "sink", "dot(q, k", "i if j", "$a0[:"]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(Unreadable):
        read_expression(text, make.INPUTS.values())


@pytest.mark.parametrize(
    ("was", "now"), [("mask ", "musk "), ("score  %0\n", ""), ("group  h // (H // G)\n", ""), ("sink:", "sink")]
)
def test_what_is_no_program(was: str, now: str) -> None:
    assert was in GOLDEN
    with pytest.raises(Unreadable):
        read_program(GOLDEN.replace(was, now, 1))


def test_copies_are_the_same_node() -> None:
    node = make.softmax(make.dot(Q, K))
    assert copy.deepcopy(node) is node
    assert pickle.loads(pickle.dumps(node)) is node
