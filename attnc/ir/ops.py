"""The table of operations: what each takes, what it yields, how it is written.

Everything that prints or runs expressions is driven by this table; a backend overrides only what differs.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType


class Rule(enum.Enum):
    """How kinds go through an operation."""

    ARITHMETIC = "int x int -> int, else real"
    REAL = "real ... -> real"
    INTEGER = "int ... -> int"
    ROUND = "real -> int"
    COMPARE = "two of one kind -> bool"
    LOGIC = "bool ... -> bool"
    CHOOSE = "bool, two of one kind -> that kind"
    TO_REAL = "int -> real"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. ``symbol`` is its infix or prefix form with ``binding`` power, if it has one."""

    name: str
    arity: int
    rule: Rule
    symbol: str | None = None
    binding: int = 100
    commutes: bool = False


def _table(*ops: Op) -> MappingProxyType[str, Op]:
    return MappingProxyType({op.name: op for op in ops})


OPS = _table(
    Op("where", 3, Rule.CHOOSE, binding=0),
    Op("or", 2, Rule.LOGIC, "or", 1, commutes=True),
    Op("and", 2, Rule.LOGIC, "and", 2, commutes=True),
    Op("not", 1, Rule.LOGIC, "not", 3),
    Op("lt", 2, Rule.COMPARE, "<", 4),
    Op("le", 2, Rule.COMPARE, "<=", 4),
    Op("gt", 2, Rule.COMPARE, ">", 4),
    Op("ge", 2, Rule.COMPARE, ">=", 4),
    Op("eq", 2, Rule.COMPARE, "==", 4, commutes=True),
    Op("ne", 2, Rule.COMPARE, "!=", 4, commutes=True),
    Op("bitor", 2, Rule.INTEGER, "|", 5, commutes=True),
    Op("bitxor", 2, Rule.INTEGER, "^", 6, commutes=True),
    Op("bitand", 2, Rule.INTEGER, "&", 7, commutes=True),
    Op("shl", 2, Rule.INTEGER, "<<", 8),
    Op("shr", 2, Rule.INTEGER, ">>", 8),
    Op("add", 2, Rule.ARITHMETIC, "+", 9, commutes=True),
    Op("sub", 2, Rule.ARITHMETIC, "-", 9),
    Op("mul", 2, Rule.ARITHMETIC, "*", 10, commutes=True),
    Op("div", 2, Rule.REAL, "/", 10),
    Op("floordiv", 2, Rule.INTEGER, "//", 10),
    Op("mod", 2, Rule.ARITHMETIC, "%", 10),
    Op("neg", 1, Rule.ARITHMETIC, "-", 11),
    Op("pow", 2, Rule.REAL, "**", 12),
    Op("min", 2, Rule.ARITHMETIC, commutes=True),
    Op("max", 2, Rule.ARITHMETIC, commutes=True),
    Op("abs", 1, Rule.ARITHMETIC),
    Op("sign", 1, Rule.ARITHMETIC),
    Op("floor", 1, Rule.ROUND),
    Op("real", 1, Rule.TO_REAL),
    Op("detach", 1, Rule.REAL),
    *(Op(name, 1, Rule.REAL) for name in "exp log sqrt rsqrt tanh sigmoid erf sin cos".split()),
)
