"""Hypothesis strategies for well-typed programs, scores and masks, and tensors to run them on.

Everything reads from the inputs in :data:`INPUTS`, in bounds whatever the sizes. Widths D and E must be even and at
least 4. ``programs()`` and ``masks()`` are the ones to use; ``sizes()`` and ``tensors()`` make data for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from hypothesis import strategies as st

from attnc.ir.build import apply, dot, index, literal, param, read, reduce_keys, reduce_width, rope, size, slice_, token
from attnc.ir.nodes import Input, Kind, Literal, Node, Param, Read
from attnc.ir.program import Body, Parameter, Program
from attnc.ir.traverse import postorder

B, H, G, M, N, D, E = (size(name) for name in "BHGMNDE")
I, J, ROW = index("i"), index("j"), index("row")  # noqa: E741
Q, K, V = token("q"), token("k"), token("v")

INPUTS = {
    declared.name: declared
    for declared in (
        Input("slope", Kind.REAL, (H,)),
        Input("sink", Kind.REAL, (H,)),
        Input("span", Kind.INT, (H,)),
        Input("words", Kind.INT, (H,)),
        Input("doc", Kind.INT, (B, N)),
        Input("keep", Kind.BOOL, (B, N)),
        Input("seg", Kind.INT, (B, M)),
        Input("table", Kind.REAL, (H, apply("add", M, N))),
        Input("bias", Kind.REAL, (B, M, N)),
        Input("warmth", Kind.REAL, (B, H, M)),
        Input("weigh", Kind.REAL, (B, G, N)),
        Input("gate", Kind.REAL, (B, H, M, E)),
    )
}
PARAMETERS = {
    parameter.name: parameter
    for parameter in (Parameter("temperature", Kind.REAL, 1.0), Parameter("reach", Kind.INT, 3))
}


def reading(name: str) -> Read:
    """The natural read of an input."""
    b, h, g = index("b"), index("h"), index("g")
    indices: dict[str, tuple[Node | None, ...]] = {
        "doc": (b, J),
        "keep": (b, J),
        "seg": (b, ROW),
        "table": (h, apply("add", apply("sub", J, I), apply("sub", N, literal(1)))),
        "bias": (b, ROW, J),
        "warmth": (b, h, ROW),
        "weigh": (b, g, J),
        "gate": (b, h, ROW, None),
    }
    return read(INPUTS[name], indices.get(name, (h,)))


def parameter(name: str) -> Param:
    return param(name, PARAMETERS[name].kind)


def both(name: str, *args: Node | float) -> Node:
    """``apply`` that takes numbers too."""
    return apply(name, *(arg if isinstance(arg, Node) else literal(arg) for arg in args))


# -- masks ------------------------------------------------------------------------------------------------------------

_SMALL = st.integers(-3, 9).map(literal)
_POSITIVE = st.integers(1, 6).map(literal)


def positions(data: bool = True) -> st.SearchStrategy[Node]:
    """Int expressions of positions, and of data if ``data``."""
    plain = st.sampled_from([I, J, ROW, apply("sub", I, J), apply("sub", J, I), apply("abs", apply("sub", I, J))])
    sizes = st.sampled_from([N, M, apply("sub", N, M), index("h"), index("b"), index("g"), parameter("reach")])
    reads = [reading(name) for name in ("doc", "seg", "span")]
    leaves = st.one_of(plain, plain, _SMALL, sizes, *([st.sampled_from(reads)] if data else []))

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.one_of(
            st.builds(apply, st.sampled_from(["add", "sub", "min", "max"]), inner, inner),
            st.builds(apply, st.sampled_from(["floordiv", "mod"]), inner, _POSITIVE),
            st.builds(apply, st.just("mul"), inner, _SMALL),
            st.builds(apply, st.sampled_from(["neg", "abs"]), inner),
            st.builds(apply, st.sampled_from(["bitand", "bitor", "bitxor"]), inner, inner),
        )

    return st.recursive(leaves, grow, max_leaves=4)


def conditions(data: bool = True) -> st.SearchStrategy[Node]:
    """Comparisons and other truth values that are not made of truth values."""
    terms = positions(data)
    compare = st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"])
    distance = both("min", apply("abs", apply("sub", I, J)), 30)
    word = reading("words") if data else literal(0b1101)
    choices = [
        st.builds(apply, compare, terms, _SMALL),
        st.builds(apply, compare, terms, terms),
        st.builds(_interval, st.integers(0, 6), st.integers(0, 6)),
        st.builds(_congruence, st.integers(1, 5), st.integers(0, 4)),
        st.builds(_same_block, st.integers(1, 5), st.integers(0, 2)),
        st.sampled_from([both("le", J, I), both("lt", J, 4), literal(True), literal(False)]),
        st.just(both("ne", both("bitand", both("shr", word, distance), 1), 0)),
        st.just(both("eq", both("bitand", apply("sub", I, J), both("sub", apply("sub", I, J), 1)), 0)),
    ]
    if data:
        choices += [
            st.just(apply("eq", reading("doc"), reading("seg"))),
            st.just(reading("keep")),
            st.just(apply("le", apply("sub", I, J), reading("span"))),
        ]
    return st.one_of(choices)


def _interval(before: int, after: int) -> Node:
    distance = apply("sub", I, J)
    return apply("and", both("le", distance, before), both("ge", distance, -after))


def _congruence(modulus: int, rest: int) -> Node:
    return both("eq", both("mod", apply("sub", I, J), modulus), rest % modulus)


def _same_block(width: int, back: int) -> Node:
    difference = apply("sub", both("floordiv", I, width), both("floordiv", J, width))
    return apply("and", both("ge", difference, 0), both("le", difference, back))


def masks(data: bool = True) -> st.SearchStrategy[Node]:
    """Masks: intervals, congruences, blocks, membership words, and with ``data`` documents, under and, or, not."""

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.one_of(
            st.builds(apply, st.just("and"), inner, inner),
            st.builds(apply, st.sampled_from(["and", "or"]), inner, inner),
            st.builds(apply, st.just("not"), inner),
            st.builds(apply, st.just("where"), inner, inner, inner),
        )

    return st.recursive(conditions(data), grow, max_leaves=4)


# -- scores -----------------------------------------------------------------------------------------------------------


def scaled(a: Node, b: Node) -> Node:
    """``dot(a, b) / sqrt(D)``."""
    return apply("mul", dot(a, b), both("div", 1.0, apply("sqrt", D)))


def l2norm(x: Node) -> Node:
    return apply("mul", x, apply("rsqrt", both("max", dot(x, x), 1e-24)))


def rmsnorm(x: Node, width: Node) -> Node:
    mean = apply("div", reduce_width("sum", apply("mul", x, x)), width)
    return apply("mul", x, apply("rsqrt", both("add", mean, 1e-6)))


def softcap(x: Node, cap: float) -> Node:
    return both("mul", apply("tanh", both("div", x, cap)), cap)


def rotated(x: Node, at: Node) -> Node:
    return rope(x, at, literal(10000.0), D)


def _halves(x: Node) -> tuple[Node, Node]:
    middle = both("floordiv", D, 2)
    return slice_(x, literal(0), middle), slice_(x, middle, D)


def tapa() -> Node:
    """Token-aware phase attention: two dot products in one score (arXiv 2509.12635, eq. 12)."""
    (qa, qp), (ka, kp) = _halves(Q), _halves(K)
    distance = both("pow", apply("abs", apply("sub", I, J)), 0.5)
    phase = apply("mul", both("mul", distance, 2 * math.pi), scaled(qp, kp))
    return apply("mul", scaled(qa, ka), apply("cos", phase))


def scores() -> st.SearchStrategy[Node]:
    """Scores: dot products of raw, rotated or normalised tokens; biases, caps, temperatures, tables."""
    base = st.sampled_from(
        [
            scaled(Q, K),
            scaled(Q, K),
            scaled(rotated(Q, I), rotated(K, J)),
            both("mul", dot(l2norm(Q), l2norm(K)), 4.0),
            scaled(Q, apply("mul", K, reading("weigh"))),
            tapa(),
            apply("sub", dot(Q, K), both("mul", apply("add", dot(Q, Q), dot(K, K)), 0.5)),
            apply("add", reading("weigh"), reading("warmth")),
        ]
    )
    terms = st.sampled_from(
        [
            apply("mul", reading("slope"), apply("sub", J, I)),
            reading("table"),
            reading("bias"),
            reading("weigh"),
            both("where", both("le", J, I), 0.25, -0.5),
            both("log", both("add", apply("abs", apply("sub", I, J)), 1.0)),
        ]
    )

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.one_of(
            st.builds(apply, st.sampled_from(["add", "sub"]), inner, terms),
            st.builds(softcap, inner, st.sampled_from([2.0, 5.0])),
            st.builds(apply, st.just("mul"), inner, st.sampled_from([reading("warmth"), parameter("temperature")])),
        )

    return st.recursive(base, grow, max_leaves=3)


# -- normalisations ---------------------------------------------------------------------------------------------------


def rowsum(x: Node) -> Node:
    return reduce_keys("sum", x)


def rowmax(x: Node) -> Node:
    return reduce_keys("max", x)


def softmax(s: Node, sink: Node | None = None) -> Node:
    """Softmax; with ``sink``, one more key of that score and value 0."""
    top = rowmax(s) if sink is None else both("max", rowmax(s), sink)
    terms = apply("exp", apply("sub", s, top))
    total = rowsum(terms) if sink is None else apply("add", apply("exp", both("sub", sink, top)), rowsum(terms))
    return apply("div", terms, total)


def cog(s: Node) -> Node:
    return apply("mul", apply("sign", s), softmax(apply("abs", s)))


def relu(s: Node) -> Node:
    return both("max", s, 0.0)


def sigmoid(s: Node) -> Node:
    return apply("sigmoid", apply("sub", s, apply("log", N)))


def laplace(s: Node) -> Node:
    """Laplace attention of Mega (arXiv 2209.10655, eq. 16)."""
    mean, deviation = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
    return both("mul", both("add", apply("erf", both("div", both("sub", s, mean), deviation * math.sqrt(2))), 1.0), 0.5)


def inline(s: Node) -> Node:
    """InLine attention (arXiv 2412.06590): the row sums to 1, weights may be negative."""
    count = rowsum(literal(1.0))
    return apply("add", apply("sub", s, apply("div", rowsum(s), count)), both("div", 1.0, count))


def decayed(s: Node) -> Node:
    """Softmax times a decay that the denominator does not see."""
    return apply("mul", softmax(s), both("exp", both("mul", apply("abs", apply("sub", I, J)), -0.125)))


NORMALIZATIONS = {
    "softmax": softmax,
    "softmax1": lambda s: softmax(s, literal(0.0)),
    "sink": lambda s: softmax(s, reading("sink")),
    "sigmoid": sigmoid,
    "relu": relu,
    "relu2": lambda s: apply("mul", relu(s), relu(s)),
    "laplace": laplace,
    "cog": cog,
    "affine": lambda s: both("add", both("mul", softmax(s), 0.75), both("div", 0.5, N)),
    "inline": inline,
    "decayed": decayed,
    "identity": lambda s: s,
    "mean": lambda s: both("div", 1.0, rowsum(literal(1.0))),
}
"""Each a function from a score to a weight."""


# -- programs ---------------------------------------------------------------------------------------------------------

GROUP = apply("floordiv", index("h"), apply("floordiv", H, G))


def program(
    score: Node | None = None,
    mask: Node | None = None,
    weight: Node | None = None,
    value: Node = V,
    gate: Node | None = None,
    name: str = "test",
    extra: tuple[Input, ...] = (),
) -> Program:
    """A program from its clauses, defaults as in the language; inputs and parameters are the ones that occur.

    ``gate`` multiplies the attended value. ``extra`` are inputs that are not in :data:`INPUTS`.
    """
    score = scaled(Q, K) if score is None else score
    weight = softmax(score) if weight is None else weight
    attended = rowsum(apply("mul", weight, value))
    output = attended if gate is None else apply("mul", gate, attended)
    mask = literal(True) if mask is None else mask
    return assemble(Body(mask, score, weight, value, output), name, extra)


def assemble(body: Body, name: str = "test", extra: tuple[Input, ...] = ()) -> Program:
    """The program around a body: declares what occurs in it."""
    nodes = list(postorder(*(node for _, node in body.roots())))
    read_from = {node.input for node in nodes if isinstance(node, Read)}
    used = {node.name for node in nodes if isinstance(node, Param)}
    inputs = tuple(x for x in (*INPUTS.values(), *extra) if x in read_from)
    parameters = tuple(x for x in PARAMETERS.values() if x.name in used)
    return Program(name, inputs, parameters, (), GROUP, body)


def gates() -> st.SearchStrategy[Node | None]:
    return st.sampled_from([None, None, apply("sigmoid", reading("gate")), reading("warmth")])


def values() -> st.SearchStrategy[Node]:
    """Values with the width of ``v``."""
    return st.sampled_from([V, V, V, apply("mul", V, reading("weigh")), rmsnorm(V, E)])


@st.composite
def programs(draw: st.DrawFn, data: bool = True, normalizations: tuple[str, ...] = tuple(NORMALIZATIONS)) -> Program:
    """Whole programs. ``data`` allows masks that read inputs."""
    score = draw(scores())
    weight = NORMALIZATIONS[draw(st.sampled_from(normalizations))](score)
    return program(score, draw(masks(data)), weight, draw(values()), draw(gates()))


# -- data -------------------------------------------------------------------------------------------------------------


@st.composite
def sizes(draw: st.DrawFn, most: int = 9, empty: bool = True) -> dict[str, int]:
    """B, H, G, M, N, D, E. ``empty`` allows zero rows and keys."""
    groups, ratio = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    tokens = st.integers(0 if empty else 1, most)
    return {
        "B": draw(st.integers(1, 2)),
        "H": groups * ratio,
        "G": groups,
        "M": draw(tokens),
        "N": draw(tokens),
        "D": draw(st.sampled_from([4, 8])),
        "E": draw(st.sampled_from([4, 6])),
    }


def extent(dim: Node, at: Mapping[str, int]) -> int:
    """The value of an int expression of sizes."""
    results: dict[Node, int] = {}
    for node in postorder(dim):
        if isinstance(node, Literal):
            results[node] = int(node.value)
        elif node.children:
            a, *rest = (results[child] for child in node.children)
            results[node] = _ARITHMETIC[node.op](a, *rest)  # type: ignore[attr-defined]
        else:
            results[node] = at[node.name]  # type: ignore[attr-defined]
    return results[dim]


_ARITHMETIC = {
    "add": int.__add__,
    "sub": int.__sub__,
    "mul": int.__mul__,
    "floordiv": int.__floordiv__,
    "mod": int.__mod__,
    "neg": int.__neg__,
    "min": min,
    "max": max,
}


def tensors(
    program: Program, at: Mapping[str, int], seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Random q, k, v and inputs of the sizes ``at``, by name ``B H G M N D E``."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    inputs = {}
    for declared in program.inputs:
        shape = tuple(extent(dim, at) for dim in declared.dims)
        match declared.kind:
            case Kind.REAL:
                inputs[declared.name] = normal(*shape)
            case Kind.INT:
                inputs[declared.name] = torch.randint(0, 4, shape, generator=random)
            case Kind.BOOL:
                inputs[declared.name] = torch.rand(shape, generator=random) < 0.7
    q = normal(at["B"], at["H"], at["M"], at["D"])
    k = normal(at["B"], at["G"], at["N"], at["D"])
    v = normal(at["B"], at["G"], at["N"], at["E"])
    return q, k, v, inputs
