"""Walking, folding, setting head widths, and the verifier between passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import strategies as make
from hypothesis import given, settings
from strategies import I, J, K, M, N, Q, V, both, program

from attnc.grammar.source import Source, Span
from attnc.ir.build import IllTyped, apply, branch_output, dot, literal, param, read, size, slice_, state, token
from attnc.ir.fold import fold
from attnc.ir.nodes import Apply, Axes, Input, Kind, Literal, Node, Reduce, Size
from attnc.ir.program import Body, Program
from attnc.ir.specialize import nearest_span, specialize
from attnc.ir.traverse import contains, postorder, rewrite, substitute
from attnc.ir.verify import Level, Malformed, verify, verify_program


def test_postorder_gives_children_first_and_each_node_once() -> None:
    spec = program()
    nodes = list(postorder(spec.body.output, spec.body.score))
    assert len(nodes) == len({*nodes})
    place = {node: number for number, node in enumerate(nodes)}
    assert all(place[child] < place[node] for node in nodes for child in node.children)
    assert list(postorder(apply("sub", I, J))) == [I, J, apply("sub", I, J)]


def test_walks_are_not_bounded_by_the_stack() -> None:
    deep: Node = dot(Q, K)
    for _ in range(5000):
        deep = both("add", deep, 1.0)
    assert rewrite(deep, lambda node: node) is deep
    assert contains(deep, lambda node: node is Q)
    lower = substitute(deep, {dot(Q, K): literal(0.0)})
    assert lower.axes == frozenset()
    assert isinstance(rewrite(lower, fold), Literal)


def test_substitution_does_not_search_what_it_put_in() -> None:
    assert substitute(both("add", I, J), {I: both("add", I, 1)}) is both("add", both("add", I, 1), J)


def test_rewriting_infers_kinds_again() -> None:
    node = both("add", both("add", I, 1), J)
    changed = substitute(node, {I: literal(0.5)})
    assert changed.kind is Kind.REAL
    assert changed is both("add", both("add", 0.5, 1), J)
    with pytest.raises(IllTyped) as caught:
        substitute(both("mod", both("floordiv", I, 2), 3), {I: literal(0.5)})
    assert caught.value.node is both("floordiv", I, 2)


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (both("floordiv", -7, 2), -4),
        (both("mod", -7, 2), 1),
        (both("mod", -7.5, 2.0), 0.5),
        (both("add", 2, 3), 5),
        (both("where", True, 1, 2), 1),
        (both("lt", 1, 2), True),
        (both("shl", 1, 5), 32),
        (both("floor", -0.5), -1),
        (both("sign", -0.5), -1.0),
        (both("sqrt", 64.0), 8.0),
        (both("sigmoid", 0.0), 0.5),
    ],
)
def test_folding(node: Node, value: float | bool) -> None:
    assert fold(node) is literal(value)


@pytest.mark.parametrize(
    "node",
    [
        both("div", 1.0, 0.0),
        both("floordiv", 1, 0),
        both("log", -1.0),
        both("exp", 1000.0),
        both("neg", 0.0),
        both("mul", 2**62, 4),
        both("shl", 1, 100),
        both("add", N, 1),
    ],
)
def test_what_does_not_fold(node: Node) -> None:
    assert fold(node) is node


def test_specialize_sets_widths_everywhere() -> None:
    spec = program(make.tapa(), weight=make.softmax(make.tapa()), gate=make.reading("gate"))
    special = specialize(spec, 64, 32)
    verify_program(special, Level.SPECIALIZED)
    assert special.widths == (64, 32)
    assert special.body.output.width is literal(32)
    assert special.inputs[0].dims[-1] is literal(32)
    slices = [node for node in postorder(special.body.score) if node.is_vector and node.children]
    assert {node.width for node in slices} == {literal(32)}
    assert not contains(special.body.output, lambda node: isinstance(node, Size) and node.name in "DE")


@settings(max_examples=30)
@given(make.programs())
def test_programs_are_well_formed_at_every_level(spec: Program) -> None:
    verify_program(spec)
    verify_program(specialize(spec, 8, 6), Level.SPECIALIZED)


def test_widths_that_do_not_fit_are_found_where_they_stand() -> None:
    source = Source("spec.attn", "dot(q, k[0:32])")
    score = dot(Q, slice_(K, literal(0), literal(32)))
    spec = replace(program(score), spans={score: Span(source, 0, 15)})
    assert specialize(spec, 32, 64).spans[specialize(spec, 32, 64).body.score].source is source
    with pytest.raises(IllTyped, match="width 64 and 32") as caught:
        specialize(spec, 64, 64)
    assert caught.value.span == Span(source, 0, 15)


def test_the_nearest_span_is_around_the_node() -> None:
    source = Source("spec.attn", "softmax(dot(q, k))")
    spec = program()
    spans = {spec.body.weight: Span(source, 0, 18)}
    assert nearest_span(replace(spec, spans=spans), spec.body.score) == Span(source, 0, 18)
    assert nearest_span(spec, spec.body.score) is None


def _wrong(node: Apply, kind: Kind | None = None, axes: Axes | None = None, width: Node | None = None) -> Node:
    return Apply(kind or node.kind, node.axes if axes is None else axes, width or node.width, node.op, node.args)


SUM = both("add", I, J)
assert isinstance(SUM, Apply)


@pytest.mark.parametrize(
    "node",
    [
        _wrong(SUM, kind=Kind.REAL),
        _wrong(SUM, axes=frozenset("i")),
        _wrong(SUM, width=literal(4)),
        Apply(Kind.REAL, frozenset(), None, "exp", (I,)),
        Apply(Kind.REAL, frozenset("i"), None, "tanh", (both("real", I),) * 2),
        Reduce(Kind.REAL, frozenset("bhi"), None, "sum", "d", literal(1.0)),
        Literal(Kind.INT, frozenset(), None, 1.5),
        both("neg", read(Input("matrix", Kind.REAL, (N, M)), (None, None))),
    ],
)
def test_ill_typed_nodes_are_found(node: Node) -> None:
    with pytest.raises(Malformed):
        verify([node], Level.CHECKED)


@pytest.mark.parametrize(
    ("node", "illegal"),
    [
        (state("m0"), {Level.CHECKED, Level.SPECIALIZED}),
        (size("D"), {Level.SPECIALIZED, Level.PLAN}),
        (token("q"), {Level.SPECIALIZED, Level.PLAN}),
        (make.rowmax(literal(1.0)), {Level.PLAN}),
        (make.reduce_width("sum", token("q", literal(8))), set()),
    ],
)
def test_what_is_legal_at_each_level(node: Node, illegal: set[Level]) -> None:
    for level in Level:
        if level in illegal:
            with pytest.raises(Malformed):
                verify([node], level)
        else:
            verify([node], level)


def _with(**clauses: Node) -> Program:
    spec = program()
    return replace(spec, body=replace(spec.body, **clauses))


@pytest.mark.parametrize(
    "spec",
    [
        _with(mask=I),
        _with(mask=both("lt", make.rowsum(literal(1.0)), 2.0)),
        _with(score=Q),
        _with(weight=both("le", I, J)),
        _with(value=literal(1.0)),
        _with(output=V),
        _with(score=make.reading("weigh")),
        _with(score=param("temperature", Kind.REAL)),
        _with(score=both("real", size("T"))),
        _with(output=branch_output(("near",), size("E"))),
        replace(program(), group=I),
        replace(program(), widths=(8, 8)),
        replace(program(), inputs=(Input("q", Kind.REAL, ()),)),
        replace(program(), inputs=(make.INPUTS["doc"],) * 2),
        replace(program(), inputs=(Input("x", Kind.REAL, (I,)),)),
    ],
)
def test_malformed_programs_are_found(spec: Program) -> None:
    verify_program(program())
    with pytest.raises(Malformed):
        verify_program(spec)


def test_roots_and_map_reach_every_expression() -> None:
    spec = replace(program(gate=make.reading("gate")), space=(("t", size("T")),))
    seen: list[Node] = []
    assert spec.map(lambda node: (seen.append(node), node)[1]) == spec
    assert seen.count(spec.body.weight) == 1
    assert {*seen} == {node for _, node in spec.roots()}
    assert isinstance(spec.body, Body)
