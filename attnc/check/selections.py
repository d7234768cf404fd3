"""What a route selects from what it ranked, and what it always takes (language.md, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnc.check.binding import bind
from attnc.check.fold import is_static
from attnc.check.frame import Frame
from attnc.check.report import did_you_mean
from attnc.check.values import Poison, Whole
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.nodes import Axes, Input, Kind, Literal, Node, Size
from attnc.ir.program import Select

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator

SELECTIONS = {
    "top": ("n", "scope"),
    "mass": ("p", "least", "crossing", "scope"),
    "above": ("x",),
    "given": ("blocks",),
}
WORDS = {"crossing": ("include", "exclude"), "scope": ("chooser", "head", "heads")}
"""Options that are words, the default first."""

TAKEN = ("self", "first", "last")

CHOOSER: dict[str, Axes] = {
    "query": frozenset("bhiI"),
    "queries": frozenset("bhI"),
    "head": frozenset("bh"),
}
"""The axes of what does not depend on the block that is ranked, by who chooses."""


def select(ev: Evaluator, declared: t.SelectDecl, per: str, frame: Frame) -> Select | None:
    """The selection of a route; ``None`` if something in it is wrong."""
    call = declared.call
    how = call.function.text
    if how not in SELECTIONS:
        hint = did_you_mean(how, SELECTIONS) or "`top(n)`, `mass(p)`, `above(x)` or `given(blocks)`"
        ev.error("E602", f"there is no selection `{how}`", call.function.span, frame, "unknown", hint)
        return None
    given = bind(ev, call, SELECTIONS[how], 1, frame)
    if given is None:
        return None
    first = next(iter(given.values())).value
    match how:
        case "top":
            arg = _top(ev, first, per, frame)
        case "mass":
            arg = _number(ev, first, "the mass", per, frame)
        case "above":
            arg = _number(ev, first, "the threshold", per, frame)
        case _:
            arg = _given(ev, first, per, frame)
    options = [(name, _option(ev, name, given, per, frame)) for name in SELECTIONS[how][1:]]
    kept = [(name, value) for name, value in options if not isinstance(value, Poison)]
    if isinstance(arg, Poison) or len(kept) < len(options):
        return None
    return Select(how, (arg,), tuple(kept))


def count(ev: Evaluator, expr: t.Expr, what: str, frame: Frame, per: str | None = None) -> Node | Poison:
    """A positive integer: constant, or with ``per`` one that no block changes."""
    node = ev.node(expr, frame)
    if isinstance(node, Poison):
        return node
    fits = is_static(node) if per is None else node.axes <= CHOOSER[per]
    if node.kind is not Kind.INT or node.is_vector or not fits:
        wanted = "a constant integer" if per is None else "an integer that no block changes"
        return ev.error("E602", f"{what} is {wanted}", expr.span, frame)
    if isinstance(node, Literal) and node.value < 1:
        return ev.error("E602", f"{what} is at least 1", expr.span, frame, f"this is {node.value}")
    return node


def _top(ev: Evaluator, expr: t.Expr, per: str, frame: Frame) -> Node | Poison:
    """How many, or as a real which share of the candidates."""
    node = ev.node(expr, frame)
    if isinstance(node, Node) and node.kind is Kind.REAL and not node.is_vector and node.axes <= CHOOSER[per]:
        if isinstance(node, Literal) and not 0 < node.value <= 1:
            return ev.error("E602", "a share is above 0 and at most 1", expr.span, frame, f"this is {node.value}")
        return node
    return count(ev, expr, "the number of `top`", frame, per)


def _number(ev: Evaluator, expr: t.Expr, what: str, per: str, frame: Frame) -> Node | Poison:
    node = ev.node(expr, frame)
    if isinstance(node, Poison):
        return node
    if node.is_vector or not node.axes <= CHOOSER[per] or node.kind is Kind.BOOL:
        return ev.error("E602", f"{what} is a number that no key changes", expr.span, frame)
    if what == "the mass" and isinstance(node, Literal) and not 0 < node.value <= 1:
        return ev.error("E602", "the mass is above 0 and at most 1", expr.span, frame, f"this is {node.value}")
    return ev.build(build.to_real, (node,), expr.span, frame)


def _option(ev: Evaluator, name: str, given: dict[str, t.Argument], per: str, frame: Frame) -> Node | Poison | str:
    """``least``, ``crossing`` or ``scope``, with its default."""
    if name == "least":
        return count(ev, given[name].value, "`least`", frame, per) if name in given else build.literal(1)
    known = WORDS[name]
    if name not in given:
        return known[0]
    word = given[name].value
    if not isinstance(word, t.Name) or word.text not in known:
        listed = ", ".join(f"`{one}`" for one in known[:-1]) + f" or `{known[-1]}`"
        return ev.error("E602", f"`{name}` is {listed}", word.span, frame)
    return word.text


def _given(ev: Evaluator, expr: t.Expr, per: str, frame: Frame) -> Node | Poison:
    """The numbers of the chosen blocks, or whether each is chosen; an input may stand there by its name."""
    value = ev.value(expr, frame)
    if isinstance(value, Whole) and value.input.kind is not Kind.REAL and value.input.dims:
        indices = _places(value.input, per)
        if indices is not None:
            value = build.read(value.input, indices)
    if isinstance(value, Poison):
        return value
    if isinstance(value, Node) and value.axes <= CHOOSER[per] and value.is_vector and value.kind is Kind.INT:
        return value
    is_map = isinstance(value, Node) and value.kind is Kind.BOOL and not value.is_vector
    if is_map and isinstance(value, Node) and value.axes <= CHOOSER[per] | {"J"}:
        return value
    where = {"query": "row", "queries": "I", "head": ""}[per]
    places = ", ".join(filter(None, ("b", "h", where)))
    hint = f"read block numbers as in `blocks[{places}, :]`, or a truth value for each block as in `map[{places}, J]`"
    return ev.error("E602", "`given` takes block numbers, or a truth value for each block", expr.span, frame, hint=hint)


def _places(source: Input, per: str) -> tuple[Node | None, ...] | None:
    """How an input of ``given`` is read by the names of its dimensions; ``None`` where that does not follow."""
    usual = {"B": "b", "H": "h", "G": "g", "M": "row"}
    *chooser, _ = source.dims
    indices: list[Node | None] = []
    for dim in chooser:
        name = usual.get(dim.name) if isinstance(dim, Size) else "I" if per == "queries" else None
        if name is None:
            return None
        indices.append(build.index(name))
    return (*indices, None if source.kind is Kind.INT else build.index("J"))


def taken(ev: Evaluator, blocks: Sequence[t.Expr], per: str, word: str, frame: Frame) -> list[tuple[str, Node | None]]:
    """The blocks of ``always`` or ``also``."""
    made: list[tuple[str, Node | None]] = []
    for expr in blocks:
        name = expr if isinstance(expr, t.Name) else expr.function if isinstance(expr, t.Call) else None
        if name is None or name.text not in TAKEN:
            condition_ = condition(ev, expr, per, f"`{word}` takes `self`, `first(n)`, `last(n)` or conditions", frame)
            if isinstance(condition_, Node):
                made.append(("where", condition_))
            continue
        if name.text in (other for other, _ in made):
            ev.error("E604", f"`{name.text}` is listed twice", name.span, frame)
        elif isinstance(expr, t.Call) is (name.text == "self"):
            hint = "write `self`" if name.text == "self" else f"write `{name.text}(1)`"
            message = f"`{name.text}` takes {'no' if name.text == 'self' else 'a'} number"
            ev.error("E604", message, name.span, frame, hint=hint)
        elif name.text == "self" and per == "head":
            ev.error("E604", "a head has no block of its own", name.span, frame, hint="write `first(n)` or `last(n)`")
        elif isinstance(expr, t.Call):
            given = bind(ev, expr, ["n"], 1, frame)
            number = None if given is None else count(ev, given["n"].value, f"the number of `{name.text}`", frame, per)
            if isinstance(number, Node):
                made.append((name.text, number))
        else:
            made.append((name.text, None))
    return made


def condition(ev: Evaluator, expr: t.Expr, per: str, what: str, frame: Frame) -> Node | Poison:
    """A truth value for each chooser and block."""
    node = ev.node(expr, frame)
    if isinstance(node, Poison):
        return node
    if node.kind is not Kind.BOOL or node.is_vector or not node.axes <= CHOOSER[per] | {"J"}:
        found = f"this is {node.kind}" if node.kind is not Kind.BOOL else "varies with a single token"
        hint = "compare block numbers (`J == 0`, `I - J < 2`) or numbers of blocks (`norm2(mean(k)) > x`)"
        return ev.error("E604", what, expr.span, frame, found, hint)
    return node
