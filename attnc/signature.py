"""What a call of a program takes besides q, k and v, and how names become positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnc.analyse.scalar import evaluate
from attnc.errors import ArgumentError, did_you_mean
from attnc.ir.nodes import Input, Kind, Literal, Node, Size
from attnc.ir.printer import expression
from attnc.ir.program import Parameter, Program


def size_value(node: Node, sizes: Mapping[str, int]) -> int:
    """The value of an ``int`` expression of sizes (and of indices, if ``sizes`` holds those).

    Raises:
        ArgumentError: it divides by zero.
    """
    match node:  # most are these, in every call
        case Literal(value=int(number)):
            return number
        case Size(name=name) if name in sizes:
            return sizes[name]
    try:
        value: int = evaluate(node, sizes)
    except ZeroDivisionError:
        raise ArgumentError("sizes", f"`{expression(node)}` divides by zero at the sizes {dict(sizes)}") from None
    return value


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a program in the order in which its operator takes them: inputs, parameters, extents."""

    inputs: tuple[Input, ...]
    parameters: tuple[Parameter, ...]
    extents: tuple[str, ...]

    @classmethod
    def of(cls, program: Program) -> Signature:
        return cls(program.inputs, program.parameters, program.extents)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(x.name for x in self.inputs), *(x.name for x in self.parameters), *self.extents)

    def bind(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values of :attr:`names`, in order; a parameter left out has its default, an extent left out is -1.

        Raises:
            ArgumentError: one is missing, or one is not of this spec.
        """
        for name in arguments:
            if name not in self.names:
                takes = ", ".join(f"`{known}`" for known in self.names) or "nothing besides q, k and v"
                raise ArgumentError(
                    name, f"unknown argument `{name}`{did_you_mean(name, self.names)}; the spec takes {takes}"
                )
        values: list[Any] = []
        for source in self.inputs:
            if source.name not in arguments:
                raise ArgumentError(source.name, f"missing input `{source.name}`, {describe(source)}")
            values.append(arguments[source.name])
        for parameter in self.parameters:
            value = arguments.get(parameter.name, parameter.default)
            if value is None:
                raise ArgumentError(parameter.name, f"missing parameter `{parameter.name}`, of kind {parameter.kind}")
            values.append(value)
        values.extend(arguments.get(name, -1) for name in self.extents)
        return tuple(values)

    def schema(self) -> str:
        """The arguments in the schema language of torch, with their names, after those of q, k and v."""
        kinds = {Kind.INT: "SymInt", Kind.REAL: "float", Kind.BOOL: "bool"}
        parts = [f"Tensor {_safe(x.name)}" for x in self.inputs]
        parts += [f"{kinds[x.kind]} {_safe(x.name)}" for x in self.parameters]
        parts += [f"SymInt {_safe(name)}" for name in self.extents]
        return "".join(f", {part}" for part in parts)


def _safe(name: str) -> str:
    """A name that cannot be a keyword of the schema language."""
    return f"in_{name}"


def describe(source: Input) -> str:
    """``real[H, 4]``: an input as its spec declares it."""
    return f"{source.kind}[{', '.join(map(expression, source.dims))}]"
