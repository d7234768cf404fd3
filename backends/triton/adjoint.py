"""The steps of a derived backward as kernels take them: work on one token in maps, factors where they cost least.

A term is written as ``number * rest / divisors``. The number is multiplied to the sum instead of to every pair. A
positive divisor that is the same for all keys goes into the exponent of the term, ``exp(x - m) / l`` becoming
``exp(x - (m + log(l)))``, so that the softmax costs the backward what it costs FlashAttention's; other divisors become
factors ``1 / l``. What depends on one token alone and has to be loaded or computed becomes a map, one number a token.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import reduce

from attnc.analyse.algebra import Sign, sign_of
from attnc.analyse.bounded import is_bounded
from attnc.analyse.gradient.backward import Backward, Scatter, Step, Sum, Walk, results_of
from attnc.analyse.gradient.derive import AT_ROW, ROW
from attnc.analyse.hoist import is_plain
from attnc.ir.build import apply, dot, index, literal, read, reduce_keys, size, state
from attnc.ir.nodes import Apply, Dot, Input, Kind, Literal, Node, Read, Reduce
from attnc.ir.traverse import contains, postorder, rebuild, substitute
from attnc.plan import TokenMap

LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453
RAW = "d_out"
"""What is read beside q, k and v as vectors of tokens, without a copy."""


@dataclass(frozen=True, slots=True)
class Product:
    """``number * rest / divisors``."""

    number: float
    rest: Node
    divisors: tuple[Node, ...] = ()

    def join(self) -> Node:
        if self.rest is literal(1.0) and not self.divisors:
            return literal(self.number)
        node = reduce(lambda a, b: apply("div", a, b), self.divisors, self.rest)
        return node if self.number == 1.0 else apply("mul", node, literal(self.number))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What kernels compute.

    Attributes:
        mask: the pair predicate.
        steps: in order, maps included.
        numbers: what the results of walks and scatters are multiplied by.
        bounded: results whose terms float16 holds: provably, or as far as it holds gradients at all. What is
            proportional to ``d_out`` overflows to infinity, as gradients in float16 do elsewhere, and is then seen.
    """

    mask: Node
    steps: tuple[Step, ...]
    numbers: dict[str, float]
    bounded: frozenset[str]


def prepare(backward: Backward) -> Prepared:
    """The steps of a backward, its maps and numbers apart."""
    return _Preparation(backward).run()


