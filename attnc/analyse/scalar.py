"""Evaluate scalar nodes in Python, on numbers or (all tiles at once) on torch tensors of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from attnc.ir.nodes import Apply, Index, Literal, Node, Param, Read, Size
from attnc.ir.traverse import postorder

Environment = Mapping[str, Any]
"""Values by name: sizes, positions, tile ends, parameters as numbers or tensors; inputs as tensors or nested lists."""


def _either(on_tensors: Callable[..., Any], on_numbers: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        if not any(isinstance(arg, torch.Tensor) for arg in args):
            return on_numbers(*args)
        return on_tensors(*(torch.as_tensor(arg) for arg in args))

    return run


def _math(name: str) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        value = getattr(torch, name)(torch.as_tensor(x, dtype=torch.float64))
        return value if isinstance(x, torch.Tensor) else value.item()

    return run


_RUN: dict[str, Callable[..., Any]] = {
    "where": _either(torch.where, lambda c, x, y: x if c else y),
    "or": operator.or_,
    "and": operator.and_,
    "not": _either(torch.logical_not, operator.not_),
    "bitor": operator.or_,
    "bitxor": operator.xor,
    "bitand": operator.and_,
    "shl": operator.lshift,
    "shr": operator.rshift,
    "div": operator.truediv,
    "min": _either(torch.minimum, min),
    "max": _either(torch.maximum, max),
    "sign": _either(torch.sign, lambda x: (x > 0) - (x < 0)),
    "floor": _either(lambda x: torch.floor(x).long(), lambda x: int(x // 1)),
    "real": _either(lambda x: x.double(), float),
    "detach": lambda x: x,
    "tanh": _math("tanh"),
    "sigmoid": _math("sigmoid"),
    "erf": _math("erf"),
    **{name: getattr(operator, name) for name in "lt le gt ge eq ne add sub mul floordiv mod neg pow abs".split()},
    **{name: _math(name) for name in "exp log sqrt rsqrt sin cos".split()},
}


def evaluate(node: Node, env: Environment) -> Any:
    """The value of a scalar node, an ``int``, ``float``, ``bool`` or a tensor if ``env`` holds tensors.

    ``row`` follows from ``i``, and ``i`` from ``row``. Reads outside an input yield 0.

    Raises:
        KeyError: a name that ``env`` lacks.
        ValueError: the node holds vectors or row reductions.
    """
    known: dict[Node, Any] = {}
    for part in postorder(node):
        known[part] = _value(part, known, env)
    return known[node]


def _value(node: Node, known: Mapping[Node, Any], env: Environment) -> Any:
    match node:
        case Literal():
            return node.value
        case Index(name="row") if "row" not in env:
            return env["i"] - env["N"] + env["M"]
        case Index(name="i") if "i" not in env:
            return env["row"] + env["N"] - env["M"]
        case Size() | Index() | Param():
            if node.name not in env:
                raise KeyError(f"no value for `{node.name}`")
            return env[node.name]
        case Read():
            return _read(torch.as_tensor(env[node.input.name]).detach(), [known[at] for at in node.children])
        case Apply():
            return _RUN[node.op](*(known[arg] for arg in node.args))
    raise ValueError(f"not a scalar of positions and data: {type(node).__name__}")


def _read(data: torch.Tensor, indices: list[Any]) -> Any:
    positions = [torch.as_tensor(at) for at in indices]
    data = data.to(next((at.device for at in positions if at.ndim), torch.device("cpu")))
    inside = torch.tensor(True, device=data.device)
    for at, extent in zip(positions, data.shape, strict=True):
        inside = inside & (at >= 0) & (at < extent)
    clamped = [at.clamp(0, max(extent - 1, 0)) for at, extent in zip(positions, data.shape, strict=True)]
    if data.numel() == 0:
        return data.new_zeros(inside.shape)
    found = torch.where(inside, data[tuple(clamped)], data.new_zeros(()))
    return found if found.ndim else found.item()
