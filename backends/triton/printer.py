"""Expressions of the IR as statements of a slot.

Scalars are written in dependency order, each node once: short single uses go into the expression that uses them,
everything else becomes a variable. Vectors are written by pulling: the value at given lanes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from attnc.backends.triton.environment import Environment, identifier
from attnc.backends.triton.forms import AND, ATOM, FORMS, OR, PRODUCT, REAL_FORMS, SHIFT, SUM, UNARY, number
from attnc.backends.triton.rewrites import factored
from attnc.grammar.source import Span
from attnc.ir.fold import fold
from attnc.ir.nodes import (
    Apply,
    Dot,
    Index,
    Kind,
    Literal,
    MatVec,
    Node,
    Param,
    Read,
    Reduce,
    Rope,
    Size,
    Slice,
)

LOG2E = math.log2(math.e)
MINUS_INFINITY = 'float("-inf")'
_LONG = 72
_NAMES = {
    "where": "chosen", "or": "either", "and": "both", "not": "negated", "add": "total", "sub": "difference",
    "mul": "product", "div": "ratio", "exp": "power", "real": "number", "lt": "less", "le": "at_most",
    "gt": "greater", "ge": "at_least", "eq": "equal", "ne": "unequal",
}  # fmt: skip

_UNIT = 1e-12
"""How near 1 a factor in float64 is 1."""
_EXACT = {("b", "B"), ("h", "H"), ("g", "G"), ("row", "M"), ("j", "N")}
"""Indices that are within their dimension by how kernels make them."""


@dataclass(frozen=True, slots=True)
class Text:
    """An expression and how tightly it binds."""

    text: str
    binding: int = ATOM

    def within(self, power: int) -> str:
        """The text, in parentheses where something of ``power`` surrounds it."""
        return self.text if self.binding >= power else f"({self.text})"


@dataclass(frozen=True, slots=True)
class Lane:
    """The elements of a vector at which it is wanted: an expression of shape ``[1, n]`` and its range ``[lo, hi)``."""

    text: Text
    lo: int
    hi: int

    def shifted(self, by: int) -> Lane:
        if by == 0:
            return self
        sign = "+" if by > 0 else "-"
        return Lane(Text(f"{self.text.within(SUM)} {sign} {abs(by)}", SUM), self.lo + by, self.hi + by)


@dataclass(slots=True)
class Printer:
    """The statements of one slot.

    ``known`` holds the texts of nodes that the slot is given. ``spans`` become comments with the spec's lines.
    ``lanes`` collects the widths (powers of two) of the lane ranges that vectors are reduced over. ``by_keys`` says
    that the slot is about a tile of keys and knows whether it is ``MASKED``.
    """

    env: Environment
    known: dict[Node, Text] = field(default_factory=dict)
    spans: Mapping[Node, Span] = field(default_factory=dict)
    by_keys: bool = False
    taken: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    bindings: dict[str, str] = field(default_factory=dict)
    lanes: list[int] = field(default_factory=list)
    uses: Counter[Node] = field(default_factory=Counter)
    memo: dict[tuple[Node, Lane | None], Text] = field(default_factory=dict)
    vectors: dict[Node, Text] = field(default_factory=dict)
    inverses: dict[Node, Text] = field(default_factory=dict)

    def expect(self, *roots: Node) -> None:
        """Count the uses in ``roots``, so that what is used twice becomes a variable."""
        self.uses.update(set(roots))
        for node in self._ordered(*roots):
            self.uses.update(_needs(node) if node not in self.known else ())

    def child(self, known: Mapping[Node, Text]) -> Printer:
        """A printer that adds to the same statements, with other values of some nodes."""
        return Printer(
            self.env, {**self.known, **known}, self.spans, self.by_keys, self.taken, self.lines, self.bindings,
            self.lanes, self.uses,
        )  # fmt: skip

    def given(self, name: str, what: str) -> str:
        """``name`` for something that an argument of the slot holds."""
        self.bindings.setdefault(name, what)
        self.taken.add(name)
        return name

    def variable(self, wanted: str, text: Text, node: Node | None = None) -> Text:
        """A statement that gives ``text`` a name."""
        name = identifier(wanted, self.taken | set(self.env.names))
        self.taken.add(name)
        span = self.spans.get(node) if node is not None else None
        self.lines.append(f"{name} = {text.text}" + (f"  # {_place(span)}" if span else ""))
        return Text(name)

    def scalar(self, root: Node) -> Text:
        """An expression for a scalar."""
        for node in self._ordered(root):
            if not node.is_vector and (node, None) not in self.memo:
                self.memo[node, None] = self._named(node, self._scalar(node))
        return self.memo[root, None]

    def _ordered(self, *roots: Node) -> Iterator[Node]:
        """The nodes that ``roots`` are written from, each after what it needs; not below what is known or done."""
        seen: set[Node] = set()
        stack = [(root, False) for root in reversed(roots)]
        while stack:
            node, ready = stack.pop()
            if ready:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                if node not in self.known and (node, None) not in self.memo:
                    stack.extend((need, False) for need in reversed(_needs(node)))

    def scalars(self, roots: Iterable[Node]) -> list[Text]:
        return [self.scalar(root) for root in roots]

    def _named(self, node: Node, text: Text) -> Text:
        if isinstance(node, Literal | Index | Size | Param) or node in self.known or text.text.isidentifier():
            return text
        if self.uses[node] < 2 and len(text.text) <= _LONG:
            return text
        return self.variable(_wanted(node), text, node)

    def _scalar(self, node: Node) -> Text:
        if node in self.known:
            return self.known[node]
        match node:
            case Literal(value=value):
                return Text(number(value), ATOM if value >= 0 else UNARY)
            case Index(name=name):
                return Text(name)
            case Size(name="i_lo" | "i_hi" | "j_lo" | "j_hi" as name):
                return Text(name)
            case Size(name=name):
                return Text(self.given(*self.env.size(name)))
            case Param(name=name, kind=kind):
                return Text(self.given(*self.env.parameter(name, kind)))
            case Apply(op="exp", args=(x,)):
                return self._exp(x, Text(""))
            case Apply(op="sigmoid", args=(x,)):
                return Text(f"lib.sigmoid2({self._power(x, -LOG2E)})")
            case Apply():
                return self._apply(node, [self.memo[arg, None] for arg in node.args])
            case Read():
                return self._read(node, None)
            case Reduce(op=op, over="d", x=x):
                return self._over_lanes(x, lambda lane: self.vector(x, lane), op)
            case Dot(a=a, b=b):
                return self._over_lanes(a, lambda lane: self._product(a, b, lane), "sum")
        raise AssertionError(f"{type(node).__name__} is no scalar that this backend prints")

    def _product(self, a: Node, b: Node, lane: Lane) -> Text:
        return Text(f"{self.vector(a, lane).within(PRODUCT)} * {self.vector(b, lane).within(PRODUCT + 1)}", PRODUCT)

    def _apply(self, node: Apply, texts: list[Text]) -> Text:
        if isinstance(folded := fold(node), Literal):
            return Text(number(folded.value), ATOM if folded.value >= 0 else UNARY)
        match node.op, node.args:
            case "exp", (x,):
                return self._exp(x, texts[0])
            case "pow", (_, Literal(value=exponent)) if exponent in (1, 2, 3, 4):
                base = texts[0] if texts[0].text.isidentifier() else self.variable("base", texts[0])
                return Text(" * ".join([base.text] * int(exponent)), PRODUCT)
            case "pow", (_, Literal(value=0.5)):
                return Text(f"tl.sqrt({texts[0].text})")
            case "pow", (_, Literal(value=exponent)) if exponent != 0:
                return Text(f"lib.power_fixed({texts[0].text}, {number(float(exponent))})")
            case "floordiv", (_, Literal(value=int(by))) if by > 0 and by & (by - 1) == 0:
                return Text(f"{texts[0].within(SHIFT)} >> {by.bit_length() - 1}", SHIFT) if by > 1 else texts[0]
            case "mod", (first, Literal(value=int(by))) if by > 0 and by & (by - 1) == 0 and first.kind is Kind.INT:
                return Text(f"{texts[0].within(AND)} & {by - 1}", AND)
            case "div", (_, Literal(value=divisor)) if abs(divisor) > 1e-30:
                return Text(f"{texts[0].within(PRODUCT)} * {number(1.0 / divisor)}", PRODUCT)
            case "detach", _:
                return texts[0]
            case "mul", (Apply(op="sign", args=(x,)), _) if node.kind is Kind.REAL and x.kind is Kind.REAL:
                return Text(f"lib.with_sign({texts[1].text}, {self.memo[x, None].text})")
            case "real", (distance,) if self.by_keys and (rest := minus_key(distance)) is not None:
                return Text(f"lib.minus_keys({self.scalar(rest).text}, j, MASKED)")
        form = REAL_FORMS.get(node.op, FORMS[node.op]) if node.kind is Kind.REAL else FORMS[node.op]
        given = [text.within(power) for text, power in zip(texts, form.operands, strict=True)]
        return Text(form.text.format(*given), form.binding)

    def _exp(self, x: Node, text: Text) -> Text:
        """``exp(x)`` as a power of 2."""
        if x.is_vector:
            return Text(f"tl.exp2({text.within(PRODUCT)} * {LOG2E})")
        return Text(f"tl.exp2({self._power(x, LOG2E)})")

    def _power(self, x: Node, by: float) -> str:
        """``x * by``: constant factors and a shift by row go into one multiply-add a pair."""
        texts: list[str] = []
        for factor, rest in terms_of(x):
            factor *= by
            if isinstance(rest, Literal):
                factor, text = float(rest.value) * factor, ""
            else:
                text = self.scalar(rest).within(PRODUCT)
            sign = "" if not texts else " - " if factor < 0 else " + "
            size = abs(factor) if sign else factor
            times = number(size) if not text else "" if abs(size - 1.0) < _UNIT else f" * {number(size)}"
            texts.append(f"{sign}{text}{times}")
        return "".join(texts)

    def _read(self, node: Read, lane: Lane | None) -> Text:
        """An element of a tensor, 0 where an index is outside of it."""
        source = node.input
        pointer = self.given(*self.env.tensor(source))
        terms, checks = [], []
        last = len(source.dims) - 1
        for dim, (extent, index) in enumerate(zip(source.dims, node.indices, strict=True)):
            if index is None:
                assert lane is not None
                at, lo, hi = lane.text, lane.lo, lane.hi
            else:
                at, lo, hi = self.scalar(index), None, None
                if isinstance(index, Literal):
                    lo, hi = int(index.value), int(index.value) + 1
            known = int(extent.value) if isinstance(extent, Literal) else None
            exact = isinstance(index, Index) and isinstance(extent, Size) and (index.name, extent.name) in _EXACT
            if not exact and (lo is None or lo < 0):
                checks.append(f"({at.within(OR)} >= 0)")
            if not exact and (hi is None or known is None or hi > known):
                bound = number(known) if known is not None else self.given(*self.env.extent(source, dim))
                checks.append(f"({at.within(OR)} < {bound})")
            if at.text == "0":
                continue
            if dim == last:
                terms.append(at.within(SUM + 1))
            else:
                stride = self.given(*self.env.stride(source, dim))
                terms.append(f"{at.within(PRODUCT)} * {stride}")
        address = " + ".join([pointer, *terms])
        if checks:
            other = {Kind.REAL: "0.0", Kind.INT: "0", Kind.BOOL: "False"}[source.kind]
            address += f", mask={' & '.join(checks)}, other={other}"
        cast = ".to(tl.float32)" if source.kind is Kind.REAL else ""
        return self.variable(f"{source.name}_at", Text(f"tl.load({address}){cast}"), node)

    def vector(self, node: Node, lane: Lane) -> Text:
        """An expression for a vector at ``lane``: ``[tokens, n]``, or less where it is the same for all."""
        if not node.is_vector:
            return self.scalar(node)
        if node in self.vectors:
            return self.vectors[node]
        if (node, lane) not in self.memo:
            text = self._vector(node, lane)
            if len(text.text) > _LONG:
                text = self.variable(_wanted(node), text, node)
            self.memo[node, lane] = text
        return self.memo[node, lane]

    def _vector(self, node: Node, lane: Lane) -> Text:
        match node:
            case Apply(op="div", args=(x, by)) if not by.is_vector and not isinstance(by, Literal):
                if by not in self.inverses:  # one division a token, not one a lane
                    text = f"1.0 / {self.scalar(by).within(PRODUCT + 1)}"
                    self.inverses[by] = self.variable("inverse", Text(text), node)
                return Text(f"{self.vector(x, lane).within(PRODUCT)} * {self.inverses[by].text}", PRODUCT)
            case Apply(args=args):
                return self._apply(node, [self.vector(arg, lane) for arg in args])
            case Read():
                return self._read(node, lane)
            case Slice(x=x, lo=Literal(value=lo)):
                return self.vector(x, lane.shifted(int(lo)))
            case Rope():
                return self._rope(node, lane)
            case MatVec(x=x, matrix=matrix):
                return self._matvec(x, matrix, lane)
        raise AssertionError(f"{type(node).__name__} is no vector that this backend prints")

    def _rope(self, node: Rope, lane: Lane) -> Text:
        rotated = int(node.rotated.value) if isinstance(node.rotated, Literal) else 0
        half = rotated // 2
        at = lane.text.within(SUM)
        one, first = f"{at} < {rotated}", f"{at} < {half}"
        other = self.variable("partner", Text(f"tl.where({first}, {at} + {half}, {at} - {half})"))
        partner = Lane(other, 0, max(lane.hi - half, rotated))
        x, y = self.vector(node.x, lane), self.vector(node.x, partner)
        position, base = self.scalar(node.position), self.scalar(node.base)
        pair = self.variable("pair", Text(f"tl.where({first}, {at}, {at} - {half})"))
        turn = Text(f"lib.rope_angle({position.text}, {pair.text}, {base.text}, {rotated})")
        angle = self.variable("angle", turn, node)
        sine = self.variable("sine", Text(f"tl.where({first}, -lib.sin({angle.text}), lib.sin({angle.text}))"))
        x = x if x.text.isidentifier() else self.variable("x", x)
        turned = f"{x.text} * lib.cos({angle.text}) + {y.within(PRODUCT)} * {sine.text}"
        return self.variable("turned", Text(f"tl.where({one}, {turned}, {x.text})" if lane.hi > rotated else turned))

    def _range(self, width: int) -> tuple[Lane, str | None]:
        """All lanes of a vector, and the condition that tells them from padding."""
        padded = 1 << (width - 1).bit_length()
        if padded not in self.lanes:
            self.lanes.append(padded)
        name = self.given(f"lanes_{padded}", f"lanes[{self.lanes.index(padded)}]")
        return Lane(Text(name), 0, padded), None if padded == width else f"{name} < {width}"

    def _over_lanes(self, x: Node, value: Callable[[Lane], Text], op: str) -> Text:
        lane, valid = self._range(static(x.width))
        text = value(lane).text
        if valid:
            nothing = "0.0" if op == "sum" else MINUS_INFINITY
            text = f"tl.where({valid}, {text}, {nothing})"
        total = self.variable("whole", Text(f"lib.over_lanes({text}, row, {lane.text.text})"))
        return self.variable("total", Text(f"tl.{op}({total.text}, 1)[:, None]"))

    def _matvec(self, x: Node, matrix: Read, lane: Lane) -> Text:
        inner, valid = self._range(static(x.width))
        vector = self.vector(x, inner).text
        if valid:
            vector = f"tl.where({valid}, {vector}, 0.0)"
        left = self.variable("vector", Text(f"lib.over_lanes({vector}, row, {inner.text.text})"))
        down = Lane(self.variable("down", Text(f"tl.trans({inner.text.text})")), inner.lo, inner.hi)
        right = self._matrix(matrix, down, lane)
        return self.variable("product", Text(f"lib.matmul({left.text}, {right.text})"))

    def _matrix(self, node: Read, down: Lane, across: Lane) -> Text:
        """A matrix at rows ``down [n, 1]`` and columns ``across [1, m]``."""
        rows = iter((down, across))
        source = node.input
        pointer = self.given(*self.env.tensor(source))
        terms, checks = [], []
        for dim, (extent, index) in enumerate(zip(source.dims, node.indices, strict=True)):
            at = next(rows) if index is None else None
            text = at.text if at else self.scalar(index)  # type: ignore[arg-type]
            bound = number(static(extent)) if isinstance(extent, Literal) else self.given(*self.env.extent(source, dim))
            checks.append(f"({text.within(OR)} >= 0) & ({text.within(OR)} < {bound})")
            last = dim == len(source.dims) - 1
            stride = "" if last else f" * {self.given(*self.env.stride(source, dim))}"
            terms.append(f"{text.within(PRODUCT)}{stride}")
        address = f"{' + '.join([pointer, *terms])}, mask={' & '.join(checks)}, other=0.0"
        return self.variable("matrix", Text(f"tl.load({address}).to(tl.float32)"), node)


def static(width: Node | None) -> int:
    """The number of a width."""
    assert isinstance(width, Literal), "widths are literals once a plan is specialised"
    return int(width.value)


def shifted(x: Node) -> tuple[Node, Node] | None:
    """The parts of ``a - b`` where only ``a`` varies with the key."""
    match x:
        case Apply(op="sub", args=(a, b)) if "j" in a.axes and "j" not in b.axes:
            return a, b
    return None


def terms_of(x: Node) -> list[tuple[float, Node]]:
    """``x`` as products with numbers to add up: one, or what varies with the key and what does not."""
    factor, rest = factored(x)
    if (parts := shifted(rest)) is None:
        return [(factor, rest)]
    (c, a), (d, b) = map(factored, parts)
    return [(factor * c, a), (-factor * d, b)]


def minus_key(x: Node) -> Node | None:
    """``rest`` of a difference ``rest - j`` over the pairs."""
    match x:
        case Apply(op="sub", args=(rest, Index(name="j"))) if "i" in rest.axes and "j" not in rest.axes:
            return rest
    return None


def _needs(node: Node) -> tuple[Node, ...]:
    """The scalars that ``node`` is written from: its children, except where the printer looks through them."""
    match node:
        case Apply(op="exp" | "sigmoid", args=(x,)) if not node.is_vector:
            return tuple(rest for _, rest in terms_of(x) if not isinstance(rest, Literal))
    return node.children


def _wanted(node: Node) -> str:
    """A telling name for the value of a node."""
    match node:
        case Apply(op=op):
            return _NAMES.get(op, op)
        case _:
            return type(node).__name__.lower()


def _place(span: Span) -> str:
    return f"{span.source.name}:{span.line}"
