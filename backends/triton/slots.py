"""The slot functions of a walk over the pairs, printed from a pass of a plan or from the sums of a gradient."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal as OneOf
from typing import TypeAlias

from attnc.analyse.mask.bands import split_bands
from attnc.analyse.visibility import Range
from attnc.backends.triton.environment import Environment, identifier
from attnc.backends.triton.forms import SHIFT
from attnc.backends.triton.printer import MINUS_INFINITY, Lane, Printer, Text, shifted
from attnc.backends.triton.rewrites import factored
from attnc.grammar.source import Span
from attnc.ir.build import state as state_node
from attnc.ir.nodes import Apply, Dot, Index, Input, Literal, Node, Read, State
from attnc.ir.traverse import contains, postorder
from attnc.plan import Pass

SEEN = "seen"
Over: TypeAlias = OneOf["keys", "rows"]
"""The inner axis of a walk."""


@dataclass(slots=True)
class Functions:
    """Slot functions of one kernel, by slot; they share ``env``, and their names begin with ``prefix``."""

    prefix: str
    env: Environment
    spans: Mapping[Node, Span]
    names: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def printer(self, known: Mapping[Node, Text] | None = None, taken: Sequence[str] = ()) -> Printer:
        return Printer(self.env, dict(known or {}), self.spans, taken=set(taken))

    def add(self, slot: str, arguments: str, printer: Printer, result: str, doc: str) -> None:
        """Write a function from the statements of ``printer``."""
        name = f"{self.prefix}_{slot.lower()}"
        body = "\n    ".join([*printer.lines, f"return {result}"])
        used = set(re.findall(r"[^\W\d]\w*", body))
        given = "".join(f"{it} = {what}\n    " for it, what in printer.bindings.items() if it in used)
        self.texts.append(f'@triton.jit\ndef {name}({arguments}):\n    """{doc}"""\n    {given}{body}\n')
        self.names[slot] = name


def tuple_of(texts: Sequence[str]) -> str:
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"


def add_group(functions: Functions, group: Node) -> None:
    printer = functions.printer()
    result = printer.scalar(group).text
    functions.add("GROUP", "b, h, env", printer, result, "The key/value head of query head `h`.")


def add_ranges(functions: Functions, ranges: Sequence[Range], over: Over) -> None:
    printer = functions.printer()
    fields = [node for one in ranges for node in (one.lo, one.hi, one.full_lo, one.full_hi)]
    printer.expect(*fields)
    texts = [text.text for text in printer.scalars(fields)]
    spans = [tuple_of(texts[at : at + 4]) for at in range(0, len(texts), 4)]
    ends = "i_lo, i_hi" if over == "keys" else "j_lo, j_hi"
    doc = "Keys that rows `i_lo..i_hi` see" if over == "keys" else "Row positions that see keys `j_lo..j_hi`"
    functions.add(
        "RANGES", f"b, h, g, {ends}, env", printer, tuple_of(spans),
        f"{doc}: [lo, hi) some, [full_lo, full_hi) all.",
    )  # fmt: skip


def add_tile_test(functions: Functions, slot: str, test: Node, doc: str) -> None:
    printer = functions.printer()
    printer.expect(test)
    result = str(bool(test.value)) if isinstance(test, Literal) else printer.scalar(test).text
    if isinstance(test, Literal):
        result = "i_lo <= i_hi" if test.value else "i_lo > i_hi"
    functions.add(slot, "b, h, g, i_lo, i_hi, j_lo, j_hi, env", printer, result, doc)


def outer_reads(over: Over, *roots: Node) -> tuple[Read, ...]:
    """Reads that do not depend on the inner token: done once a tile of the outer axis."""
    inner = "j" if over == "keys" else "i"
    found = [node for node in postorder(*roots) if isinstance(node, Read) and not node.is_vector]
    return tuple(node for node in found if inner not in node.axes)


def add_rows(functions: Functions, reads: Sequence[Read]) -> None:
    printer = functions.printer()
    texts = [text.text for text in printer.scalars(reads)]
    functions.add("ROWS", "b, h, g, row, i, j, env", printer, tuple_of(texts), "What is read once an outer token.")


def know_rows(printer: Printer, reads: Sequence[Read]) -> None:
    for at, read in enumerate(reads):
        name = identifier(f"{read.input.name}_row", printer.taken)
        printer.known[read] = Text(printer.given(name, f"rows[{at}]"))


def know_dots(printer: Printer, dots: Sequence[Dot]) -> None:
    for at, dot in enumerate(dots):
        printer.known[dot] = Text(printer.given(f"dot{at}", f"dots[{at}]"))


def add_visible(functions: Functions, mask: Node, dots: Sequence[Dot], reads: Sequence[Read]) -> None:
    printer = functions.printer()
    know_dots(printer, dots)
    know_rows(printer, reads)
    if isinstance(mask, Literal):
        result = "inside" if mask.value else "inside & (j < 0)"
    else:
        bands, rest = split_bands(mask)
        printer.expect(*(x for x, _ in bands), *rest)
        parts = [f"lib.within({printer.scalar(x).text}, {most})" for x, most in bands]
        result = " & ".join(["inside", *parts, *(printer.scalar(part).within(SHIFT) for part in rest)])
    functions.add(
        "VISIBLE", "inside, dots, rows, b, h, g, row, i, j, env", printer, result, "Which pairs take part."
    )  # fmt: skip


def spread(node: Node, text: Text) -> str:
    """A term as something that varies over the pairs of a tile, which reductions over the keys need."""
    return text.text if {"i", "j"} <= node.axes else f"lib.over_pair({text.text}, i, j)"


@dataclass(frozen=True, slots=True)
class StepResult:
    """Where the template finds what a pass makes: places in ``weights`` and ``factors`` by accumulator."""

    weights: tuple[int, ...]
    factors: tuple[int, ...]


def add_step(
    functions: Functions,
    step: Pass,
    seen: bool,
    dots: Sequence[Dot],
    reads: Sequence[Read],
    shifts: Container[str] = (),
) -> StepResult:
    """Write ``STEP``; ``seen`` asks for a state that tells rows which have seen a key.

    ``shifts`` names the maxima that no result depends on: :func:`attnc.analyse.invariance.free_maxima`.
    """
    names = [statistic.name for statistic in step.statistics]
    printer = functions.printer(taken=[*names, SEEN])
    printer.by_keys = True
    know_dots(printer, dots)
    know_rows(printer, reads)
    before = {name: printer.given(f"{name}_before", f"state[{at}]") for at, name in enumerate(names)}
    terms = [factored(s.term)[1] if s.op == "max" else s.term for s in step.statistics]
    printer.expect(*terms, *(a.term for a in step.accumulators))
    writer = _Step(printer, before, shifts)
    for statistic in step.statistics:
        if statistic.op == "max":
            writer.maximum(statistic.name, statistic.term)
        else:
            writer.sum(statistic.name, statistic.term, statistic.shift)
    if seen:
        last = printer.given(f"{SEEN}_before", f"state[{len(names)}]")
        number = "dot0" if dots else "lib.over_pair(0.0, i, j)"
        marks = f"tl.max(tl.where(visible, {number}, {MINUS_INFINITY}), 1) if MASKED else 0.0"
        printer.lines.append(f"{SEEN} = tl.maximum({last}, {marks})")
        names.append(SEEN)
    weights = [writer.weight(a.term, a.name) for a in step.accumulators]
    factors = [None if a.shift is None else writer.factor(a.shift) for a in step.accumulators]
    distinct = list(dict.fromkeys(weights))
    moved = list(dict.fromkeys(factor for factor in factors if factor is not None))
    result = f"{tuple_of(names)}, {tuple_of(moved)}, {tuple_of(distinct)}"
    functions.add(
        "STEP", "dots, visible, rows, b, h, g, row, i, j, state, env, MASKED: tl.constexpr", printer, result,
        "State, rescaling factors and weights after one tile of keys.",
    )  # fmt: skip
    return StepResult(
        tuple(distinct.index(weight) for weight in weights),
        tuple(-1 if factor is None else moved.index(factor) for factor in factors),
    )


@dataclass(slots=True)
class _Step:
    """The statements of a step so far.

    ``before`` names the states it began with, ``shifts`` the maxima that may lag; ``masked`` are the terms that are
    minus infinity at masked pairs by now.
    """

    printer: Printer
    before: dict[str, str]
    shifts: Container[str]
    masked: set[Node] = field(default_factory=set)
    moved: dict[Node, str] = field(default_factory=dict)
    weights: dict[Node, str] = field(default_factory=dict)

    def maximum(self, name: str, term: Node) -> None:
        factor, rest = factored(term)
        if factor <= 0:
            factor, rest = 1.0, term
        if rest not in self.masked:
            pair = self.printer.variable(f"{name}_term", Text(spread(rest, self.printer.scalar(rest))))
            self.printer.lines.append(
                f"if MASKED:\n        {pair.text} = tl.where(visible, {pair.text}, {MINUS_INFINITY})"
            )
            self.printer.known[rest] = self.printer.memo[rest, None] = pair
            self.masked.add(rest)
        scale = "" if factor == 1.0 else f" * {factor!r}"
        larger = "lib.shift_max" if name in self.shifts else "tl.maximum"
        seen = self.printer.known[rest].text
        self.printer.lines.append(f"{name} = {larger}({self.before[name]}, tl.max({seen}, 1){scale})")
        self._define(name)

    def sum(self, name: str, term: Node, shift: Node | None) -> None:
        weight = self.weight(term, f"{name}_term")
        before = self.before[name]
        total = f"add_sum({before}" if shift is None else f"row_sum({before}, {self.factor(shift)}"
        self.printer.lines.append(f"{name} = lib.{total}, {weight})")
        self._define(name)

    def _define(self, name: str) -> None:
        self.printer.known[state_node(name)] = Text(f"{name}[:, None]")

    def weight(self, term: Node, wanted: str) -> str:
        """The name of a term over the pairs of the tile, 0 where masked."""
        if term not in self.weights:
            pair = spread(term, self.printer.scalar(term))
            name = self.printer.variable(wanted, Text(pair)).text
            if not self.vanishes(term):
                self.printer.lines.append(f"if MASKED:\n        {name} = tl.where(visible, {name}, 0.0)")
            self.weights[term] = name
        return self.weights[term]

    def vanishes(self, term: Node) -> bool:
        """Whether a term is 0 where masked of itself: the exponential of what is minus infinity there, less a shift."""
        if not isinstance(term, Apply) or term.op != "exp" or (parts := shifted(term.args[0])) is None:
            return False
        factor, rest = factored(parts[0])
        return factor > 0 and rest in self.masked

    def factor(self, shift: Node) -> str:
        """The name of ``exp(shift before - shift now)``, ``[rows]``."""
        if shift not in self.moved:
            states = [node.name for node in postorder(shift) if isinstance(node, State)]
            after = {name: name for name in states}
            self.moved[shift] = self.printer.variable("moved", rescaling(self.printer, shift, self.before, after)).text
        return self.moved[shift]


def rescaling(printer: Printer, shift: Node, before: Mapping[str, str], after: Mapping[str, str]) -> Text:
    """``exp(shift before - shift after)``, ``[rows]``, from the names of states before and after."""
    by_row = contains(shift, lambda node: isinstance(node, Read | Index) and bool({"i", "h"} & node.axes))
    at = "[:, None]" if by_row else ""
    states = [node.name for node in postorder(shift) if isinstance(node, State)]
    texts = [
        printer.child({state_node(name): Text(f"{known[name]}{at}") for name in states}).scalar(shift).text
        for known in (before, after)
    ]
    moved = f"lib.rescale({texts[0]}, {texts[1]})"
    return Text(f"lib.flat({moved})" if by_row else moved)


@dataclass(frozen=True, slots=True)
class Finish:
    """What the end of a pass knows: its statistics and accumulators by place, and what is read by row.

    ``seen`` is the condition that a row has seen a key; ``None`` where the results are right without it.
    """

    statistics: tuple[str, ...]
    accumulators: tuple[str, ...]
    reads: tuple[Read, ...]
    seen: Node | None


def _finish_printer(functions: Functions, finish: Finish) -> Printer:
    printer = functions.printer()
    know_rows(printer, finish.reads)
    for at, name in enumerate(finish.statistics):
        text = Text(printer.given(identifier(name, printer.taken), f"state[{at}][:, None]"))
        printer.known[state_node(name)] = text
    return printer


def add_finish(functions: Functions, finish: Finish, output: Node | None, hi: int, saved: Sequence[str] = ()) -> None:
    """Write ``FINISH``: the output at a lane, or (``output`` is ``None``) the accumulators; then those ``saved``."""
    arguments = "sums, state, rows, b, h, g, row, i, lane, env, AT: tl.constexpr"
    kept = [f"sums[{finish.accumulators.index(name)}]" for name in saved]
    if output is None:
        texts = [f"sums[{at}]" for at in range(len(finish.accumulators))]
        functions.add("FINISH", arguments, functions.printer(), tuple_of([*texts, *kept]), "The accumulators.")
        return
    printer = _finish_printer(functions, finish)
    for at, name in enumerate(finish.accumulators):
        for node in postorder(output):
            if isinstance(node, State) and node.name == name:
                printer.vectors[node] = Text(printer.given(identifier(name, printer.taken), f"sums[{at}]"))
    printer.expect(output)
    result = printer.vector(output, Lane(Text("lane"), 0, hi)).text
    if finish.seen is not None:
        result = f"tl.where({printer.scalar(finish.seen).text}, {result}, 0.0)"
    functions.add("FINISH", arguments, printer, tuple_of([result, *kept]), "The output at lanes `lane`.")


def add_scaled_finish(functions: Functions, vectors: Sequence[float], scalars: Sequence[float]) -> None:
    """Write ``FINISH`` and ``FINISH_ROWS`` of sums that are only multiplied by numbers; outputs come one by one."""
    printer = functions.printer()
    for at, factor in enumerate(vectors):
        value = "sums[0]" if factor == 1.0 else f"sums[0] * {factor!r}"
        printer.lines.append(f"{'el' if at else ''}if AT == {at}:\n        scaled = {value}")
    arguments = "sums, state, rows, b, h, g, row, i, lane, env, AT: tl.constexpr"
    functions.add("FINISH", arguments, printer, "(scaled,)" if vectors else "()", "A sum at lanes `lane`.")
    texts = [f"state[{at}][:, None]" + ("" if x == 1.0 else f" * {x!r}") for at, x in enumerate(scalars)]
    functions.add(
        "FINISH_ROWS", "state, rows, b, h, g, row, i, env", functions.printer(), tuple_of(texts), "Sums to write."
    )  # fmt: skip


def add_finish_rows(
    functions: Functions, finish: Finish, kept: Sequence[str], saved: Mapping[str, bool], lse: Node | None
) -> None:
    """Write ``FINISH_ROWS``: statistics ``kept`` for later kernels, those ``saved``, the log-sum-exp if it is wanted.

    ``saved`` says of each whether it is a maximum: 0 is saved for one that has not been set.
    """
    printer = _finish_printer(functions, finish)
    texts = [printer.scalar(state_node(name)).text for name in kept]
    for name, is_maximum in saved.items():
        value = printer.scalar(state_node(name)).text
        texts.append(f"tl.where({value} > lib.LOWEST, {value}, 0.0)" if is_maximum else value)
    if lse is not None:
        printer.expect(lse)
        value = printer.scalar(lse).text
        if finish.seen is not None:
            value = f"tl.where({printer.scalar(finish.seen).text}, {value}, {MINUS_INFINITY})"
        texts.append(value)
    functions.add(
        "FINISH_ROWS", "state, rows, b, h, g, row, i, env", printer, tuple_of(texts), "Numbers to write, one a row."
    )  # fmt: skip


def add_ranking(
    functions: Functions, rank: Node, candidates: Node | None, dots: Sequence[Dot], reads: Sequence[Read]
) -> None:
    """Write ``RANK`` and ``CANDIDATE`` of a selection."""
    for slot, root, doc in (
        ("RANK", rank, "The rank of each block for each query."),
        ("CANDIDATE", candidates, "Which of the blocks are ranked."),
    ):
        printer = functions.printer()
        know_dots(printer, dots)
        know_rows(printer, reads)
        result = "j >= 0"
        if root is not None:
            printer.expect(root)
            text = printer.scalar(root)
            result = spread(root, text) if slot == "RANK" else f"(j >= 0) & {text.within(SHIFT)}"
        functions.add(slot, "dots, rows, b, h, g, row, i, j, env", printer, result, doc)


def add_term(
    functions: Functions,
    term: Node,
    indices: Sequence[Node],
    result: Input,
    dots: Sequence[Dot],
    reads: Sequence[Read],
) -> None:
    """Write ``TERM`` of a scatter: what is added to ``result``, where within the part of its head, whether inside."""
    printer = functions.printer()
    know_dots(printer, dots)
    know_rows(printer, reads)
    printer.expect(term, *indices)
    value = spread(term, printer.scalar(term))
    place, checks = "(i + j) * 0", ["(i + j) * 0 == 0"]
    for dim, at in enumerate(indices, 2):
        text = printer.variable("place", printer.scalar(at)).text
        extent = printer.given(*functions.env.extent(result, dim))
        checks.append(f"({text} >= 0) & ({text} < {extent})")
        place = f"({place}) * {extent} + {text}" if dim > 2 else f"{place} + {text}"
    inside = " & ".join(f"({check})" for check in checks)
    functions.add(
        "TERM", "dots, rows, b, h, g, row, i, j, env", printer, f"{value}, {place}, {inside}",
        "What each pair adds, where, and whether that place exists.",
    )  # fmt: skip


def add_value(functions: Functions, expression: Node, seen: Node | None, hi: int) -> tuple[int, ...]:
    """Write ``VALUE`` of a token kernel; returns the lane ranges it needs."""
    printer = functions.printer()
    printer.expect(expression)
    if expression.is_vector:
        result = printer.vector(expression, Lane(Text("lane"), 0, hi)).text
        result = f"lib.over_lanes({result}, row, lane)"
    else:
        result = f"lib.over_lanes({printer.scalar(expression).text}, row, row)"
    if seen is not None:
        result = f"tl.where({printer.scalar(seen).text}, {result}, 0.0)"
    functions.add("VALUE", "b, h, g, row, i, j, lane, lanes, env", printer, result, "The result for a tile of tokens.")
    return tuple(printer.lanes)
