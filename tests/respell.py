"""Ways to write a program differently with the same meaning, and ways to change its meaning a little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from attnc.ir.build import apply, dot, literal, param, read, reduce_keys
from attnc.ir.nodes import Apply, Dot, Input, Kind, Literal, Node, Param, Read, Reduce, Token
from attnc.ir.ops import OPS
from attnc.ir.program import Program
from attnc.ir.traverse import postorder, rewrite

_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def respell(program: Program, random: Random) -> Program:
    """Commutes, mirrors and negates where that changes no bit, and adds what does nothing."""

    def fn(node: Node) -> Node:
        match node:
            case Apply(op=op, args=(a, b)) if op in _MIRRORED and random.random() < 0.5:
                if a.kind is Kind.INT and random.random() < 0.5:
                    return apply("not", apply(_OPPOSITE[op], a, b))
                return apply(_MIRRORED[op], b, a)
            case Apply(op=op, args=(a, b)) if OPS[op].commutes and random.random() < 0.5:
                return apply(op, b, a)
            case Dot(a=a, b=b) if random.random() < 0.5:
                return dot(b, a)
        match random.randrange(8), node.kind:
            case 0, Kind.REAL:
                return apply("mul", node, literal(1.0))
            case 1, Kind.REAL:
                return apply("neg", apply("neg", node))
            case 2, Kind.REAL:
                return apply("div", apply("sub", node, literal(0.0)), literal(1.0))
            case 0, Kind.INT if node.axes:
                return apply("sub", apply("add", literal(3), node), literal(3))
            case 1, Kind.INT if node.axes:
                return apply("mul", literal(1), node)
            case 0, Kind.BOOL:
                return apply("and", literal(True), node)
            case 1, Kind.BOOL:
                return apply("not", apply("not", node))
            case _:
                return node

    return _map(program, lambda node: node if isinstance(node, Read) and node.is_vector else fn(node))


def rename(program: Program, random: Random) -> Program:
    """Other names for all that is declared, in another order."""
    names = [x.name for x in program.inputs] + [x.name for x in program.parameters]
    new = dict(zip(names, random.sample([f"n{number}" for number in range(99)], len(names)), strict=True))
    inputs = {x: Input(new[x.name], x.kind, x.dims) for x in program.inputs}

    def fn(node: Node) -> Node:
        match node:
            case Read(input=source, indices=indices):
                return read(inputs[source], indices)
            case Param(name=name, kind=kind):
                return param(new[name], kind)
            case _:
                return node

    renamed = _map(program, fn)
    return replace(
        renamed,
        name="other",
        inputs=tuple(random.sample([*inputs.values()], len(inputs))),
        parameters=tuple(
            replace(x, name=new[x.name]) for x in random.sample(program.parameters, len(program.parameters))
        ),
    )


def mutations(program: Program) -> list[Callable[[], Program]]:
    """Programs that differ in one node of the body: another number, operation, operand order, index or token."""
    nodes = list(postorder(*(root for _, root in program.body.roots())))
    changes = [(node, changed) for node in nodes for changed in _changed(node)]
    return [lambda node=node, changed=changed: _replaced(program, node, changed) for node, changed in changes]


def _changed(node: Node) -> list[Node]:
    match node:
        case Literal(kind=Kind.BOOL, value=value):
            return [literal(not value)]
        case Literal(value=value):
            return [literal(value + 1)]
        case Apply(op="sub" | "div" | "lt" | "le" | "floordiv" as op, args=(a, b)) if a is not b:
            return [apply(op, b, a)]
        case Apply(op="min" | "max" as op, args=args):
            return [apply("max" if op == "min" else "min", *args)]
        case Apply(op="and" | "or" as op, args=args):
            return [apply("or" if op == "and" else "and", *args)]
        case Apply(op="exp" | "tanh" | "sigmoid" | "log", args=args):
            return [apply("cos", *args)]
        case Apply(op="add", args=args):
            return [apply("sub", *args)]
        case Reduce(over="j", op=op, x=x):
            return [reduce_keys("max" if op == "sum" else "sum", x)]
        case Read(indices=indices) if any(at is not None and at.axes for at in indices):
            at = next(place for place, index in enumerate(indices) if index is not None and index.axes)
            other = tuple(literal(0) if place == at else index for place, index in enumerate(indices))
            return [read(node.input, other)]
        case Token(name="q"):
            return [apply("neg", node)]
        case _:
            return []


def _map(program: Program, fn: Callable[[Node], Node]) -> Program:
    """``fn`` on the nodes of the body; declarations stay."""
    memo: dict[Node, Node] = {}
    return replace(program, body=program.body.map(lambda root: rewrite(root, fn, memo)))


def _replaced(program: Program, node: Node, changed: Node) -> Program:
    def fn(found: Node) -> Node:
        return found

    memo = {node: changed}
    for child in changed.children:
        memo.setdefault(child, child)
    return replace(program, body=program.body.map(lambda root: rewrite(root, fn, memo)))
