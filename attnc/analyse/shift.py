"""Which terms can be summed relative to a running maximum, and relative to what.

A term is *homogeneous* if it is ``exp(-c)`` times something free of running maxima. A sum of such terms stays right
when the maxima grow, if it is multiplied by ``exp(c(old) - c(new))``; ``c`` must not fall as they grow, so that this
factor is at most 1. Nothing is ever split into ``exp(s) * exp(-c)``: only the fact is established here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from attnc.analyse.algebra import Sign, Where, addends, is_row, is_zero, sign_of, signed_sum, statistics
from attnc.ir.build import apply, literal
from attnc.ir.nodes import Apply, Literal, Node
from attnc.ir.traverse import postorder

Degree: TypeAlias = dict[Node, float]
"""``c`` as a sum of coefficients times row expressions of running maxima; empty if there is no dependence."""


@dataclass(frozen=True, slots=True)
class Shift:
    """``c`` (``None`` if the term depends on no running maximum) and the maxima that must be final beforehand."""

    expression: Node | None
    final: frozenset[Node]


def find_shift(term: Node, maxima: frozenset[Node], known: dict[Node, Sign]) -> Shift:
    """The shift of ``term``, with as many of ``maxima`` running as can be.

    A maximum under an operation that is not homogeneous cannot run; the others are tried again without it.
    """
    running = maxima
    while True:
        degree, stuck = _degrees(term, running, known)
        if not stuck and _falls(degree, running, known):
            stuck = running
        if not stuck:
            return Shift(_expression(degree or {}), maxima - running)
        running -= stuck


def _degrees(term: Node, running: frozenset[Node], known: dict[Node, Sign]) -> tuple[Degree | None, frozenset[Node]]:
    """The degree of ``term`` (``None``: it is 0, so of any degree), and the maxima that stand in the way."""
    degrees: dict[Node, Degree | None] = {}
    for node in postorder(term, stop=Where(lambda node: node in running or _is_still(node, running))):
        if _is_still(node, running):
            degrees[node] = None if is_zero(node) else {}
            continue
        try:
            degrees[node] = _degree(node, degrees, running, known)
        except _NotHomogeneous:
            continue
    if term in degrees:
        return degrees[term], frozenset()
    node = term
    while failed := [child for child in node.children if node not in running and child not in degrees]:
        node = failed[0]
    return None, running.intersection(statistics(node))


def _is_still(node: Node, running: frozenset[Node]) -> bool:
    """Whether no running maximum is part of ``node``."""
    return running.isdisjoint(statistics(node))


class _NotHomogeneous(Exception):
    pass


def _falls(degree: Degree | None, running: frozenset[Node], known: dict[Node, Sign]) -> bool:
    """Whether ``c`` may become less as the maxima grow."""
    for part, coefficient in (degree or {}).items():
        move = direction(part, running, known)
        if move is None or move * coefficient < 0:
            return True
    return False


def _degree(
    node: Node,
    degrees: Mapping[Node, Degree | None],
    running: frozenset[Node],
    known: dict[Node, Sign],
) -> Degree | None:
    """The degree of a node that depends on running maxima."""
    if node in running or not isinstance(node, Apply):
        raise _NotHomogeneous
    if node.op == "exp":
        return _degree_of_exp(node.args[0], running, known)
    if any(arg not in degrees for arg in node.args):
        raise _NotHomogeneous
    args = [degrees[arg] for arg in node.args]
    match node.op:
        case "mul":
            return None if None in args else _combine(args[0], args[1], 1.0)
        case "div" if args[1] is not None:
            return None if args[0] is None else _combine(args[0], args[1], -1.0)
        case "neg" | "abs" | "detach":
            return args[0]
        case "add" | "sub" | "max" | "min":
            return _same(args)
        case "where":
            return _same(args[1:])
        case "sign":
            return {}
        case "lt" | "le" | "gt" | "ge" | "eq" | "ne":
            _same(args)
            return {}
        case "and" | "or" | "not":
            return {}
        case "sqrt" | "rsqrt":
            return _combine({}, args[0], 0.5 if node.op == "sqrt" else -0.5)
        case "pow" if isinstance(node.args[1], Literal):
            return _combine({}, args[0], float(node.args[1].value))
        case _:
            raise _NotHomogeneous


def _degree_of_exp(x: Node, running: frozenset[Node], known: dict[Node, Sign]) -> Degree:
    degree: Degree = {}
    for sign, part in addends(x):
        if _is_still(part, running):
            continue
        if not is_row(part):
            raise _NotHomogeneous
        if direction(part, running, known) is None:
            raise _NotHomogeneous
        degree[part] = degree.get(part, 0.0) - sign
    return degree


def _combine(a: Degree | None, b: Degree | None, factor: float) -> Degree:
    total = dict(a or {})
    for part, coefficient in (b or {}).items():
        total[part] = total.get(part, 0.0) + factor * coefficient
    return {part: coefficient for part, coefficient in total.items() if coefficient}


def _same(args: list[Degree | None]) -> Degree | None:
    known = [arg for arg in args if arg is not None]
    if any(arg != known[0] for arg in known):
        raise _NotHomogeneous
    return known[0] if known else None


def _expression(degree: Degree) -> Node | None:
    """``c`` as a node, what is added before what is subtracted."""
    parts = [
        (1 if coefficient > 0 else -1, part if abs(coefficient) == 1 else apply("mul", literal(abs(coefficient)), part))
        for part, coefficient in degree.items()
    ]
    return signed_sum(parts) if parts else None


def direction(x: Node, running: frozenset[Node], known: dict[Node, Sign]) -> int | None:
    """How ``x`` moves when a running maximum grows: 1 up, -1 down, 0 not at all, ``None`` if that is not known."""
    if _is_still(x, running):
        return 0
    moves: dict[Node, int | None] = {}
    for node in postorder(x, stop=Where(lambda node: node in running or _is_still(node, running))):
        moves[node] = _move(node, moves, running, known)
    return moves[x]


def _move(
    node: Node, moves: Mapping[Node, int | None], running: frozenset[Node], known: dict[Node, Sign]
) -> int | None:
    if node in running:
        return 1
    if _is_still(node, running) or all(moves[child] == 0 for child in node.children):
        return 0
    match node:
        case Apply(op="add" | "max" | "min", args=(a, b)):
            return _together(moves[a], moves[b])
        case Apply(op="sub", args=(a, b)):
            return _together(moves[a], _against(moves[b]))
        case Apply(op="neg", args=(a,)):
            return _against(moves[a])
        case Apply(op="mul", args=(a, b)) if moves[b] == 0:
            return _scaled(moves[a], b, known)
        case Apply(op="mul", args=(a, b)) if moves[a] == 0:
            return _scaled(moves[b], a, known)
        case Apply(op="div", args=(a, b)) if moves[b] == 0:
            return _scaled(moves[a], b, known)
        case Apply(op="where", args=(condition, a, b)) if moves[condition] == 0:
            return _together(moves[a], moves[b])
        case _:
            return None


def _together(a: int | None, b: int | None) -> int | None:
    if a is None or b is None or a * b < 0:
        return None
    return a or b


def _against(a: int | None) -> int | None:
    return None if a is None else -a


def _scaled(move: int | None, factor: Node, known: dict[Node, Sign]) -> int | None:
    if isinstance(factor, Literal) and factor.value < 0:
        return _against(move)
    return move if sign_of(factor, known) is Sign.POSITIVE else None
