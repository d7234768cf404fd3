"""What an expression can stand for while a spec is checked."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

from attnc.ir.nodes import Input, Node, Read


class Poison(enum.Enum):
    """The value of what is already reported as wrong; whatever touches it is silently wrong too."""

    POISON = "poison"


POISON: Final = Poison.POISON


@dataclass(frozen=True, slots=True)
class Whole:
    """An input by its name, not read yet."""

    input: Input


@dataclass(frozen=True, slots=True)
class Matrix:
    """A read with two open axes, good for ``matmul`` alone."""

    read: Read


@dataclass(frozen=True, slots=True)
class Running:
    """``cumsum(x)``: a running sum over key positions, not read at a position yet."""

    x: Node


Value: TypeAlias = Node | Poison | Whole | Matrix | Running
