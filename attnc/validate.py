"""Checks of a call: every way in which tensors and numbers can fail to fit their program, by name.

The operator runs them on real tensors and its fake kernel on fake ones, so a mistake is reported alike when eager
and when traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnc.errors import ArgumentError
from attnc.ir.nodes import Kind, Literal, Node, Param, Read, Size
from attnc.ir.program import DEFAULT_GROUP, Parameter, Program
from attnc.ir.traverse import postorder
from attnc.signature import Signature, describe, size_value

DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "bool",
}
"""The element types that kernels know, by their short names."""

REALS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
ALLOWED = {Kind.REAL: REALS, Kind.INT: (torch.int32, torch.int64), Kind.BOOL: (torch.bool,)}
INT_LIMIT = 2**31
"""Integers are 32 bits wide in kernels."""


def check_call(
    program: Program,
    signature: Signature,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    values: Sequence[Any],
) -> dict[str, int]:
    """The sizes of a call, extents included, once all of it is known to fit ``program``.

    ``values`` are those of :meth:`Signature.bind`.

    Raises:
        ArgumentError: something does not fit; the message names it, what was expected and what was found.
    """
    sizes = _check_tokens(q, k, v)
    _check_group(program.group, sizes)
    inputs, numbers, extents = split(signature, values)
    sizes |= _check_extents(program, signature.extents, extents, sizes["N"])
    if program.listed is not None:
        sizes["L"] = inputs[signature.inputs.index(program.listed.numbers)].shape[-1]
    for source, tensor in zip(signature.inputs, inputs, strict=True):
        _check_tensor(source.name, tensor, ALLOWED[source.kind], f"declared {describe(source)}", q.device)
        expected = [size_value(dim, sizes) for dim in source.dims]
        if tensor.dim() != len(expected) or any(a != b for a, b in zip(tensor.shape, expected, strict=True)):
            raise ArgumentError(
                source.name,
                f"`{source.name}` is declared {describe(source)}, here {expected}, found shape {list(tensor.shape)}",
            )
    for parameter, number in zip(signature.parameters, numbers, strict=True):
        _check_number(parameter, number)
    return sizes


def split(signature: Signature, values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """The inputs, parameters and extents among the values of a call."""
    a, b = len(signature.inputs), len(signature.inputs) + len(signature.parameters)
    return values[:a], values[a:b], values[b:]


def _check_tokens(q: Tensor, k: Tensor, v: Tensor) -> dict[str, int]:
    for name, x, layout in (("q", q, "[B, H, M, D]"), ("k", k, "[B, G, N, D]"), ("v", v, "[B, G, N, E]")):
        _check_tensor(name, x, REALS, layout, None if x is q else q.device)
        if x.dim() != 4:
            raise ArgumentError(name, f"`{name}` is {layout}, found shape {list(x.shape)}")
        if x.dtype != q.dtype:
            raise ArgumentError(name, f"`{name}` must have the dtype of q, {q.dtype}, found {x.dtype}")
    b, h, m, d = q.shape
    g, n, e = k.shape[1], k.shape[2], v.shape[3]
    for name, x, axis, letter, expected, of in (
        ("k", k, 0, "B", b, "q"),
        ("k", k, 3, "D", d, "q"),
        ("v", v, 0, "B", b, "q"),
        ("v", v, 1, "G", g, "k"),
        ("v", v, 2, "N", n, "k"),
    ):
        if x.shape[axis] != expected:
            raise ArgumentError(
                name,
                f"dimension {axis} of `{name}` is {letter}, {expected} by {of}, found {x.shape[axis]} "
                f"(q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)})",
            )
    for name, width in (("q", d), ("v", e)):
        if width == 0:
            raise ArgumentError(name, f"`{name}` has no elements along its last dimension")
    return {"B": b, "H": h, "G": g, "M": m, "N": n, "D": d, "E": e}


def _check_group(group: Node, sizes: dict[str, int]) -> None:
    heads, groups = sizes["H"], sizes["G"]
    if heads != 0 and groups == 0:
        raise ArgumentError("k", f"`k` has no heads, q has {heads}")
    if group is DEFAULT_GROUP:
        if groups != 0 and heads % groups != 0:
            raise ArgumentError(
                "k", f"the {heads} heads of q cannot be shared out evenly among the {groups} heads of k and v"
            )
        return
    if any(isinstance(node, Read | Param) for node in postorder(group)):
        return
    for head in range(heads):
        found = size_value(group, {**sizes, "h": head})
        if not 0 <= found < groups:
            raise ArgumentError("k", f"`groups` gives head {head} of q the head {found} of k, which has {groups}")


def _check_extents(program: Program, names: Sequence[str], given: Sequence[int], n: int) -> dict[str, int]:
    """All extents, the one left out (-1) worked out from ``N``."""
    sizes: dict[str, int] = dict(zip(names, given, strict=True))
    if not program.space:
        return sizes
    missing = [name for name, extent in sizes.items() if extent == -1]
    if len(missing) > 1:
        raise ArgumentError(missing[1], f"at most one extent may be left out, missing are {_quoted(missing)}")
    product = 1
    for _, extent in program.space:
        if not (isinstance(extent, Size) and extent.name in missing):
            product *= size_value(extent, sizes)
    shape = " * ".join(_extent_text(extent, sizes) for _, extent in program.space)
    if missing:
        sizes[missing[0]] = n // product if product != 0 else 0
        product *= sizes[missing[0]]
    if product != n:
        raise ArgumentError(missing[0] if missing else "N", f"the space is {shape} tokens, but there are N = {n} keys")
    return sizes


def _extent_text(extent: Node, sizes: dict[str, int]) -> str:
    match extent:
        case Size(name=name):
            return name if sizes[name] == -1 else f"{name}={sizes[name]}"
        case Literal(value=value):
            return str(value)
        case _:
            return str(size_value(extent, sizes))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _check_tensor(name: str, x: Tensor, dtypes: Sequence[torch.dtype], what: str, device: torch.device | None) -> None:
    if x.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ArgumentError(name, f"`{name}` ({what}) takes {known}, found {x.dtype}")
    if device is not None and x.device != device:
        raise ArgumentError(name, f"`{name}` is on {x.device}, q is on {device}: all tensors must be on one device")
    if x.layout is not torch.strided:
        raise ArgumentError(name, f"`{name}` must be a dense tensor, found layout {x.layout}")


def _check_number(parameter: Parameter, value: Any) -> None:
    name = parameter.name
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(name, f"parameter `{name}` must be finite, found {value}")
    if parameter.kind is Kind.INT and not -INT_LIMIT <= value < INT_LIMIT:
        raise ArgumentError(name, f"parameter `{name}` must fit 32 bits, found {value}")


def check_types(signature: Signature, q: Any, k: Any, v: Any, values: Sequence[Any]) -> None:
    """What torch's own schema would otherwise complain of: a tensor, a number or an int is expected.

    Raises:
        ArgumentError: something is of the wrong type.
    """
    inputs, numbers, extents = split(signature, values)
    names = ("q", "k", "v", *(source.name for source in signature.inputs))
    for name, x in zip(names, (q, k, v, *inputs), strict=True):
        if not isinstance(x, Tensor):
            raise ArgumentError(name, f"`{name}` must be a tensor, found {type(x).__name__}")
    for parameter, value in zip(signature.parameters, numbers, strict=True):
        if isinstance(value, Tensor):
            raise ArgumentError(
                parameter.name,
                f"parameter `{parameter.name}` takes a number, found a tensor; declare it `input` to pass tensors",
            )
        if not _NUMBER[parameter.kind](value):
            raise ArgumentError(parameter.name, f"parameter `{parameter.name}` is {parameter.kind}, found {value!r}")
    for name, value in zip(signature.extents, extents, strict=True):
        if not _is_int(value):
            raise ArgumentError(name, f"extent `{name}` takes an int, found {value!r}")
        if value < -1:
            raise ArgumentError(name, f"extent `{name}` cannot be negative, found {value}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, float | torch.SymFloat) or _is_int(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | torch.SymBool)


_NUMBER: dict[Kind, Callable[[Any], bool]] = {Kind.INT: _is_int, Kind.REAL: _is_real, Kind.BOOL: _is_bool}
