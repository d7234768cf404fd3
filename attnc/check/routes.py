"""Routes: which keys are chosen by data (language.md, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnc.check.binding import bind
from attnc.check.block import Block
from attnc.check.fold import is_static
from attnc.check.frame import Frame
from attnc.check.report import did_you_mean
from attnc.check.values import Poison, Whole
from attnc.grammar import Span
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.nodes import Axes, Kind, Literal, Node, Pool
from attnc.ir.program import Route, Select
from attnc.ir.traverse import postorder

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator

SELECTIONS = {"top": ("n",), "mass": ("p", "least", "crossing"), "above": ("x",), "given": ("input",)}
ALWAYS = ("self", "first", "last")


def routes_of(ev: Evaluator, block: Block) -> tuple[Route, ...] | None:
    """The routes in force in a block: those around it and its own; ``None`` if one is wrong."""
    if block.branches:
        return ()
    made: list[Route | None] = []
    for home in (block.outer, block):
        if home is not None:
            made += [_route(ev, declared, Frame("rank", home.scope, block, home)) for declared in home.routes]
            if home.keep is not None:
                made.append(_keep(ev, home.keep, Frame("keep", home.scope, block, home)))
    routes = tuple(route for route in made if route is not None)
    return routes if len(routes) == len(made) else None


def _route(ev: Evaluator, declared: t.RouteDecl, frame: Frame) -> Route | None:
    before = len(ev.report)
    keys = _block_size(ev, declared.keys, "keys", declared.head, frame)
    queries = _block_size(ev, declared.queries, "queries", declared.head, frame) if declared.per == "queries" else None
    parts: dict[type, t.Rank | t.SelectDecl | t.Always] = {}
    for item in declared.items:
        if type(item) in parts:
            word = {t.Rank: "rank", t.SelectDecl: "select", t.Always: "always"}[type(item)]
            ev.error("E402", f"a second `{word}`", item.span, frame)
        parts.setdefault(type(item), item)
    rank, select, always = parts.get(t.Rank), parts.get(t.SelectDecl), parts.get(t.Always)
    chosen = _select(ev, select, declared, frame) if isinstance(select, t.SelectDecl) else None
    if select is None:
        hint = "write `select top(8)`, `mass(0.9)`, `above(x)` or `given(input)`"
        ev.error("E601", "a route says how many of the ranked blocks it selects", declared.head, frame, hint=hint)
    given = chosen is not None and chosen.how == "given"
    if rank is None and chosen is not None and not given:
        hint = "write `rank dot(q, mean(k))`"
        ev.error("E601", f"`{chosen.how}` selects by rank, and there is no `rank`", declared.head, frame, hint=hint)
    if isinstance(rank, t.Rank) and given:
        ev.error("E601", "`given` selects without a rank", rank.span, frame, "no effect", "remove one of the two")
    ranked = _rank(ev, rank, declared, keys, frame) if isinstance(rank, t.Rank) else None
    kept = tuple(_always(ev, always, frame)) if isinstance(always, t.Always) else ()
    if len(ev.report) > before or not isinstance(keys, Node) or isinstance(queries, Poison):
        return None
    if isinstance(ranked, Poison) or (rank is not None and ranked is None):
        return None
    over = rank.over if isinstance(rank, t.Rank) else None
    return Route(keys, declared.per, queries, ranked, chosen, kept, over, declared.head)


def _block_size(
    ev: Evaluator, arguments: tuple[t.Argument, ...], what: str, head: Span, frame: Frame
) -> Node | Poison | None:
    """The ``block`` of ``keys(block=...)``."""
    call = t.Call(t.Name(what, head), arguments, head)
    given = bind(ev, call, ["block"], 1, frame)
    return None if given is None else _count(ev, given["block"].value, "the size of a block", frame)


def _count(ev: Evaluator, expr: t.Expr, what: str, frame: Frame, static: bool = True) -> Node | Poison:
    """A positive integer, constant unless it may be a run-time number or one of a head."""
    node = ev.node(expr, frame)
    if isinstance(node, Poison):
        return node
    fits = is_static(node) if static else node.axes <= frozenset("bh")
    if node.kind is not Kind.INT or node.is_vector or not fits:
        wanted = "a constant integer" if static else "an integer that no token changes"
        return ev.error("E602", f"{what} is {wanted}", expr.span, frame)
    if isinstance(node, Literal) and node.value < 1:
        return ev.error("E602", f"{what} is at least 1", expr.span, frame, f"this is {node.value}")
    return node


def _select(ev: Evaluator, declared: t.SelectDecl, route: t.RouteDecl, frame: Frame) -> Select | None:
    call = declared.call
    how = call.function.text
    if how not in SELECTIONS:
        hint = did_you_mean(how, SELECTIONS) or "`top(n)`, `mass(p)`, `above(x)` or `given(input)`"
        ev.error("E602", f"there is no selection `{how}`", call.function.span, frame, "unknown", hint)
        return None
    given = bind(ev, call, SELECTIONS[how], 1, frame)
    if given is None:
        return None
    first = next(iter(given.values())).value
    match how:
        case "top":
            args = [_count(ev, given["n"].value, "the number of `top`", frame, static=False)]
            options: list[tuple[str, Node | Poison | str]] = []
        case "mass":
            args = [_number(ev, first, "the mass", frozenset("bh"), frame)]
            options = _mass_options(ev, given, frame)
        case "above":
            axes = frozenset("bhi") if route.per == "query" else frozenset("bh")
            args, options = [_number(ev, first, "the threshold", axes, frame)], []
        case _:
            args, options = [_given(ev, first, frame)], []
    nodes = [arg for arg in args if isinstance(arg, Node)]
    kept = [(name, value) for name, value in options if not isinstance(value, Poison)]
    return Select(how, tuple(nodes), tuple(kept)) if len(nodes) == len(args) and len(kept) == len(options) else None


def _number(ev: Evaluator, expr: t.Expr, what: str, axes: Axes, frame: Frame) -> Node | Poison:
    node = ev.node(expr, frame)
    if isinstance(node, Poison):
        return node
    if node.is_vector or not node.axes <= axes or node.kind is Kind.BOOL:
        return ev.error("E602", f"{what} is a number that no key changes", expr.span, frame)
    if what == "the mass" and isinstance(node, Literal) and not 0 < node.value <= 1:
        return ev.error("E602", "the mass is above 0 and at most 1", expr.span, frame, f"this is {node.value}")
    return ev.build(build.to_real, (node,), expr.span, frame)


def _mass_options(ev: Evaluator, given: dict[str, t.Argument], frame: Frame) -> list[tuple[str, Node | Poison | str]]:
    """``least`` and ``crossing``, with their defaults."""
    least: Node | Poison = build.literal(1)
    if "least" in given:
        least = _count(ev, given["least"].value, "`least`", frame, static=False)
    crossing: str | Poison = "include"
    if "crossing" in given:
        word = given["crossing"].value
        crossing = word.text if isinstance(word, t.Name) else ""
        if crossing not in ("include", "exclude"):
            crossing = ev.error("E602", "`crossing` is `include` or `exclude`", word.span, frame)
    return [("least", least), ("crossing", crossing)]


def _given(ev: Evaluator, expr: t.Expr, frame: Frame) -> Node | Poison:
    """An input that names the chosen blocks, as a read with every axis open."""
    value = ev.value(expr, frame)
    if isinstance(value, Poison):
        return value
    if not isinstance(value, Whole) or not value.input.dims or value.input.kind is Kind.REAL:
        hint = "declare `input blocks: int[B, H, M, n]` (block numbers) or `bool[...]` and write `given(blocks)`"
        return ev.error("E602", "`given` takes an int or bool input, by its name", expr.span, frame, hint=hint)
    return build.read(value.input, (None,) * len(value.input.dims))


def _rank(
    ev: Evaluator, declared: t.Rank, route: t.RouteDecl, keys: Node | Poison | None, frame: Frame
) -> Node | Poison:
    """A number for each chooser and candidate block."""
    expr = declared.value
    node = ev.node(expr, frame)
    if isinstance(node, Poison):
        return node
    if node.is_vector or node.kind is Kind.BOOL:
        found = "a vector over d" if node.is_vector else "bool"
        return ev.error("E603", "a rank is a number for each block", expr.span, frame, f"this is {found}")
    single = isinstance(keys, Literal) and keys.value == 1
    if "j" in node.axes and not single:
        hint = "reduce over the keys of the block: `mean(k)`, `max(...)`, `min(...)`"
        return ev.error("E603", "a rank is one number for a block of keys", expr.span, frame, "varies with `j`", hint)
    if "i" in node.axes and route.per != "query":
        hint = "reduce over the queries that choose together: `mean(q)`"
        return ev.error("E603", f"`per {route.per}` has no single query", expr.span, frame, "varies with `i`", hint)
    if route.per == "query":
        for part in postorder(node):
            if isinstance(part, Pool) and part.over == "i":
                hint = "write `per queries(block=...)` to choose together"
                place = ev.spans.get(part, expr.span)
                return ev.error("E603", "each query chooses for itself", place, frame, hint=hint)
    return ev.build(build.to_real, (node,), expr.span, frame)


def _always(ev: Evaluator, declared: t.Always, frame: Frame) -> list[tuple[str, Node | None]]:
    made: list[tuple[str, Node | None]] = []
    for name, count in declared.blocks:
        if name.text not in ALWAYS:
            hint = did_you_mean(name.text, ALWAYS) or "`self`, `first(n)` or `last(n)`"
            ev.error("E604", f"`always` knows no `{name.text}`", name.span, frame, "unknown", hint)
        elif name.text in (other for other, _ in made):
            ev.error("E604", f"`{name.text}` is listed twice", name.span, frame)
        elif (count is None) is not (name.text == "self"):
            hint = "write `self`" if name.text == "self" else f"write `{name.text}(1)`"
            ev.error("E604", f"`{name.text}` takes {'no' if count else 'a'} number", name.span, frame, hint=hint)
        else:
            number = None if count is None else _count(ev, count, f"the number of `{name.text}`", frame)
            if not isinstance(number, Poison):
                made.append((name.text, number))
    return made


def _keep(ev: Evaluator, declared: t.Keep, frame: Frame) -> Route | None:
    """``keep queries top(n) by EXPR``."""
    call = declared.select
    given = None
    if call.function.text == "top":
        given = bind(ev, call, ["n"], 1, frame)
    else:
        ev.error("E602", "queries are kept by `top(n)`", call.function.span, frame, "write `top(n)`")
    number = None if given is None else _count(ev, given["n"].value, "the number of `top`", frame, static=False)
    rank = ev.node(declared.by, frame)
    if isinstance(rank, Poison):
        return None
    if rank.is_vector or rank.kind is Kind.BOOL or not rank.axes <= frozenset("bhi"):
        hint = "it may use `q`, and inputs of the query row"
        ev.error("E603", "queries are kept by a number for each query", declared.by.span, frame, hint=hint)
        return None
    ranked = ev.build(build.to_real, (rank,), declared.by.span, frame)
    if isinstance(ranked, Poison) or not isinstance(number, Node):
        return None
    return Route(build.literal(1), "keep", None, ranked, Select("top", (number,), ()), (), None, declared.span)
