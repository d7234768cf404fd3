"""Whether a row expression stays the same when a shift moves.

Every running sum that holds ``exp(-c)`` times something is multiplied by ``exp(-t)`` when its shift ``c`` grows by
``t``. A row expression is followed upward from there: it is *scaled* by ``exp(-n t)``, or *moved* by ``n t``, or
neither can be shown. What is scaled by ``exp(0)`` is invariant, so the shift is a constant to its derivative: the
maximum of an online softmax, whose gradient would be zero however it is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.ir.nodes import Apply, Dot, Literal, Node, Reduce, Rope, Slice, State
from attnc.ir.traverse import postorder


@dataclass(frozen=True, slots=True)
class Response:
    """How a value answers to a shift that grows by ``t``: multiplied by ``exp(-scaled t)``, or plus ``moved t``."""

    scaled: float = 0.0
    moved: float = 0.0


STILL = Response()


def is_invariant(root: Node, shift: Node, shifts: Mapping[str, Node]) -> bool:
    """Whether ``root`` is shown not to change with ``shift``, given the shift of every state by name."""
    return responses(root, shift, shifts).get(root) == STILL


def responses(root: Node, shift: Node, shifts: Mapping[str, Node]) -> dict[Node, Response]:
    """The response of every node under ``root`` for which one can be shown."""
    found: dict[Node, Response] = {}
    stop = {shift}
    for node in postorder(root, stop=stop):
        response = Response(moved=1.0) if node is shift else _respond(node, found, shift, shifts)
        if response is not None:
            found[node] = response
    return found


def _respond(node: Node, found: dict[Node, Response], shift: Node, shifts: Mapping[str, Node]) -> Response | None:
    if isinstance(node, State):
        return _of_state(node, shift, shifts)
    args = [found.get(child) for child in node.children]
    if any(arg is None for arg in args):
        return None
    known = [arg for arg in args if arg is not None]
    if all(arg == STILL for arg in known):
        return STILL
    match node:
        case Apply(op=op):
            return _of_operation(op, node.args, known)
        case Dot():
            return None if any(arg.moved for arg in known) else Response(known[0].scaled + known[1].scaled)
        case Reduce(over="d") | Slice() | Rope():
            x, *rest = known
            return x if x.moved == 0 and all(arg == STILL for arg in rest) else None
    return None


def _of_state(node: State, shift: Node, shifts: Mapping[str, Node]) -> Response | None:
    own = shifts.get(node.name)
    if own is None:
        uses = any(child is node for child in postorder(shift))
        return None if uses else STILL
    moved = responses(own, shift, {name: s for name, s in shifts.items() if name != node.name}).get(own)
    return None if moved is None or moved.scaled else Response(scaled=moved.moved)


def _of_operation(op: str, args: tuple[Node, ...], known: list[Response]) -> Response | None:
    first = known[0]
    match op, known:
        case ("add" | "sub", [a, b]) if not a.scaled and not b.scaled:
            return Response(moved=a.moved + b.moved if op == "add" else a.moved - b.moved)
        case ("add" | "sub" | "max" | "min", [a, b]):
            return a if a == b else None
        case ("where", [c, a, b]):
            return a if c == STILL and a == b else None
        case ("eq" | "ne" | "lt" | "le" | "gt" | "ge", [a, b]):
            return STILL if a == b else None
        case ("mul", [a, b]) if not a.moved and not b.moved:
            return Response(scaled=a.scaled + b.scaled)
        case ("mul", [a, b]):
            factor, other = (args[0], b) if b.moved else (args[1], a)
            return Response(moved=other.moved * float(factor.value)) if isinstance(factor, Literal) else None
        case ("div", [a, b]) if not a.moved and not b.moved:
            return Response(scaled=a.scaled - b.scaled)
        case ("neg", _):
            return Response(first.scaled, -first.moved)
        case ("exp", _) if not first.scaled:
            return Response(scaled=-first.moved)
        case ("log", _) if not first.moved:
            return Response(moved=-first.scaled)
        case ("sqrt", _) if not first.moved:
            return Response(scaled=first.scaled / 2)
        case ("rsqrt", _) if not first.moved:
            return Response(scaled=-first.scaled / 2)
        case ("abs" | "real", _) if not first.moved:
            return first
        case ("sign", _) if not first.moved:
            return STILL
    return None
