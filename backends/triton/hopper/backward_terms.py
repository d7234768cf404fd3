"""The terms of a walk in two parts: what is known before the products with the cotangent are, and the rest.

A term is written as ``early * rest``, where ``early`` are the factors without such products, in one order for all
terms. Of a walk ``sum p * d_out``, ``sum p * (dot(d_out, v) - delta) * q`` the tile ``p`` is early, and is all that is
kept while the product with the cotangent is awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from attnc.analyse.algebra import Sign, sign_of
from attnc.analyse.gradient.backward import Step, Sum, Walk
from attnc.backends.triton.adjoint import RAW
from attnc.backends.triton.rewrites import dots_of
from attnc.ir.build import apply
from attnc.ir.nodes import Apply, Dot, Kind, Node, Read
from attnc.ir.printer import expression
from attnc.ir.traverse import contains, postorder, substitute
from attnc.plan import TokenMap


@dataclass(frozen=True, slots=True)
class Split:
    """A walk in two parts.

    Attributes:
        early_dots, late_dots: the dot products of each part; those of the mask are early.
        tiles: what the early part computes: its distinct weights first, then what else is kept for the late part.
        late: the distinct weights of the late part.
        early: how many of ``tiles`` are weights.
        vanishes: whether late weights are 0 where the tiles are, up to what is not finite.
        sums, numbers: the sums of vectors and of numbers in the order of their weights, with these.
    """

    early_dots: tuple[Dot, ...]
    late_dots: tuple[Dot, ...]
    tiles: tuple[Node, ...]
    late: tuple[Node, ...]
    early: int
    vanishes: bool
    sums: tuple[tuple[Sum, int], ...]
    numbers: tuple[tuple[Sum, int], ...]


def cotangents(steps: Iterable[Step]) -> frozenset[str]:
    """The names of token vectors that the cotangent goes into."""
    found = {RAW}
    for step in steps:
        if isinstance(step, TokenMap) and step.expression.is_vector and _reads(step.expression, found):
            found.add(step.result.name)
    return frozenset(found)


def split_walk(walk: Walk, mask: Node, late_vectors: frozenset[str]) -> Split:
    """The walk with its terms in two parts."""
    is_late = _lateness(late_vectors)
    terms = {one.result.name: _regrouped(one.term, is_late) for one in walk.sums}
    weights = list(dict.fromkeys(terms.values()))
    early = [weight for weight in weights if not contains(weight, is_late)]
    late = [weight for weight in weights if contains(weight, is_late)]
    kept: dict[Node, None] = dict.fromkeys(early)
    vanishes = True
    for weight in late:
        factors = _kept(weight, is_late)
        kept |= dict.fromkeys(factors)
        vanishes = vanishes and isinstance(weight, Apply) and weight.op == "mul" and weight.args[0] in factors
    dots = dots_of((*early, *kept, mask, *late))
    order = {weight: at for at, weight in enumerate((*early, *late))}
    ranked = sorted(((one, order[terms[one.result.name]]) for one in walk.sums), key=lambda pair: pair[1])
    return Split(
        tuple(dot for dot in dots if not is_late(dot)),
        tuple(dot for dot in dots if is_late(dot)),
        tuple(kept),
        tuple(late),
        len(early),
        vanishes,
        tuple(pair for pair in ranked if pair[0].value is not None),
        tuple(pair for pair in ranked if pair[0].value is None),
    )


def find_shared(one: Sum, parts: Split, late_vectors: frozenset[str]) -> int | None:
    """The place among the late weights of a walk of the term of another walk's sum."""
    term = _regrouped(one.term, _lateness(late_vectors))
    return parts.early + parts.late.index(term) if term in parts.late else None


def _lateness(late_vectors: frozenset[str]) -> Callable[[Node], bool]:
    return lambda node: isinstance(node, Dot) and _reads(node, late_vectors)


def _reads(node: Node, names: Iterable[str]) -> bool:
    return contains(node, lambda part: isinstance(part, Read) and part.is_vector and part.input.name in names)


def _regrouped(term: Node, is_late: Callable[[Node], bool]) -> Node:
    """``early * rest``."""
    factors = sorted(_factors(term), key=expression)
    early = [one for one in factors if _varies(one) and not contains(one, is_late)]
    rest = [one for one in factors if one not in early]
    products = [reduce(lambda a, b: apply("mul", a, b), part) for part in (early, rest) if part]
    if len(products) == 2 and (sign := _sign_among(early)) is not None:
        products[1] = substitute(products[1], {sign: apply("sign", products[0])})
    return reduce(lambda a, b: apply("mul", a, b), products)


def _sign_among(factors: Sequence[Node]) -> Node | None:
    """The factor that is a sign, where the others are positive: their product has it, and need not be kept beside."""
    signs = [one for one in factors if isinstance(one, Apply) and one.op == "sign"]
    others = [one for one in factors if one not in signs]
    return signs[0] if len(signs) == 1 and all(sign_of(one, {}) is Sign.POSITIVE for one in others) else None


def _factors(node: Node) -> Sequence[Node]:
    match node:
        case Apply(op="mul", args=(a, b)):
            return (*_factors(a), *_factors(b))
    return (node,)


def _varies(node: Node) -> bool:
    """Whether a factor is worth a tile: it has been multiplied or read by pair."""
    return contains(node, lambda part: isinstance(part, Dot | Read) and {"i", "j"} <= part.axes)


def _kept(weight: Node, is_late: Callable[[Node], bool]) -> list[Node]:
    """The largest real parts of a late weight that are early and worth a tile; signs of such are seen from them."""
    found: list[Node] = []
    stack, seen = [weight], set[Node]()
    while stack:
        node = stack.pop()
        if node in seen or not _varies(node):
            continue
        seen.add(node)
        if isinstance(node, Apply) and node.op == "sign" and node.args[0] in found:
            continue
        if node.kind is Kind.REAL and not contains(node, is_late):
            found.append(node)
        elif not isinstance(node, Dot):
            stack.extend(reversed(node.children))
    return found


def line_reads(over: str, *roots: Node) -> tuple[Read, ...]:
    """Reads of reals that depend on the inner token alone."""
    inner, outer = ("j", "i") if over == "keys" else ("i", "j")
    reads = (node for node in postorder(*roots) if isinstance(node, Read) and not node.is_vector)
    return tuple(node for node in reads if node.kind is Kind.REAL and inner in node.axes and outer not in node.axes)
