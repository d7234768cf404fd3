"""Routes: which keys are chosen by data (language.md, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnc.check.binding import bind
from attnc.check.block import Block
from attnc.check.frame import Frame
from attnc.check.selections import condition, count, select, taken
from attnc.check.values import Poison
from attnc.grammar import Span
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.nodes import ROW_AXES, Kind, Literal, Node, Pool
from attnc.ir.program import Route, Select
from attnc.ir.traverse import postorder, substitute

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator


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
    before, per = len(ev.report), declared.per
    keys = _block_size(ev, declared.keys, "keys", declared.head, frame)
    queries = _block_size(ev, declared.queries, "queries", declared.head, frame) if per == "queries" else None
    parts: dict[str, t.RouteItem] = {}
    for item in declared.items:
        word = _word(item)
        if word in parts:
            ev.error("E402", f"a second `{word}`", item.span, frame)
        parts.setdefault(word, item)
    chosen = _selection(ev, parts, declared, frame)
    rank = parts.get("rank")
    ranked = _rank(ev, rank, per, keys, frame) if isinstance(rank, t.Rank) else None
    among = parts.get("candidates")
    candidates: Node | Poison | None = None
    if isinstance(among, t.Candidates):
        candidates = condition(ev, among.value, per, "`candidates` is a truth value for each block", frame)
    always, also = (
        tuple(taken(ev, item.blocks, per, word, frame)) if isinstance(item, t.Always) else ()
        for word, item in (("always", parts.get("always")), ("also", parts.get("also")))
    )
    if len(ev.report) > before or not isinstance(keys, Node) or isinstance(queries, Poison) or chosen is None:
        return None
    if isinstance(ranked, Poison) or isinstance(candidates, Poison):
        return None
    route = Route(keys, per, queries, ranked, chosen, always, also, candidates, declared.head)
    if per == "query":
        own = build.apply("floordiv", build.index("i"), keys)
        route = route.map(lambda node: substitute(node, {build.index("I"): own}))
    return route


def _word(item: t.RouteItem) -> str:
    match item:
        case t.Rank():
            return "rank"
        case t.Candidates():
            return "candidates"
        case t.SelectDecl():
            return "select"
        case t.Always(word=word):
            return word


def _selection(ev: Evaluator, parts: dict[str, t.RouteItem], declared: t.RouteDecl, frame: Frame) -> Select | None:
    """What is selected, which says whether there must be a rank."""
    item = parts.get("select")
    chosen = select(ev, item, declared.per, frame) if isinstance(item, t.SelectDecl) else None
    if item is None:
        hint = "write `select top(8)`, `mass(0.9)`, `above(x)` or `given(blocks)`"
        ev.error("E601", "a route says how many of the ranked blocks it selects", declared.head, frame, hint=hint)
    given = chosen is not None and chosen.how == "given"
    if "rank" not in parts and chosen is not None and not given:
        hint = "write `rank dot(q, mean(k))`"
        ev.error("E601", f"`{chosen.how}` selects by rank, and there is no `rank`", declared.head, frame, hint=hint)
    for word in ("rank", "candidates"):
        if word in parts and given:
            message, hint = "`given` selects without a rank", "remove one of the two"
            ev.error("E601", message, parts[word].span, frame, "no effect", hint)
    return chosen


def _block_size(
    ev: Evaluator, arguments: tuple[t.Argument, ...], what: str, head: Span, frame: Frame
) -> Node | Poison | None:
    """The ``block`` of ``keys(block=...)``."""
    call = t.Call(t.Name(what, head), arguments, head)
    given = bind(ev, call, ["block"], 1, frame)
    return None if given is None else count(ev, given["block"].value, "the size of a block", frame)


def _rank(ev: Evaluator, declared: t.Rank, per: str, keys: Node | Poison | None, frame: Frame) -> Node | Poison:
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
    if "w" in node.axes:
        hint = "reduce over the windows that share keys with the block: `sum(...)`, `max(...)`"
        return ev.error("E603", "a rank is one number for a block of keys", expr.span, frame, "is of a window", hint)
    if "i" in node.axes and per != "query":
        hint = "reduce over the queries that choose together: `mean(q)`"
        return ev.error("E603", f"`per {per}` has no single query", expr.span, frame, "varies with `i`", hint)
    if per == "query":
        for part in postorder(node):
            if isinstance(part, Pool) and part.over == "i":
                hint = "write `per queries(block=...)` to choose together"
                place = ev.spans.get(part, expr.span)
                return ev.error("E603", "each query chooses for itself", place, frame, hint=hint)
    node_ = ev.build(build.to_real, (node,), expr.span, frame)
    over = {"group": "g", "heads": "h"}.get(declared.over or "")
    return node_ if over is None else ev.build(build.pool, ("sum", over, node_), expr.span, frame)


def _keep(ev: Evaluator, declared: t.Keep, frame: Frame) -> Route | None:
    """``keep queries top(n) by EXPR``."""
    call = declared.select
    given = None
    if call.function.text == "top":
        given = bind(ev, call, ["n"], 1, frame)
    else:
        ev.error("E602", "queries are kept by `top(n)`", call.function.span, frame, "write `top(n)`")
    number = None if given is None else count(ev, given["n"].value, "the number of `top`", frame, "head")
    rank = ev.node(declared.by, frame)
    if isinstance(rank, Poison):
        return None
    if rank.is_vector or rank.kind is Kind.BOOL or not rank.axes <= ROW_AXES:
        hint = "it may use `q`, and inputs of the query row"
        ev.error("E603", "queries are kept by a number for each query", declared.by.span, frame, hint=hint)
        return None
    ranked = ev.build(build.to_real, (rank,), declared.by.span, frame)
    if isinstance(ranked, Poison) or not isinstance(number, Node):
        return None
    top = Select("top", (number,), (("scope", "chooser"),))
    return Route(build.literal(1), "keep", None, ranked, top, (), span=declared.span)
