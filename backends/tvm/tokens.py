"""Token maps: what is computed once a token, before any pass over the keys."""

from __future__ import annotations

from attnc.backends.tvm.emit import Emitter, width_of
from attnc.backends.tvm.slots import PlanSlots
from attnc.ir import build
from attnc.ir.nodes import Node
from attnc.plan import Plan, TokenMap
from attnc.templates.tvm.lanes import Value
from attnc.templates.tvm.products import dealt, pieces

_B, _H, _G, _I, _J, _ROW = (build.index(name) for name in ("b", "h", "g", "i", "j", "row"))


def map_tokens(token: TokenMap, plan: Plan, slots: PlanSlots, emitter: Emitter, scratch_bytes: Value) -> int:
    """A parallel loop over all tokens of one side that writes ``token.result``.

    Returns how many bytes of scratch memory it takes.
    """
    sizes = emitter.sizes
    heads = sizes[token.per]
    count = sizes["M" if token.side == "query" else "N"]
    with dealt(sizes["B"] * heads * count, scratch_bytes) as (number, scratch):
        at = (number % count).keep()
        row = (number // count).keep()
        head = (row % heads).keep()
        b = (row // heads).keep()
        values: dict[Node, Value] = {_B: b, _H if token.per == "H" else _G: head}
        if token.side == "query":
            values |= {_ROW: at, _I: (at + (sizes["N"] - sizes["M"])).keep()}
        else:
            values[_J] = at
        scope = emitter.scope(scratch, values)
        if token.per == "H":
            scope = scope.inner({_G: scope.value(plan.program.group)})
        scope = scope.inner({}, vectors=slots.readers(scope))
        tensor = emitter.tensors[f"input {token.result.name}"]
        place = tensor.offset(b, head, at).keep()
        if not token.expression.is_vector:
            tensor.store(place, scope.value(token.expression))
        width = width_of(token.expression.width) if token.expression.is_vector else 0
        for start, lanes in pieces(width, emitter.lanes):
            tensor.store(place + start, scope.element(token.expression, start, lanes).spread(lanes))
    return scratch.most