@dataclass(slots=True)
class _Preparation:
    backward: Backward
    taken: set[str] = field(default_factory=set)
    signs: dict[Node, Sign] = field(default_factory=dict)
    maps: dict[Node, Node] = field(default_factory=dict)
    products: dict[Node, Product] = field(default_factory=dict)
    made: list[Step] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    bounded: set[str] = field(default_factory=set)
    exponentials: dict[Node, Node] = field(default_factory=dict)
    """The terms of sums that were saved, and the reads of those sums."""
    shares: set[Node] = field(default_factory=set)
    """Terms divided by their sums: between 0 and 1."""

    def run(self) -> Prepared:
        program = self.backward.plan.program
        self.taken |= {source.name for source in (*program.inputs, *self.backward.reads)}
        self.taken |= {one.name for one in program.parameters} | set(program.extents)
        self.taken |= {result.name for step in self.backward.steps for result in results_of(step)}
        self._learn_signs()
        mask = self._mapped(self.backward.plan.mask)
        for step in self.backward.steps:
            match step:
                case TokenMap():
                    self.made.append(step)
                case Walk(sums=sums):
                    self.made.append(replace(step, sums=tuple(map(self._sum, sums))))
                case Scatter(term=term, result=result, indices=indices):
                    product = self._product(term)
                    term = self._mapped(self._without_divisors(product))
                    indices = tuple(map(self._mapped, indices))
                    self.made.append(Scatter(result, term, indices))
                    self.numbers[result.name] = product.number
        return Prepared(mask, tuple(self.made), self.numbers, frozenset(self.bounded))

    def _learn_signs(self) -> None:
        """Signs and terms of the saved sums, for what reads them."""
        known: dict[Node, Sign] = {}
        reads: dict[Node, Node] = {}
        for step in self.backward.plan.passes:
            for one in step.statistics:
                sign = known[state(one.name)] = sign_of(reduce_keys(one.op, one.term), known)
                saved = reads[state(one.name)] = read(Input(f"saved_{one.name}", Kind.REAL, ROW), AT_ROW)
                self.signs[saved] = sign
                if one.op == "sum":
                    self.exponentials[self._product(substitute(one.term, reads)).rest] = saved

    def _sum(self, one: Sum) -> Sum:
        product = self._product(one.term)
        self.numbers[one.result.name] = product.number
        term = self._without_divisors(product)
        if self._is_share(term) or contains(term, _meets_cotangent):
            self.bounded.add(one.result.name)
        return Sum(
            one.result, self._mapped(term), None if one.value is None else self._mapped(self._product(one.value).join())
        )

    # Terms as products

    def _product(self, root: Node) -> Product:
        for node in postorder(root, stop=self.products):
            if node not in self.products:
                self.products[node] = self._split(node)
        return self.products[root]

    def _split(self, node: Node) -> Product:
        children = tuple(self.products[child].join() for child in node.children)
        if node.is_vector or node.kind is not Kind.REAL:
            return Product(1.0, rebuild(node, children))
        match node:
            case Literal(value=value) if value != 0:
                return Product(float(value), literal(1.0))
            case Apply(op="neg", args=(a,)):
                product = self.products[a]
                return replace(product, number=-product.number)
            case Apply(op="mul", args=(a, b)):
                x, y = self.products[a], self.products[b]
                rest = y.rest if x.rest is literal(1.0) else x.rest
                if literal(1.0) not in (x.rest, y.rest):
                    rest = apply("mul", x.rest, y.rest)
                return Product(x.number * y.number, rest, x.divisors + y.divisors)
            case Apply(op="div", args=(a, b)):
                x, y = self.products[a], self.products[b]
                if y.divisors:
                    return Product(x.number, x.rest, (*x.divisors, children[1]))
                below = () if y.rest is literal(1.0) else (y.rest,)
                return Product(x.number / y.number, x.rest, x.divisors + below)
            case Apply(op="add" | "sub" as op, args=(a, b)):
                return _added(self.products[a], self.products[b], op)
            case Dot(a=_, b=_):
                return _pulled(*children)
        return Product(1.0, rebuild(node, children))

    def _without_divisors(self, product: Product) -> Node:
        node = product.rest
        for divisor in product.divisors:
            folded = _in_exponent(node, divisor) if self._is_positive_row(divisor) else None
            if folded and any(self._is_part(factor, divisor) for factor in _factors(node)):
                self.shares |= set(_factors(folded)) - set(_factors(node))
            node = folded or apply("mul", node, apply("div", literal(1.0), divisor))
        return node

    def _is_part(self, term: Node, total: Node) -> bool:
        """Whether ``total`` is the sum of such terms, perhaps and more."""
        addends = total.children if isinstance(total, Apply) and total.op == "add" else (total,)
        positive = all(sign_of(addend, self.signs) is not Sign.UNKNOWN for addend in addends)
        return positive and self.exponentials.get(term) in addends

    def _is_share(self, term: Node) -> bool:
        """Whether a term is provably within [-1, 1]."""
        return all(factor in self.shares or is_bounded(factor, {}) for factor in _factors(term))

    def _is_positive_row(self, divisor: Node) -> bool:
        return "j" not in divisor.axes and sign_of(divisor, self.signs) is Sign.POSITIVE

    # Maps of tokens

    def _mapped(self, root: Node) -> Node:
        found: dict[Node, Node] = {}
        stack, seen = [root], set[Node]()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if (shift := _shift_of(node)) is not None and shift not in found:
                found[shift] = apply("mul", self._map(apply("mul", shift, literal(LOG2E))), literal(LN2))
            if node in found:
                continue
            if _deserves_map(node):
                found[node] = self._map(node)
            elif not _is_raw(node):
                stack.extend(node.children)
        return substitute(root, found)

    def _map(self, node: Node) -> Node:
        if node not in self.maps:
            side = "key" if "j" in node.axes else "query"
            per = "H" if side == "query" or contains(node, lambda part: part is index("h")) else "G"
            number = 0
            while (name := f"map{number}") in self.taken:
                number += 1
            self.taken.add(name)
            dims = (size("B"), size(per), size("M" if side == "query" else "N"))
            at = (index("b"), index("h" if per == "H" else "g"), index("row" if side == "query" else "j"))
            width = () if node.width is None else (node.width,)
            result = Input(name, Kind.REAL, (*dims, *width))
            self.made.append(TokenMap(result, side, per, node))  # type: ignore[arg-type]
            self.maps[node] = read(result, (*at, *(None for _ in width)))
        return self.maps[node]


