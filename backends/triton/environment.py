"""The run-time numbers and tensors that the slots of one kernel use: the tuple ``env``."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.backends.triton.recipe import Value
from attnc.ir.nodes import Input, Kind

RESERVED = frozenset(
    "b h g row i j env tl lib dots visible inside rows state sums factors weights lane lanes "
    "i_lo i_hi j_lo j_hi first full masked and or not if else for in is def return lambda None True False "
    "class import from global pass while with as assert del try except raise yield elif break continue finally "
    "nonlocal async await".split()
)


def identifier(wanted: str, taken: frozenset[str] | set[str] | dict[str, object] = frozenset()) -> str:
    """``wanted`` as a Python name that means nothing else in a slot."""
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in wanted) or "x"
    name = name if not name[0].isdigit() else f"_{name}"
    candidate, n = name, 1
    while candidate in RESERVED or candidate in taken:
        candidate, n = f"{name}_{n}", n + 1
    return candidate


@dataclass(slots=True)
class Environment:
    """Values are added when first asked for; a value's place in ``env`` never changes.

    ``types`` gives the element type of each tensor (``bf16``, ``i32`` ...) by name.
    """

    types: dict[str, str]
    values: list[Value] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def _place(self, value: Value, wanted: str) -> tuple[str, str]:
        if value not in self.values:
            self.values.append(value)
            self.names.append(identifier(wanted, set(self.names)))
        at = self.values.index(value)
        return self.names[at], f"env[{at}]"

    def size(self, name: str) -> tuple[str, str]:
        """A name for a size of the call, and the expression it stands for."""
        return self._place(Value("i32", "size", name), name)

    def parameter(self, name: str, kind: Kind) -> tuple[str, str]:
        return self._place(Value("i32" if kind is Kind.INT else "fp32", "parameter", name), name)

    def tensor(self, source: Input) -> tuple[str, str]:
        return self._place(Value(f"*{self.types[source.name]}", "tensor", source.name), source.name)

    def stride(self, source: Input, dim: int) -> tuple[str, str]:
        return self._place(Value("i64", "stride", source.name, dim), f"{source.name}_stride{dim}")

    def extent(self, source: Input, dim: int) -> tuple[str, str]:
        return self._place(Value("i32", "extent", source.name, dim), f"{source.name}_size{dim}")
