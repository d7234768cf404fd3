"""The passes over the keys: every reduction becomes a statistic or an accumulator of one of them.

The expressions of a row are first written in *primitive* reductions, from which all row factors are gone
(:mod:`attnc.analyse.terms`). A primitive can be had in a pass if every statistic it needs is known from an earlier
one, or is a maximum that may still run (:mod:`attnc.analyse.shift`). If all can, that is the last pass; otherwise the
pass finds what the others wait for, and everything is written anew with what is known by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from attnc.analyse.algebra import (
    Sign,
    addends,
    cancel,
    has_statistic,
    is_reduction,
    is_row,
    reductions,
    sign_of,
    signed_sum,
)
from attnc.analyse.shift import Shift, find_shift
from attnc.analyse.terms import Term, is_open, merge, split
from attnc.ir.build import apply, reduce_keys, state
from attnc.ir.nodes import Apply, Dot, Node, Reduce
from attnc.ir.printer import expression
from attnc.ir.traverse import postorder, rewrite, substitute
from attnc.plan import Accumulator, NotLowerable, Pass, Statistic


@dataclass(frozen=True, slots=True)
class Streamed:
    """Row expressions without reductions, and the passes that their states come from."""

    roots: tuple[Node, ...]
    passes: tuple[Pass, ...]
    notes: tuple[str, ...]


def stream(*roots: Node, keep_detach: bool = False) -> Streamed:
    """Finds the passes that the row expressions ``roots`` need.

    ``detach`` says something about derivatives alone, so it is dropped unless it is to be kept for those.

    Raises:
        NotLowerable: a reduction that cannot be a statistic or an accumulator.
    """
    return _Streaming(roots, keep_detach).run()


@dataclass(slots=True)
class _Streaming:
    roots: Sequence[Node]
    keep_detach: bool
    passes: list[Pass] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: dict[Node, Sign] = field(default_factory=dict)
    resolved: dict[Node, Node] = field(default_factory=dict)
    states: dict[Node, Node] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def run(self) -> Streamed:
        limit = sum(1 for node in postorder(*self.roots) if isinstance(node, Reduce)) + 1
        while len(self.passes) <= limit:
            roots, written = self._write()
            primitives = _reachable(roots)
            shifts = {p: self._shift(p) for p in primitives}
            ready = _ready(shifts)
            waiting = [p for p in primitives if p not in ready]
            wanted = self._wanted(waiting, ready, shifts) if waiting else list(primitives)
            states = self._emit(_with_maxima(wanted, shifts), shifts)
            for reduction, row in written.items():
                row = substitute(row, states)
                if not is_open(row):
                    self.resolved[reduction] = row
            if not waiting:
                final = tuple(substitute(root, states) for root in roots)
                return Streamed(final, tuple(self.passes), tuple(self.notes))
            self._note(waiting, shifts, states)
        raise AssertionError("the streaming analysis found no end")

    def _write(self) -> tuple[tuple[Node, ...], dict[Node, Node]]:
        """The roots, and every reduction under them, as row expressions of primitive reductions and states."""
        memo = dict(self.resolved)
        roots = tuple(_cancelled(rewrite(root, self._rewrite, memo)) for root in self.roots)
        return roots, {node: row for node, row in memo.items() if is_reduction(node)}

    def _rewrite(self, node: Node) -> Node:
        match node:
            case Apply(op="detach", args=(a,)) if not self.keep_detach:
                return a
            case Reduce(op="max", over="j", x=x):
                if node.is_vector:
                    raise NotLowerable("`rowmax` of a vector cannot be streamed", node)
                return self._maximum(x)
            case Reduce(op="sum", over="j", x=x):
                return self._sum(x)
            case _:
                return node

    def _maximum(self, x: Node) -> Node:
        """``max_j (s + r)`` is ``max_j(s) + r``, and ``max_j (s * f)`` is ``max_j(s) * f`` for a statistic f >= 0."""
        if is_row(x):
            return x
        match x:
            case Apply(op="mul", args=(factor, y)) if self._leaves(factor):
                return apply("mul", factor, self._maximum(y))
            case Apply(op="mul", args=(y, factor)) if self._leaves(factor):
                return apply("mul", self._maximum(y), factor)
            case Apply(op="div", args=(y, factor)) if self._leaves(factor):
                return apply("div", self._maximum(y), factor)
        parts = addends(x)
        rows = [part for part in parts if is_row(part[1])]
        if not rows:
            return self._known(reduce_keys("max", x))
        inner = self._maximum(signed_sum(part for part in parts if not is_row(part[1])))
        return signed_sum([(1, inner), *rows])

    def _known(self, primitive: Node) -> Node:
        return self.states.get(primitive, primitive)

    def _leaves(self, factor: Node) -> bool:
        return is_row(factor) and has_statistic(factor) and sign_of(factor, self.known) is not Sign.UNKNOWN

    def _sum(self, x: Node) -> Node:
        terms = split(x, self.known)
        shifts = {term.pair: self._shift_of(term.pair).expression for term in terms}
        factors: dict[Node, list[Term]] = {}
        for term in merge(terms, shifts):
            summand = term.pair if term.value is None else apply("mul", term.pair, term.value)
            factors.setdefault(self._known(reduce_keys("sum", summand)), []).append(term.without_common(self.known))
        return signed_sum(_applied(primitive, terms) for primitive, terms in factors.items())

    def _shift_of(self, pair: Node) -> Shift:
        maxima = frozenset(found for found in reductions(pair) if found.op == "max")
        return find_shift(pair, maxima, self.known)

    def _shift(self, primitive: Reduce) -> Shift:
        """The shift of a primitive, and everything that must be known before its pass."""
        inside = frozenset(reductions(primitive.x))
        if primitive.op == "max":
            return Shift(None, inside)
        found = self._shift_of(_pair_and_value(primitive)[0])
        sums = frozenset(node for node in inside if node.op == "sum")
        return Shift(found.expression, found.final | sums)

    def _wanted(self, waiting: Iterable[Reduce], ready: frozenset[Reduce], shifts: dict[Reduce, Shift]) -> list[Reduce]:
        """What the waiting primitives need and can be had now, and maxima that cost no further dot product."""
        needed = {node for primitive in waiting for node in shifts[primitive].final}
        wanted = [p for p in shifts if p in needed and p in ready]
        dots = _dots(wanted)
        return [p for p in shifts if p in wanted or (p.op == "max" and p in ready and _dots([p]) <= dots)]

    def _emit(self, primitives: Sequence[Reduce], shifts: dict[Reduce, Shift]) -> dict[Node, Node]:
        """Makes the next pass; returns the state of each primitive."""
        states: dict[Node, Node] = {}
        ordered = sorted(primitives, key=lambda p: ("max", "sum").index(p.op))
        for primitive in ordered:
            letter = "a" if primitive.is_vector else "m" if primitive.op == "max" else "l"
            number = self.names.get(letter, 0)
            self.names[letter] = number + 1
            made = state(f"{letter}{number}", primitive.width)
            self.known[made] = sign_of(primitive, self.known)
            states[primitive] = made
        statistics: list[Statistic] = []
        accumulators: list[Accumulator] = []
        for primitive in ordered:
            name = states[primitive].name  # type: ignore[attr-defined]
            term, value = _pair_and_value(primitive)
            term = substitute(term, states)
            shift = shifts[primitive].expression
            shift = None if shift is None else substitute(shift, states)
            if value is None:
                statistics.append(Statistic(name, primitive.op, term, shift))
            elif has_statistic(value):
                raise NotLowerable("the value of an attention cannot depend on a statistic of the row", value)
            else:
                accumulators.append(Accumulator(name, term, value, shift))
        self.passes.append(Pass(tuple(statistics), tuple(accumulators)))
        for primitive in ordered:
            self.states[reduce_keys(primitive.op, substitute(primitive.x, states))] = states[primitive]
        return states

    def _note(self, waiting: Sequence[Reduce], shifts: dict[Reduce, Shift], states: dict[Node, Node]) -> None:
        names = {node: made.name for node, made in states.items()}  # type: ignore[attr-defined]
        for primitive in waiting:
            needs = [name for node, name in names.items() if node in shifts[primitive].final]
            if not needs:
                continue
            term = expression(_pair_and_value(primitive)[0], names)
            note = f"`{term}` needs the final {' and '.join(needs)}, so these take a pass of their own"
            if note not in self.notes:
                self.notes.append(note)


def _cancelled(row: Node) -> Node:
    if row.is_vector:
        return row
    parts = addends(row)
    kept = cancel(parts)
    return row if len(kept) == len(parts) else signed_sum(kept)


def _applied(primitive: Node, terms: Sequence[Term]) -> tuple[int, Node]:
    """The row factors of one primitive, put together and applied to it."""
    if len(terms) == 1:
        return terms[0].sign, terms[0].row(primitive)
    return 1, apply("mul", signed_sum((term.sign, term.row()) for term in terms), primitive)


def _pair_and_value(primitive: Reduce) -> tuple[Node, Node | None]:
    """What is summed, as the scalar of the pair and the vector of the key."""
    x = primitive.x
    if not primitive.is_vector:
        return x, None
    if isinstance(x, Apply) and x.op == "mul" and not x.args[0].is_vector:
        return x.args[0], x.args[1]
    raise AssertionError("a sum of vectors is a term times a value")


def _reachable(rows: Iterable[Node]) -> tuple[Reduce, ...]:
    """The primitives under some rows and under each other, what is needed before what needs it."""
    return tuple(node for node in postorder(*rows) if isinstance(node, Reduce) and node.over == "j")


def _ready(shifts: dict[Reduce, Shift]) -> frozenset[Reduce]:
    """The primitives that wait for nothing; ``shifts`` has what is needed before what needs it."""
    ready: set[Reduce] = set()
    for primitive, shift in shifts.items():
        if not shift.final and ready.issuperset(reductions(primitive.x)):
            ready.add(primitive)
    return frozenset(ready)


def _with_maxima(primitives: Iterable[Reduce], shifts: dict[Reduce, Shift]) -> list[Reduce]:
    """The primitives and the running maxima they need, in the order of ``shifts``."""
    wanted = set(primitives)
    for primitive in primitives:
        wanted.update(reductions(primitive.x))
    return [p for p in shifts if p in wanted]


def _dots(primitives: Iterable[Reduce]) -> set[Node]:
    return {node for node in postorder(*primitives) if isinstance(node, Dot)}