def _shift_of(node: Node) -> Node | None:
    """What an exponent is shifted by and a map holds: it is held in units of powers of 2, as kernels take them."""
    match node:
        case Apply(op="exp", args=(Apply(op="sub", args=(_, shift)),)) if _deserves_map(shift):
            return shift
    return None


def _added(a: Product, b: Product, op: str) -> Product:
    """A sum with what its addends have in common outside."""
    common = tuple((Counter(a.divisors) & Counter(b.divisors)).elements())
    x, y = (_less(one, common) for one in (a, b))
    y = replace(y, number=-y.number) if op == "sub" else y
    if x.number == y.number:
        return Product(x.number, apply("add", _unit(x), _unit(y)), common)
    if x.number == -y.number:
        first, second = (x, y) if x.number > 0 else (y, x)
        return Product(first.number, apply("sub", _unit(first), _unit(second)), common)
    if y.number < 0:
        return Product(1.0, apply("sub", x.join(), replace(y, number=-y.number).join()), common)
    return Product(1.0, apply("add", x.join(), y.join()), common)


def _unit(product: Product) -> Node:
    return replace(product, number=1.0).join()


def _less(product: Product, common: tuple[Node, ...]) -> Product:
    return replace(product, divisors=tuple((Counter(product.divisors) - Counter(common)).elements()))


def _pulled(a: Node, b: Node) -> Product:
    """``dot(x * c / d, y)`` as ``dot(x, y) * c / d``, where ``x`` is then a vector that kernels load as it is."""
    number, factors, divisors, cores = 1.0, list[Node](), list[Node](), list[Node]()
    for vector in (a, b):
        x, above, below, by = vector, list[Node](), list[Node](), 1.0
        while True:
            match x:
                case Apply(op="neg", args=(inner,)):
                    x, by = inner, -by
                case Apply(op="mul", args=(factor, inner)) | Apply(op="mul", args=(inner, factor)) if (
                    not factor.is_vector
                ):
                    above.append(factor)
                    x = inner
                case Apply(op="div", args=(inner, factor)) if inner.is_vector and not factor.is_vector:
                    below.append(factor)
                    x = inner
                case _:
                    break
        if _is_raw(x) or not {"i", "j"} <= (a.axes | b.axes):
            cores.append(x)
            number *= by
            factors += above
            divisors += below
        else:
            cores.append(vector)
    rest = dot(*cores)
    for factor in factors:
        if isinstance(factor, Literal):
            number *= float(factor.value)
        else:
            rest = apply("mul", rest, factor)
    return Product(number, rest, tuple(divisors))


def _in_exponent(node: Node, divisor: Node) -> Node | None:
    """``node / divisor`` with the divisor in the exponent of a factor of ``node``; best of one with a shift by row."""
    return _folded(node, divisor, True) or _folded(node, divisor, False)


def _folded(node: Node, divisor: Node, shifted: bool) -> Node | None:
    match node:
        case Apply(op="mul", args=(a, b)):
            if (folded := _folded(b, divisor, shifted)) is not None:
                return apply("mul", a, folded)
            return None if (folded := _folded(a, divisor, shifted)) is None else apply("mul", folded, b)
        case Apply(op="exp", args=(Apply(op="sub", args=(x, shift)),)) if "i" in shift.axes and "j" not in shift.axes:
            return apply("exp", apply("sub", x, apply("add", shift, apply("log", divisor))))
        case Apply(op="exp", args=(x,)) if "j" in x.axes and not shifted:
            return apply("exp", apply("sub", x, apply("log", divisor)))
    return None


def _factors(node: Node) -> tuple[Node, ...]:
    match node:
        case Apply(op="mul", args=(a, b)):
            return (*_factors(a), *_factors(b))
    return (node,)


def _meets_cotangent(node: Node) -> bool:
    return isinstance(node, Dot) and contains(node, lambda part: isinstance(part, Read) and part.input.name == RAW)


def _is_raw(node: Node) -> bool:
    """Whether kernels load a vector as it is."""
    return is_plain(node) or (isinstance(node, Read) and node.is_vector and node.input.name == RAW)


def _deserves_map(node: Node) -> bool:
    if node.kind is not Kind.REAL or {"i", "j"} <= node.axes or _is_raw(node):
        return False
    if node.is_vector:
        return not (isinstance(node, Read) and node.indices.count(None) == 2)
    if isinstance(node, Read | Literal):
        return False
    loads = contains(node, lambda part: isinstance(part, Read | Dot | Reduce))
    return loads and (bool({"i", "j"} & node.axes) or contains(node, lambda part: part.is_vector))
