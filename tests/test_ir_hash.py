"""The canonical hash: the same for the same meaning, different for different meanings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

import pytest
import strategies as make
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from respell import mutations, rename, respell
from strategies import I, J, both, program

from attnc.check import check
from attnc.grammar.source import Source
from attnc.ir.build import IllTyped, apply, index, literal, read, size
from attnc.ir.canonical import canonicalize
from attnc.ir.hash import program_hash
from attnc.ir.nodes import Input, Kind, Node
from attnc.ir.printer import print_program
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.ir.verify import Level, verify_program
from attnc.reference import evaluate

CAUSAL = both("le", J, I)
BIAS = make.reading("bias")
SEEDS = st.integers(0, 10_000).map(Random)


@settings(max_examples=40)
@given(make.programs(), SEEDS)
def test_names_and_spelling_do_not_matter(spec: Program, random: Random) -> None:
    other = rename(respell(spec, random), random)
    verify_program(other)
    assert program_hash(other) == program_hash(spec), canonicalize(other).text + canonicalize(spec).text


@settings(max_examples=40)
@given(make.programs(), st.data(), make.sizes(most=6, empty=False))
def test_what_hashes_alike_computes_alike(spec: Program, data: st.DataObject, at: dict[str, int]) -> None:
    changed = data.draw(st.sampled_from(mutations(spec)))
    try:
        other = changed()
    except IllTyped:
        return
    if program_hash(other) == program_hash(spec):
        q, k, v, inputs = make.tensors(spec, at)
        torch.testing.assert_close(evaluate(other, q, k, v, inputs), evaluate(spec, q, k, v, inputs), equal_nan=True)


@settings(max_examples=20)
@given(make.programs())
def test_canonical_form_is_a_program_and_its_own_form(spec: Program) -> None:
    form = canonicalize(spec)
    verify_program(form.program)
    assert sorted(form.inputs) == sorted(x.name for x in spec.inputs)
    assert canonicalize(form.program).text == form.text


@settings(max_examples=20)
@given(make.programs(), make.sizes(most=6))
def test_canonical_form_computes_the_same(spec: Program, at: dict[str, int]) -> None:
    form = canonicalize(specialize(spec, at["D"], at["E"]))
    verify_program(form.program, Level.SPECIALIZED)
    q, k, v, inputs = make.tensors(spec, at)
    renamed = {new.name: inputs[old] for new, old in zip(form.program.inputs, form.inputs, strict=True)}
    torch.testing.assert_close(evaluate(form.program, q, k, v, renamed), evaluate(spec, q, k, v, inputs))


RICH = program(
    score=make.softcap(apply("add", make.scaled(make.Q, make.K), make.reading("table")), 5.0),
    mask=apply("and", CAUSAL, apply("or", both("lt", apply("sub", I, J), 4), make.reading("keep"))),
    weight=make.softmax(make.scaled(make.Q, make.K), make.reading("sink")),
    gate=apply("sigmoid", make.reading("gate")),
)


def test_every_single_change_counts() -> None:
    changed = [change() for change in mutations(RICH)]
    hashes = {program_hash(spec) for spec in (RICH, *changed)}
    assert len(changed) > 20
    assert program_hash(RICH) not in {program_hash(spec) for spec in changed}
    assert len(hashes) > 0.8 * len(changed)


@pytest.mark.parametrize("clause", ["mask", "score", "weight", "value", "output"])
def test_every_clause_counts(clause: str) -> None:
    body = replace(RICH.body, **{clause: _other(getattr(RICH.body, clause))})
    assert program_hash(replace(RICH, body=body)) != program_hash(RICH)


def _other(node: Node) -> Node:
    return apply("not", node) if node.kind is Kind.BOOL else both("mul", node, 1.5)


def test_declarations_count() -> None:
    spec = program(score=apply("mul", make.scaled(make.Q, make.K), make.parameter("temperature")))
    hashes = {
        program_hash(spec),
        program_hash(replace(spec, parameters=(replace(spec.parameters[0], default=2.0),))),
        program_hash(replace(spec, space=(("t", size("T")),))),
        program_hash(replace(spec, space=(("t", literal(4)),))),
        program_hash(replace(spec, group=literal(0))),
        program_hash(replace(spec, inputs=(make.INPUTS["doc"],))),
        program_hash(specialize(spec, 8, 8)),
        program_hash(specialize(spec, 8, 4)),
    }
    assert len(hashes) == 8


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CAUSAL, both("ge", I, J)),
        (both("lt", J, I), both("le", J, both("sub", I, 1))),
        (both("lt", apply("sub", I, J), 4), both("gt", J, both("sub", I, 4))),
        (both("eq", apply("sub", I, J), 0), apply("eq", J, I)),
        (apply("not", apply("and", CAUSAL, both("ne", I, 3))), apply("or", both("lt", I, J), both("eq", 3, I))),
        (both("lt", apply("abs", apply("sub", I, J)), 2), both("lt", apply("abs", apply("sub", J, I)), 2)),
        (both("where", CAUSAL, True, False), both("where", both("gt", J, I), False, True)),
        (both("mod", I, 6), both("mod", both("add", both("mul", 2, I), both("neg", I)), 6)),
        (both("lt", both("mul", 4, I), 8 * 2), both("lt", both("mul", I, 4), 16)),
    ],
)
def test_equal_conditions(one: Node, other: Node) -> None:
    specs = [program(mask=x if x.kind is Kind.BOOL else both("eq", x, 0)) for x in (one, other)]
    assert program_hash(specs[0]) == program_hash(specs[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda s: both("div", s, 8.0), lambda s: both("mul", 0.125, s)),
        (lambda s: both("sub", s, both("neg", 1.5)), lambda s: both("add", 1.5, s)),
        (lambda s: both("mul", s, -2.0), lambda s: both("neg", both("mul", 2.0, s))),
        (lambda s: both("add", s, both("neg", BIAS)), lambda s: both("sub", s, BIAS)),
        (lambda s: both("sub", s, both("neg", BIAS)), lambda s: both("add", BIAS, s)),
        (lambda s: both("mul", both("neg", s), both("neg", BIAS)), lambda s: both("mul", s, BIAS)),
        (lambda s: both("abs", both("sub", s, BIAS)), lambda s: both("abs", both("neg", both("sub", BIAS, s)))),
        (lambda s: both("max", both("max", s, 0.0), 1.0), lambda s: both("max", 0.0, both("max", 1.0, s))),
    ],
)
def test_equal_reals(one, other) -> None:
    score = make.scaled(make.Q, make.K)
    assert program_hash(program(one(score))) == program_hash(program(other(score)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda s: both("div", s, 10.0), lambda s: both("mul", s, 0.1)),
        (lambda s: both("div", s, 2.0**120), lambda s: both("mul", s, 2.0**-120)),
        (lambda s: both("add", s, both("neg", BIAS)), lambda s: both("add", s, BIAS)),
        (lambda s: both("sub", s, both("neg", BIAS)), lambda s: both("sub", s, BIAS)),
        (lambda s: both("mul", both("neg", s), BIAS), lambda s: both("mul", s, BIAS)),
        (lambda s: both("neg", both("sub", s, BIAS)), lambda s: both("sub", s, BIAS)),
        (lambda s: both("add", s, 0.1), lambda s: both("sub", 0.1, s)),
        (lambda s: both("add", both("add", s, 0.1), I), lambda s: both("add", both("add", s, I), 0.1)),
    ],
)
def test_what_rounds_differently_differs(one, other) -> None:
    score = make.scaled(make.Q, make.K)
    assert program_hash(program(one(score))) != program_hash(program(other(score)))


TEXT = """
attention local {
    input slope: real[H]
    input doc: int[B, N]
    const W = 64
    mask causal and i - j < W and doc[b, j] == doc[b, i]
    score softcap(dot(q, k) * scale + slope[h] * (j - i), 50)
    normalize softmax(score)
}
"""

RETOLD = """
# The same, told otherwise.
attention somewhere {
    normalize exp(score - most) / rowsum(exp(score - most))
    let most = rowmax(score)
    input segment: int[B, N]   input decay: real[H]
    score capped(scale * dot(k, q) + decay[h] * -near)
    def capped(x) = tanh(x / 50) * 50
    let near = i - j
    mask (segment[b, i] == segment[b, j] and not (near > 63)) and i >= j
}
"""


def _hash(text: str) -> str:
    return program_hash(check(Source("spec.attn", text), None, {}, []))


def test_texts_of_one_meaning() -> None:
    assert _hash(TEXT) == _hash(RETOLD)
    spread = TEXT.replace(" ", "\n  ").replace("\n", "  # here\n")
    lines = TEXT.strip().splitlines()
    turned = "\n".join([lines[0], *reversed(lines[1:-1]), lines[-1]])
    assert _hash(TEXT) == _hash(spread) == _hash(turned)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("W = 64", "W = 65"),
        ("softcap(", "(1 + "),
        (", 50)", ", 51)"),
        ("causal and ", ""),
        ("doc[b, i]", "doc[b, 0]"),
        ("(j - i)", "abs(j - i)"),
        ("softmax(score)", "softmax1(score)"),
        ("* scale", ""),
        ("int[B, N]", "int[B, N + 1]"),
    ],
)
def test_texts_of_other_meanings(was: str, now: str) -> None:
    changed = TEXT.replace(was, now)
    if now == "(1 + ":
        changed = changed.replace(", 50)", ")")
    assert changed != TEXT
    assert _hash(changed) != _hash(TEXT)


def _inputs(*names: str) -> tuple[Input, ...]:
    return tuple(Input(name, Kind.REAL, (size("H"),)) for name in names)


def _by_head(source: Input, shift: int = 0) -> Node:
    return read(source, (both("mod", both("add", index("h"), shift), size("H")),))


def test_inputs_that_are_used_alike() -> None:
    """a + b and b + a are one program; a + 2 b and b + 2 a too, under exchanged names."""
    a, b = _inputs("a", "b")
    score = make.scaled(make.Q, make.K)

    def spec(x: Input, y: Input, times: float) -> Program:
        bias = apply("add", _by_head(x), both("mul", times, _by_head(y)))
        return program(apply("add", score, bias), extra=(a, b))

    even, odd = ([spec(x, y, times) for x, y in ((a, b), (b, a))] for times in (1.0, 2.0))
    assert program_hash(even[0]) == program_hash(even[1])
    assert program_hash(odd[0]) == program_hash(odd[1]) != program_hash(even[0])
    first, second = map(canonicalize, odd)
    assert first.inputs == tuple(reversed(second.inputs))


def _products(pairs: Iterable[tuple[int, int]], inputs: Sequence[Input]) -> Program:
    """A program in which the inputs are multiplied in these pairs, in this order."""
    score = make.scaled(make.Q, make.K)
    for one, other in pairs:
        score = apply("max", score, apply("mul", _by_head(inputs[one]), _by_head(inputs[other])))
    return program(score, extra=tuple(sorted(inputs, key=lambda x: x.name)))


RING = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0))
TWO_RINGS = ((0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 6), (6, 3))


@settings(max_examples=8)
@given(SEEDS, st.sampled_from([RING, TWO_RINGS]))
def test_inputs_that_only_their_partners_tell_apart(random: Random, pairs: tuple[tuple[int, int], ...]) -> None:
    """Every input is used alike, but not every order of them is the same program."""
    names = "abcdefg"[: len(pairs)]
    straight, shuffled = _inputs(*names), _inputs(*random.sample(names, len(names)))
    spec = _products(pairs, straight)
    assert program_hash(_products(random.sample(pairs, len(pairs)), shuffled)) == program_hash(spec)
    assert program_hash(_products((*pairs[:-1], (0, 3)), straight)) != program_hash(spec)


@settings(max_examples=20)
@given(SEEDS, st.lists(st.sampled_from([-2, -1, 1, 2]), min_size=2, max_size=4), st.integers(-1, 1))
def test_sums_of_inputs_that_are_used_alike(random: Random, times: list[int], constant: int) -> None:
    spans = [Input(name, Kind.INT, (size("H"),)) for name in "abcd"[: len(times)]]

    def spec(order: list[tuple[Input, int]], sign: int) -> Program:
        total: Node = literal(sign * constant)
        for source, count in order:
            total = apply("add", total, both("mul", _by_head(source), sign * count))
        mask = apply("and", both("eq", total, 0), both("lt", both("abs", total), 5))
        return program(mask=mask, extra=tuple(spans))

    order = list(zip(spans, times, strict=True))
    renamed = list(zip(random.sample(spans, len(spans)), times, strict=True))
    respelled = random.sample(renamed, len(renamed))
    assert program_hash(spec(respelled, random.choice([-1, 1]))) == program_hash(spec(order, 1))
    other = [(source, 3 * count) for source, count in order]
    assert program_hash(spec(other, 1)) != program_hash(spec(order, 1))


def test_many_inputs_used_alike_take_no_time() -> None:
    many = _inputs(*(f"x{number}" for number in range(12)))
    score = make.scaled(make.Q, make.K)
    for source in many:
        score = apply("max", score, _by_head(source))
    assert canonicalize(program(score, extra=many)).inputs


def test_long_chains_take_no_time() -> None:
    mask, score = CAUSAL, make.scaled(make.Q, make.K)
    for number in range(400):
        mask = apply("and", mask, both("ne", J, number))
        score = both("max", both("add", score, 0.1), apply("real", both("add", both("mul", I, number), J)))
    assert program_hash(program(score, apply("not", mask))) != program_hash(program(score, mask))


def test_the_hash_stays() -> None:
    """A pinned value: a change of it throws away every cache and every tuning result."""
    assert print_program(canonicalize(program()).program).startswith("program attention\n")
    assert program_hash(program(mask=CAUSAL)) == PINNED


PINNED = "8b79efea2f30ce200510f1712d6e6a317f829d3331597d1ad7930d9270aaa89d"
