"""The normal form of an expression: one spelling for what is exactly equal.

Ints and truth values are exact, so sums of them become sums of multiples in a fixed order, comparisons become
``sum <= number`` and negations move inwards. Reals are rounded, so only what gives the same bits is done to them:
commuting, moving signs, ``x * 1``, ``x / 4 = x * 0.25``. This is for comparing meanings (:mod:`attnc.ir.hash`);
kernels are made from what the author wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from attnc.ir.build import apply, dot, literal, read
from attnc.ir.fold import fold
from attnc.ir.nodes import Apply, Dot, Input, Kind, Literal, Node, Read
from attnc.ir.ops import OPS
from attnc.ir.traverse import postorder, rebuild

Key: TypeAlias = Callable[[Node], Any]
"""What nodes are ordered by; it must not depend on names."""

_LARGEST = 2**62
_SMALLEST_POWER = -100


class Normalizer:
    """Brings the expressions under some roots into normal form, operands in the order of ``key``."""

    def __init__(self, roots: Iterable[Node], key: Key) -> None:
        self.key = key
        self._memo: dict[Node, Node] = {}
        self._inner = _inner_links(tuple(roots))

    def __call__(self, root: Node) -> Node:
        """The normal form of one of the roots, or of what is below them."""
        for node in postorder(root, stop=self._memo):
            if node not in self._memo:
                again = rebuild(node, tuple(self._memo[child] for child in node.children))
                self._memo[node] = again if node in self._inner else self.node(again)
        return self._memo[root]

    def node(self, node: Node) -> Node:
        """The normal form of a node whose children are in normal form."""
        match node:
            case Dot(a=a, b=b):
                return dot(*sorted((a, b), key=self.key))
            case Read(input=source, indices=indices):
                return read(Input(source.name, source.kind, tuple(map(self, source.dims))), indices)
            case Apply():
                changed = self._apply(node)
                # A rule may lose the width of a vector, as `x - x` does.
                return changed if changed.width is node.width else node
            case _:
                return node

    def make(self, op: str, *args: Node) -> Node:
        """An operation on normal forms, in normal form."""
        return self.node(apply(op, *args))

    def _apply(self, node: Apply) -> Node:
        folded = fold(node)
        if folded is not node:
            return folded
        if node.kind is Kind.BOOL:
            return self._bool(node)
        if node.op == "where":
            return self._where(node)
        return self._int(node) if node.kind is Kind.INT else self._real(node)

    # Truth values

    def _bool(self, node: Apply) -> Node:
        match node.op, node.args:
            case "and" | "or", operands:
                return self._junction(node.op, operands)
            case "not", (x,):
                return self._negate(x)
            case "where", _:
                return self._where(node)
            case (("lt" | "le" | "gt" | "ge" | "eq" | "ne"), (a, b)):
                return self._compare(node.op, a, b)
            case _:
                return node

    def _junction(self, op: str, operands: Iterable[Node]) -> Node:
        neutral = literal(op == "and")
        parts = [x for operand in operands for x in _flat(op, operand) if x is not neutral]
        if any(isinstance(x, Literal) for x in parts):
            return literal(op == "or")
        return self._joined(op, parts) if parts else neutral

    def _negate(self, x: Node) -> Node:
        match x:
            case Literal(value=value):
                return literal(not value)
            case Apply(op="not", args=(y,)):
                return y
            case Apply(op="and" | "or" as op):
                return self._junction("or" if op == "and" else "and", map(self._negate, _flat(op, x)))
            case Apply(op="eq" | "ne" as op, args=args):
                return self.make("ne" if op == "eq" else "eq", *args)
            case Apply(op="le", args=(a, b)) if a.kind is Kind.INT:
                return self.make("lt", b, a)
            case _:
                return apply("not", x)

    def _compare(self, op: str, a: Node, b: Node) -> Node:
        if op in {"gt", "ge"}:
            op, a, b = ("lt" if op == "gt" else "le"), b, a
        if a.kind is not Kind.INT:
            return apply(op, *(sorted((a, b), key=self.key) if op in {"eq", "ne"} else (a, b)))
        sides = _Sum.of(a), _Sum.of(b)
        difference = sides[0].plus(sides[1], -1)
        if op in {"eq", "ne"}:
            difference = self._upright(difference)
        bound = -difference.constant - (op == "lt")
        if not difference.is_small:
            return apply(op, a, b)
        whole = self._rebuild(_Sum(difference.multiples, 0))
        return fold(apply("le" if op == "lt" else op, whole, literal(bound)))

    def _where(self, node: Apply) -> Node:
        condition, then, otherwise = node.args
        if isinstance(condition, Literal):
            return then if condition.value else otherwise
        if then is otherwise:
            return then
        opposite = self._negate(condition)
        if self.key(opposite) < self.key(condition):
            return apply("where", opposite, otherwise, then)
        return node

    # Ints

    def _int(self, node: Apply) -> Node:
        match node.op, node.args:
            case (("add" | "sub" | "neg"), _):
                return self._sum(node)
            case "mul", (a, b):
                if isinstance(a, Literal) or isinstance(b, Literal):
                    return self._sum(node)
                parts = _flat("mul", node)
                factor = math.prod(int(x.value) for x in parts if isinstance(x, Literal))
                rest = self._joined("mul", [x for x in parts if not isinstance(x, Literal)], repeats=True)
                return rest if factor == 1 else self.make("mul", literal(factor), rest)
            case (("floordiv" | "mod"), (a, Literal(value=1))):
                return a if node.op == "floordiv" else literal(0)
            case (("bitand" | "bitor" | "bitxor" | "min" | "max"), _):
                return self._joined(node.op, _flat(node.op, node), repeats=node.op == "bitxor")
            case "abs", (a,):
                upright = self._upright(_Sum.of(a))
                return apply("abs", self._rebuild(upright)) if upright.is_small else node
            case _:
                return node

    def _sum(self, node: Apply) -> Node:
        total = _Sum.of(node)
        return self._rebuild(total) if total.is_small else node

    def _upright(self, total: _Sum) -> _Sum:
        """The sum or its negative, by what does not depend on the order of atoms of equal key."""
        negative = _Sum({}, 0).plus(total, -1)

        def rank(one: _Sum) -> Any:
            return sorted((self.key(x), times) for x, times in one.multiples.items()), one.constant

        return max(total, negative, key=rank)

    def _rebuild(self, total: _Sum) -> Node:
        """The expression of a sum: what is added first, then what is subtracted, the number last."""
        atoms = sorted(total.multiples, key=lambda x: (self.key(x), total.multiples[x]))
        added = [x for x in atoms if total.multiples[x] > 0]
        subtracted = [x for x in atoms if total.multiples[x] < 0]

        def multiple(x: Node) -> Node:
            times = abs(total.multiples[x])
            return x if times == 1 else apply("mul", literal(times), x)

        parts = [("add", multiple(x)) for x in added] + [("sub", multiple(x)) for x in subtracted]
        if total.constant or not parts:
            parts.append(("add" if total.constant >= 0 else "sub", literal(abs(total.constant))))
        (sign, result), *rest = parts
        result = result if sign == "add" else apply("neg", result)
        for op, part in rest:
            result = apply(op, result, part)
        return result

    # Reals

    def _real(self, node: Apply) -> Node:
        match node.op, node.args:
            case "neg", (Apply(op="neg", args=(x,)),):
                return x
            case "add", (x, Apply(op="neg", args=(y,))) | (Apply(op="neg", args=(y,)), x):
                return self.make("sub", x, y)
            case "sub", (x, Apply(op="neg", args=(y,))):
                return self.make("add", x, y)
            case "sub", (x, Literal(value=value)):
                return x if value == 0 else self.make("add", x, literal(-value))
            case "mul" | "div", (Apply(op="neg", args=(x,)), y):
                return self.make("neg", self.make(node.op, x, y))
            case "mul" | "div", (x, Apply(op="neg", args=(y,))):
                return self.make("neg", self.make(node.op, x, y))
            case "mul" | "div", (x, Literal(value=value)) if value < 0:
                return self.make("neg", self.make(node.op, x, literal(-value)))
            case "mul", (Literal(value=value), y) if value < 0:
                return self.make("neg", self.make("mul", literal(-value), y))
            case "mul", (x, Literal(value=1.0)) | (Literal(value=1.0), x):
                return x
            case "div", (x, Literal(value=value)) if _is_power_of_two(float(value)):
                return self.make("mul", x, literal(1.0 / value))
            case "pow", (x, Literal(value=1.0)):
                return x
            case "abs", (Apply(op="neg" | "abs", args=(x,)),):
                return self.make("abs", x)
            case "abs", (Apply(op="sub", args=(a, b)),):
                return apply("abs", apply("sub", *sorted((a, b), key=self.key)))
            case "min" | "max", _:
                return self._joined(node.op, _flat(node.op, node))
            case "add" | "mul", args:
                return apply(node.op, *sorted(args, key=self.key))
            case _:
                return node

    # What may be regrouped

    def _joined(self, op: str, parts: Iterable[Node], repeats: bool = False) -> Node:
        """The chain of ``op`` over ``parts`` in order, each once unless ``repeats``."""
        first, *rest = sorted(parts if repeats else dict.fromkeys(parts), key=self.key)
        for part in rest:
            first = apply(op, first, part)
        return first


def _flat(op: str, node: Node) -> list[Node]:
    """The operands of a chain of one operation, however it is grouped."""
    parts, stack = [], [node]
    while stack:
        match stack.pop():
            case Apply(op=found, args=(a, b)) if found == op:
                stack += [b, a]
            case other:
                parts.append(other)
    return parts


def operands(node: Node) -> list[tuple[object, Node]]:
    """What a node in normal form is made of, each with its role; what may stand in any order has one role.

    A chain is made of its links' operands, a sum of ints of what is multiplied, whatever the sign.
    """
    match node:
        case Dot(a=a, b=b) | Apply(op="abs", args=(Apply(op="sub", kind=Kind.REAL, args=(a, b)),)):
            return [(0, a), (0, b)]
        case Apply() if _chain(node) == "sum":
            return [(abs(times), x) for x, times in _Sum.of(node).multiples.items()]
        case Apply(op=op) if op == _chain(node):
            return [(0, x) for x in _flat(op, node)]
        case Apply(op=op, args=args) if OPS[op].commutes:
            return [(0, x) for x in args]
        case _:
            return list(enumerate(node.children))


_CHAINS = frozenset({"and", "or", "min", "max", "bitand", "bitor", "bitxor"})


def _inner_links(roots: tuple[Node, ...]) -> set[Node]:
    """The nodes of chains that only the chain itself uses: they need no normal form of their own."""
    inner: set[Node] = set()
    ends: set[Node] = set()
    for node in postorder(*roots):
        chain = _chain(node)
        for child in node.children:
            is_link = chain is not None and _chain(child) == chain
            (inner if is_link else ends).add(child)
    return inner - ends - {*roots}


def _chain(node: Node) -> str | None:
    """What kind of chain ``node`` is a link of."""
    match node:
        case Apply(op=op) if op in _CHAINS:
            return op
        case Apply(op="add" | "sub" | "neg", kind=Kind.INT):
            return "sum"
        case Apply(op="mul", kind=Kind.INT, args=args):
            return "sum" if any(isinstance(x, Literal) for x in args) else "mul"
        case _:
            return None


def _is_power_of_two(value: float) -> bool:
    return value > 0 and math.frexp(value)[0] == 0.5 and abs(math.log2(value)) <= -_SMALLEST_POWER


class _Sum:
    """``sum(multiples[x] * x) + constant`` over ints."""

    def __init__(self, multiples: dict[Node, int], constant: int) -> None:
        self.multiples = {x: times for x, times in multiples.items() if times}
        self.constant = constant

    @property
    def is_small(self) -> bool:
        """Whether its numbers fit the ints of the language."""
        return all(abs(number) <= _LARGEST for number in (*self.multiples.values(), self.constant))

    def plus(self, other: _Sum, times: int) -> _Sum:
        """This plus ``times`` the other."""
        multiples = dict(self.multiples)
        for x, count in other.multiples.items():
            multiples[x] = multiples.get(x, 0) + times * count
        return _Sum(multiples, self.constant + times * other.constant)

    @classmethod
    def of(cls, node: Node) -> _Sum:
        """The sum that an expression spells."""
        total = cls({}, 0)
        stack: list[tuple[Node, int]] = [(node, 1)]
        while stack:
            match stack.pop():
                case (Literal(value=value), times):
                    total.constant += times * int(value)
                case (Apply(op="add", args=(a, b)), times):
                    stack += [(a, times), (b, times)]
                case (Apply(op="sub", args=(a, b)), times):
                    stack += [(a, times), (b, -times)]
                case (Apply(op="neg", args=(a,)), times):
                    stack.append((a, -times))
                case (Apply(op="mul", args=(Literal(value=value), a) | (a, Literal(value=value))), times):
                    stack.append((a, times * int(value)))
                case (other, times):
                    total.multiples[other] = total.multiples.get(other, 0) + times
        return cls(total.multiples, total.constant)
