"""The backward of a plan, by reverse mode: the row epilogue once a row, then the pair terms, pass by pass backwards.

With ``o_i = F(states_i)`` and states ``sum_j term(i, j) value_j``, the cotangents of the states are row expressions of
``d_out`` (for softmax, the ``D`` of FlashAttention-2, arXiv 2307.08691, algorithm 2). Those of the pair terms follow
from them and go on to dot products, to what depends on the row or on the key alone, and to what is read a pair. Sums
of these over the keys or over the rows are walks, of the same form as the forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal as OneOf
from typing import TypeAlias

from attnc.analyse.algebra import Sign, sign_of
from attnc.analyse.gradient.backward import (
    Backward,
    Contribution,
    Scatter,
    Step,
    Sum,
    Walk,
    map_step,
    read_by,
    results_of,
)
from attnc.analyse.gradient.invariance import is_invariant
from attnc.analyse.gradient.reverse import NotDifferentiable, reverse
from attnc.analyse.gradient.rules import neg, over, plus, times
from attnc.analyse.hoist import is_plain, pull_scalars
from attnc.analyse.shift import find_shift
from attnc.ir.build import dot, index, read, reduce_keys, size, state
from attnc.ir.nodes import Apply, Dot, Input, Kind, Node, Param, Read, Slice, State, Token
from attnc.ir.printer import expression
from attnc.ir.traverse import postorder, substitute
from attnc.plan import Pass, Plan, Statistic, TokenMap

Dims: TypeAlias = tuple[Node, ...]

ROW = (size("B"), size("H"), size("M"))
KEY = (size("B"), size("H"), size("N"))
AT_ROW = (index("b"), index("h"), index("row"))
AT_KEY = (index("b"), index("h"), index("j"))
HEADS = frozenset(index(name) for name in "bhg")
D_LSE = Input("d_lse", Kind.REAL, ROW)


def derive(plan: Plan, lse: bool = False) -> Backward:
    """The backward of a plan whose token work is not hoisted yet; with ``lse`` also from a cotangent ``d_lse``.

    Raises:
        NotDifferentiable: the result depends on a row maximum otherwise than as a shift it is invariant to, or a
            value is a function of the pair. ``node`` is what stands in the way.
    """
    return _Derivation(plan, lse, _constant_shifts(plan, lse)).run()


@dataclass(slots=True)
class _Derivation:
    plan: Plan
    lse: bool
    constants: frozenset[Node]
    rows: dict[Node, Node] = field(default_factory=dict)
    """Cotangents of states, tokens, reads and parameters that row expressions depend on, over ``b h i``."""
    keys: dict[Node, Node] = field(default_factory=dict)
    """Cotangents of key expressions, over ``b h j``."""
    steps: list[Step] = field(default_factory=list)
    contributions: list[Contribution] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)

    def run(self) -> Backward:
        output = self.plan.output
        seeds: dict[Node, Node] = {output: _at(Input("d_out", Kind.REAL, _dims(ROW, output.width)), AT_ROW)}
        if self.lse:
            assert self.plan.lse is not None
            seeds[self.plan.lse] = _at(D_LSE, AT_ROW)
        self._pull_rows(seeds)
        for step in reversed(self.plan.passes):
            self._pull_pass(step)
        self._finish("query", self.rows)
        self._finish("key", reverse(self.keys, self._is_source))
        return self._with_saved()

    def _is_source(self, node: Node) -> bool:
        return node in self.constants or isinstance(node, State | Read | Param) or is_plain(node)

    def _is_pair_leaf(self, node: Node) -> bool:
        return isinstance(node, Dot | Read) or not {"i", "j"} <= node.axes

    def _matters(self, leaf: Node) -> bool:
        """Whether anything that has a gradient is part of ``leaf``."""
        below = postorder(leaf, stop=self.constants)
        return any(self._is_source(node) and node.kind is Kind.REAL and node not in self.constants for node in below)

    def _pull_rows(self, seeds: Mapping[Node, Node]) -> None:
        for leaf, cotangent in reverse(seeds, self._is_source).items():
            if leaf not in self.constants:
                _add(self.rows, leaf, cotangent)

    def _pull_pass(self, step: Pass) -> None:
        """From the states of a pass to dot products, rows, keys and reads by pair; adds the walks that sum them."""
        over_keys, over_rows = _Walking(self, "keys"), _Walking(self, "rows")
        for leaf, cotangent in reverse(self._seeds(step, over_rows), self._is_pair_leaf).items():
            match leaf:
                case Dot(a=a, b=b):
                    query, key = (a, b) if "j" not in a.axes else (b, a)
                    if "j" in query.axes or "i" in key.axes:
                        raise NotDifferentiable("no gradient is derived for a vector that varies by pair", leaf)
                    over_keys.sum(query, cotangent, key)
                    over_rows.sum(key, cotangent, query)
                case Read() if {"i", "j"} <= leaf.axes:
                    self._scatter(leaf, cotangent)
                case _ if "i" in leaf.axes:
                    over_keys.sum(leaf, cotangent, None)
                case _:  # of a key; or of a head alone, where walks over the keys are left with vectors only
                    over_rows.sum(leaf, cotangent, None)
        for walking in (over_keys, over_rows):
            if walking.sums:
                self.steps.append(Walk(walking.over, tuple(walking.sums)))
        self._pull_rows(over_keys.seeds)
        for leaf, cotangent in over_rows.seeds.items():
            _add(self.keys, leaf, cotangent)

    def _seeds(self, step: Pass, over_rows: _Walking) -> dict[Node, Node]:
        """The cotangents of the terms of a pass, from those of its states."""
        seeds: dict[Node, Node] = {}
        for statistic in step.statistics:
            cotangent = self.rows.pop(state(statistic.name), None)
            if cotangent is not None and statistic.op == "max":
                raise _through_maximum(statistic.term)
            if cotangent is not None:
                _add(seeds, statistic.term, cotangent)
        for accumulator in step.accumulators:
            cotangent = self.rows.pop(state(accumulator.name, accumulator.value.width), None)
            if cotangent is None:
                continue
            if "i" in accumulator.value.axes:
                raise NotDifferentiable("no gradient is derived for a value that varies by pair", accumulator.value)
            _add(seeds, accumulator.term, pull_scalars(dot(cotangent, accumulator.value)))
            over_rows.sum(accumulator.value, accumulator.term, cotangent)
        return seeds

    def _scatter(self, leaf: Read, cotangent: Node) -> None:
        dims: list[Node] = [size("B"), size("H")]
        indices: list[Node] = []
        for dim, at in zip(leaf.input.dims, leaf.indices, strict=True):
            if at is not None and at not in HEADS:
                dims.append(dim)
                indices.append(at)
        result = Input(self.fresh(f"d_{leaf.input.name}_"), Kind.REAL, tuple(dims))
        self.steps.append(Scatter(result, cotangent, tuple(indices)))
        self.contributions.append(Contribution(leaf.input.name, "pair", leaf, result))

    def fresh(self, stem: str) -> str:
        self.names[stem] += 1
        return f"{stem}{self.names[stem] - 1}"

    def _finish(self, level: OneOf["query", "key"], cotangents: dict[Node, Node]) -> None:
        """Token maps for what tokens, reads and parameters get from the rows or from the keys."""
        dims = ROW if level == "query" else KEY
        for leaf, cotangent in cotangents.items():
            match leaf:
                case Token(name=name) | Slice(x=Token(name=name)) | Read(input=Input(name=name)) | Param(name=name):
                    result = Input(self.fresh(f"d_{name}_"), Kind.REAL, _dims(dims, cotangent.width))
                    self.steps.append(TokenMap(result, level, "H", cotangent))
                    self.contributions.append(Contribution(name, level, leaf, result))
                case State():
                    raise _through_maximum(self.plan.output)

    def _with_saved(self) -> Backward:
        """The backward with the output and every final state read from where the forward saved it."""
        out = Input("out", Kind.REAL, _dims(ROW, self.plan.output.width))
        d_out = replace(out, name="d_out")
        kept: dict[Node, Node] = {self.plan.output: _at(out, AT_ROW)}
        states: dict[str, Input] = {}

        def reading(root: Node) -> Node:
            for node in postorder(root, stop=kept):
                if isinstance(node, State) and node not in kept:
                    states[node.name] = Input(f"saved_{node.name}", Kind.REAL, _dims(ROW, node.width))
                    kept[node] = _at(states[node.name], AT_ROW)
            return substitute(root, kept)

        steps = tuple(map_step(step, reading) for step in self.steps)
        used = {name for step in steps for name in read_by(step)}
        reads = tuple(source for source in (d_out, D_LSE, out, *states.values()) if source.name in used)
        constants = tuple(sorted(self.constants, key=expression))
        taken = {source.name for source in (*reads, *(r for step in steps for r in results_of(step)))}
        for source in self.plan.program.inputs:
            if source.name in taken:
                raise NotDifferentiable(f"the backward uses the name `{source.name}` itself", self.plan.output)
        return Backward(self.plan, tuple(states), reads, steps, tuple(self.contributions), constants)


@dataclass(slots=True)
class _Walking:
    """A walk in the making. ``seeds`` are the cotangents that its results are, ``leaves`` what these are of."""

    derivation: _Derivation
    over: OneOf["keys", "rows"]
    sums: list[Sum] = field(default_factory=list)
    leaves: dict[Input, Node] = field(default_factory=dict)
    seeds: dict[Node, Node] = field(default_factory=dict)

    def sum(self, leaf: Node, term: Node, value: Node | None) -> None:
        """Adds the cotangent of ``leaf``: the sum of ``term`` (times ``value``), if any gradient hangs on it.

        Sums of one leaf that multiply one value are one.
        """
        if not self.derivation._matters(leaf):
            return
        dims, at, stem = (ROW, AT_ROW, "row_sum") if self.over == "keys" else (KEY, AT_KEY, "key_sum")
        if value is not None:
            term, value = _scalars_out(term, value)
            for place, one in enumerate(self.sums):
                if one.value is value and self.leaves[one.result] is leaf:
                    self.sums[place] = replace(one, term=plus(one.term, term))
                    return
        result = Input(self.derivation.fresh(stem), Kind.REAL, _dims(dims, leaf.width))
        self.sums.append(Sum(result, term, value))
        self.leaves[result] = leaf
        _add(self.seeds, leaf, _at(result, at))


def _constant_shifts(plan: Plan, lse: bool) -> frozenset[Node]:
    """The shifts that the output (and the log-sum-exp) is invariant to.

    Their maxima may run in the pass that uses them or before.
    """
    maxima: set[Node] = set()
    known: dict[Node, Sign] = {}
    shifts: dict[str, Node] = {}
    for step in plan.passes:
        for entry in step.parts:
            if isinstance(entry, Statistic):
                own = state(entry.name)
                known[own] = sign_of(reduce_keys(entry.op, entry.term), known)
                if entry.op == "max":
                    maxima.add(own)
                    continue
            shift = find_shift(entry.term, frozenset(maxima), known).expression
            if shift is not None:
                shifts[entry.name] = shift
    roots = [plan.output, *([plan.lse] if lse and plan.lse is not None else [])]
    return frozenset(c for c in shifts.values() if all(is_invariant(root, c, shifts) for root in roots))


def _through_maximum(node: Node) -> NotDifferentiable:
    return NotDifferentiable("the result depends on a row maximum otherwise than as the shift of a softmax", node)


def _scalars_out(term: Node, value: Node) -> tuple[Node, Node]:
    """``sum_j term * (value * c)`` as ``sum_j (term * c) * value``."""
    while True:
        match value:
            case Apply(op="mul", args=(factor, vector)) if not factor.is_vector:
                term, value = times(term, factor), vector
            case Apply(op="mul", args=(vector, factor)) if not factor.is_vector:
                term, value = times(term, factor), vector
            case Apply(op="div", args=(vector, divisor)) if vector.is_vector and not divisor.is_vector:
                term, value = over(term, divisor), vector
            case Apply(op="neg", args=(vector,)):
                term, value = neg(term), vector
            case _:
                return term, value


def _add(into: dict[Node, Node], node: Node, cotangent: Node) -> None:
    into[node] = plus(into[node], cotangent) if node in into else cotangent


def _dims(dims: Dims, width: Node | None) -> Dims:
    return dims if width is None else (*dims, width)


def _at(source: Input, indices: tuple[Node, ...]) -> Read:
    """The element, or the open row, of ``source`` at ``indices``."""
    return read(source, indices if len(source.dims) == len(indices) else (*indices, None))
