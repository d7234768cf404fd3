"""The clauses of a block, each from its own text, the block around it or the default, as nodes of the right form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnc.check.block import Block
from attnc.check.defaults import default_clause, std_scope
from attnc.check.frame import Frame
from attnc.check.routes import routes_of
from attnc.check.values import POISON, Poison, Value
from attnc.grammar import Span
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.nodes import Axes, Kind, Node, Token, Window
from attnc.ir.program import Body, Route
from attnc.ir.traverse import postorder

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator

AXES: dict[str, Axes] = {
    "query": frozenset("bhi"),
    "key": frozenset("bhj"),
    "output": frozenset("bhi"),
    "groups": frozenset("h"),
}
"""The axes a clause may depend on, where that is not all."""

VECTORS = frozenset({"query", "key", "value", "output"})

WHY = {
    "query": "a query knows its own token alone, not the keys",
    "key": "a key knows its own token alone, not the query",
    "output": "the output of a row has no single key: reduce with `rowsum(weight * x)`",
    "groups": "heads are grouped the same way everywhere",
}


def clause_value(ev: Evaluator, body: Block, keyword: str) -> Node | Poison:
    """The value of a clause in force in ``body``."""
    found = body.clause(keyword)
    if found is not None:
        clause, home = found
        ev.used.add((home, f"clause {keyword}"))
        frame = Frame(keyword, home.scope, body, home)
    else:
        clause = default_clause(keyword)
        frame = Frame(keyword, std_scope(), body, None)
    key = ("clause", keyword, body)
    if key not in ev.values:
        ev.values[key] = POISON
        ev.values[key] = _checked(ev, clause, ev.node(clause.value, frame), frame)
    value = ev.values[key]
    assert isinstance(value, Node | Poison)
    return value


def _checked(ev: Evaluator, clause: t.Clause, value: Node | Poison, frame: Frame) -> Node | Poison:
    """The value, if it has the form its clause needs."""
    if isinstance(value, Poison):
        return POISON
    keyword, span = clause.keyword, clause.value.span
    is_vector = keyword in VECTORS
    if value.is_vector and not is_vector:
        hint: str | None = "reduce it: `dot(a, b)`, `norm2(a)`, `sum_d(a)`"
        return ev.error("E209", f"`{keyword}` must be a scalar", span, frame, "this is a vector over d", hint)
    if is_vector and not value.is_vector:
        hint = "multiply the vector with it, as in `x * o`" if keyword == "output" else None
        return ev.error("E209", f"`{keyword}` must be a vector over d", span, frame, "this is a scalar", hint)
    wanted = Kind.BOOL if keyword == "mask" else Kind.INT if keyword == "groups" else Kind.REAL
    if value.kind is not wanted and not (wanted is Kind.REAL and value.kind is Kind.INT):
        hint = None
        if keyword == "mask":
            hint = "compare it with something: a mask is true where a pair takes part"
        elif value.kind is Kind.BOOL:
            hint = "which pairs take part is said by `mask`" if keyword == "score" else "write `1 if ... else 0`"
        return ev.error("E210", f"`{keyword}` must be {wanted}", span, frame, f"this is {value.kind}", hint)
    if not value.axes <= AXES.get(keyword, value.axes):
        return _wrong_axes(ev, clause, value, frame)
    return ev.build(build.to_real, (value,), span, frame) if wanted is Kind.REAL else value


def _wrong_axes(ev: Evaluator, clause: t.Clause, value: Node, frame: Frame) -> Poison:
    """Report the axes that a clause must not depend on, at the sub-expression that brings them in."""
    within = clause.value.span
    extra = value.axes - AXES[clause.keyword]
    places = (span for node in postorder(value) if node.axes & extra for span in ev.places.get(node, ()))
    culprit = next((span for span in places if _inside(span, within)), within)
    listed = " and ".join(f"`{axis}`" for axis in sorted(extra))
    message = f"`{clause.keyword}` cannot depend on {listed}"
    return ev.error("E211", message, culprit, frame, "varies with " + listed, WHY[clause.keyword])


def _inside(span: Span, around: Span) -> bool:
    return span.source is around.source and around.start <= span.start and span.end <= around.end


def attended(ev: Evaluator, body: Block) -> Value:
    """``o``: the sum over the keys of weight times value."""
    weight, value = clause_value(ev, body, "normalize"), clause_value(ev, body, "value")
    frame = Frame("output", std_scope(), body, None)
    span = body.name.span
    product = ev.build(build.apply, ("mul", weight, value), span, frame)
    return ev.build(build.reduce_keys, ("sum", product), span, frame)


def body_of(ev: Evaluator, block: Block) -> Body | None:
    """All of what a block computes; ``None`` if something in it is wrong."""
    if block not in ev.bodies:
        ev.bodies[block] = None
        ev.bodies[block] = _body(ev, block)
    return ev.bodies[block]


def _body(ev: Evaluator, block: Block) -> Body | None:
    if block.branches and "output" not in block.clauses:
        hint = f"write `output` with {', '.join(f'`{name}`' for name in block.branches)}"
        ev.report.add("E404", "an `output` says how the branches combine", block.name.span, hint=hint)
        return None
    if block.branches:
        output = clause_value(ev, block, "output")
        zero = build.literal(0.0)
        return Body(build.literal(True), zero, zero, build.token("v"), output) if isinstance(output, Node) else None
    for keyword in ("query", "key", "scale"):
        if block.clause(keyword) is not None:
            clause_value(ev, block, keyword)
    values = [clause_value(ev, block, keyword) for keyword in ("mask", "score", "normalize", "value", "output")]
    routes = routes_of(ev, block)
    nodes = [value for value in values if isinstance(value, Node)]
    if len(nodes) < len(values) or routes is None:
        return None
    mask, score, weight, value, output = nodes
    if not _windows_fit(ev, block, nodes, routes):
        return None
    if block.outer is not None and output.width is not build.size("E"):
        hint = "branches are combined element by element over the width of `v`"
        ev.report.add("E404", f"the output of `{block.name.text}` is not as wide as `v`", block.name.span, hint=hint)
        return None
    return Body(mask, score, weight, value, output, routes)


def _windows_fit(ev: Evaluator, block: Block, nodes: list[Node], routes: tuple[Route, ...]) -> bool:
    """Whether keys and values are both tokens, or both the same windows of them."""
    windows = {node for node in postorder(*nodes) if isinstance(node, Window)}
    if not windows:
        return True
    name = block.name
    if len({(window.length, window.stride) for window in windows}) > 1:
        hint = "write the same `window` and `stride` in `key pool(...)` and `value pool(...)`"
        ev.report.add("E605", f"`{name.text}` pools over windows of different sizes", name.span, hint=hint)
        return False
    raw = {node.name for node in postorder(*nodes, stop=windows) if isinstance(node, Token)} & {"k", "v"}
    for token, keyword in (("k", "key"), ("v", "value")):
        if token in raw:
            message = f"`{name.text}` has windows for keys, but uses `{token}` of single tokens"
            ev.report.add("E605", message, name.span, hint=f"write `{keyword} pool({token}, window=..., stride=...)`")
            return False
    if routes:
        hint = "route over blocks of tokens in another branch"
        ev.report.add("E605", f"`{name.text}` has windows for keys, and a route", name.span, hint=hint)
        return False
    return True
