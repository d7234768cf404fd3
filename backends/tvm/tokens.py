"""Token maps: what is computed once a token, before any pass over the keys."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from attnc.backends.tvm.emit import Emitter, Scope, Tensor, width_of
from attnc.backends.tvm.slots import raw_vectors
from attnc.ir import build
from attnc.ir.nodes import Node
from attnc.ir.program import Program
from attnc.plan import TokenMap
from attnc.templates.tvm.memory import Scratch
from attnc.templates.tvm.products import pieces
from attnc.templates.tvm.values import Value

_B, _H, _G, _I, _J, _ROW = (build.index(name) for name in ("b", "h", "g", "i", "j", "row"))


class Tasks(Protocol):
    """What runs a loop in parallel: threads of a CPU, or of a GPU."""

    def dealt(self, count: Value) -> AbstractContextManager[tuple[Value, Scratch]]: ...


def map_tokens(token: TokenMap, program: Program, emitter: Emitter, tasks: Tasks, seen: Tensor | None = None) -> None:
    """A parallel loop over all tokens of one side that writes ``token.result``.

    Where the tensor ``seen`` holds 0, the result is 0.
    """
    sizes = emitter.sizes
    heads = sizes[token.per]
    count = sizes["M" if token.side == "query" else "N"]
    with tasks.dealt(sizes["B"] * heads * count) as (number, scratch):
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
            scope = scope.inner({_G: scope.value(program.group)})
        scope = scope.inner({}, vectors=raw_vectors(program, emitter, scope))
        tensor = emitter.tensors[f"input {token.result.name}"]
        place = tensor.offset(b, head, at).keep()
        width = None if token.expression.width is None else width_of(token.expression.width)
        if seen is None:
            _write(token.expression, width, scope, tensor, place)
        else:
            with T.If(seen.load(seen.offset(b, head, at), "bool").expr):
                with T.Then():
                    _write(token.expression, width, scope, tensor, place)
                with T.Else():
                    _write(build.literal(0.0), width, scope, tensor, place)


def _write(expression: Node, width: int | None, scope: Scope, tensor: Tensor, place: Value) -> None:
    """The elements of a vector, or a scalar, from ``place`` on."""
    if width is None:
        tensor.store(place, scope.value(expression))
        return
    for start, lanes in pieces(width, scope.emitter.lanes):
        tensor.store(place + start, scope.element(expression, start, lanes).spread(lanes))
