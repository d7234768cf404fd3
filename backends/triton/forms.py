"""How operations are written in Triton: the table that drives the printer.

A form is text with ``{0}``, ``{1}`` ... for the operands, the binding power of the whole, and the power each operand
needs at least to stand without parentheses. Powers are Python's precedence levels.
"""

from __future__ import annotations

from dataclasses import dataclass

ATOM, POWER, UNARY, PRODUCT, SUM, SHIFT, AND, XOR, OR, COMPARE, LOOSEST = 100, 13, 12, 11, 10, 9, 8, 7, 6, 5, 0


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write an operation."""

    text: str
    binding: int
    operands: tuple[int, ...]


def _infix(symbol: str, power: int) -> Form:
    return Form(f"{{0}} {symbol} {{1}}", power, (power, power + 1))


def _call(name: str, arity: int) -> Form:
    return Form(f"{name}({', '.join(f'{{{n}}}' for n in range(arity))})", ATOM, (LOOSEST,) * arity)


FORMS: dict[str, Form] = {
    "where": _call("tl.where", 3),
    "or": _infix("|", OR),
    "and": _infix("&", AND),
    "not": Form("{0} == 0", COMPARE, (OR,)),
    "lt": Form("{0} < {1}", COMPARE, (OR, OR)),
    "le": Form("{0} <= {1}", COMPARE, (OR, OR)),
    "gt": Form("{0} > {1}", COMPARE, (OR, OR)),
    "ge": Form("{0} >= {1}", COMPARE, (OR, OR)),
    "eq": Form("{0} == {1}", COMPARE, (OR, OR)),
    "ne": Form("{0} != {1}", COMPARE, (OR, OR)),
    "bitor": _infix("|", OR),
    "bitxor": _infix("^", XOR),
    "bitand": _infix("&", AND),
    "shl": _infix("<<", SHIFT),
    "shr": _infix(">>", SHIFT),
    "add": _infix("+", SUM),
    "sub": _infix("-", SUM),
    "mul": _infix("*", PRODUCT),
    "div": _infix("/", PRODUCT),
    "floordiv": _call("lib.floor_div", 2),
    "mod": _call("lib.floor_mod", 2),
    "neg": Form("-{0}", UNARY, (UNARY,)),
    "pow": _call("lib.power", 2),
    "min": _call("tl.minimum", 2),
    "max": _call("tl.maximum", 2),
    "abs": _call("tl.abs", 1),
    "sign": _call("lib.sign", 1),
    "floor": _call("lib.floor", 1),
    "real": Form("{0}.to(tl.float32)", ATOM, (ATOM,)),
    "detach": Form("{0}", ATOM, (ATOM,)),
    "exp": _call("lib.exp", 1),
    "log": _call("lib.log", 1),
    "sqrt": _call("tl.sqrt", 1),
    "rsqrt": _call("tl.rsqrt", 1),
    "tanh": _call("lib.tanh", 1),
    "sigmoid": _call("lib.sigmoid", 1),
    "erf": _call("tl.erf", 1),
    "sin": _call("lib.sin", 1),
    "cos": _call("lib.cos", 1),
}

REAL_FORMS: dict[str, Form] = {"mod": _call("lib.real_mod", 2)}
"""What is written otherwise on reals."""


def number(value: int | float | bool) -> str:
    """A literal as Triton takes it: floats always look like floats."""
    return repr(value)
