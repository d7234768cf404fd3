"""Registration with torch: one operator a program, with its schema, fake kernel and gradient.

The forward operator calls a compiled kernel. Its gradient is an operator of its own that differentiates the
reference, as does the gradient of that; a program has four operators:

====================== ==================================================================
``attnc::NAME``          ``(q, k, v, ...) -> out``
``attnc::NAME_lse``      ``(q, k, v, ...) -> (out, lse)``
``attnc::NAME_grad``     cotangents and arguments to the gradients of what needs them
``attnc::NAME_grad2``    the same for ``NAME_grad``
====================== ==================================================================
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from attnc.ir.nodes import Kind
from attnc.signature import Signature

Values = Sequence[Any]


class SlowGradientWarning(UserWarning):
    """The gradient is computed by the eager reference: correct, but slow and of O(M·N) memory."""


class Implementation(Protocol):
    """What an operator needs to know of its program. ``values`` are those of :meth:`Signature.bind`."""

    signature: Signature

    def run(self, q: Tensor, k: Tensor, v: Tensor, values: Values, lse: bool) -> tuple[Tensor, Tensor | None]:
        """Check the call and compute ``out`` (and the log-sum-exp) by a kernel."""
        ...

    def shapes(self, q: Tensor, k: Tensor, v: Tensor, values: Values, lse: bool) -> tuple[Tensor, Tensor | None]:
        """Check the call and return empty tensors like those of :meth:`run`."""
        ...

    def evaluate(self, q: Tensor, k: Tensor, v: Tensor, values: Values, lse: bool) -> tuple[Tensor, Tensor | None]:
        """The reference, differentiable by torch."""
        ...


@dataclass(frozen=True, slots=True)
class Operators:
    """The callables that ``torch.ops`` holds."""

    forward: Callable[..., Any]
    forward_lse: Callable[..., Any]


NAMESPACE = "attnc"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_registered: dict[str, Operators] = {}
_warned = False


def register(name: str, implementation: Implementation) -> Operators:
    """The operators called ``attnc::name``, made at the first call with this name.

    Two programs may share a name only if they mean the same and take the same arguments in the same order.
    """
    if name not in _registered:
        _registered[name] = Operators(
            _register_forward(name, implementation, lse=False),
            _register_forward(f"{name}_lse", implementation, lse=True),
        )
    return _registered[name]


def _register_forward(name: str, implementation: Implementation, lse: bool) -> Callable[..., Any]:
    arguments = "Tensor q, Tensor k, Tensor v" + implementation.signature.schema()
    results = "(Tensor, Tensor)" if lse else "Tensor"

    def run(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> Any:
        out, rows = implementation.run(q, k, v, values, lse)
        return (out, rows) if lse else out

    def fake(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> Any:
        out, rows = implementation.shapes(q, k, v, values, lse)
        return (out, rows) if lse else out

    gradient = _register_gradient(name, arguments, implementation, lse)
    slots = _differentiable(implementation.signature)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.numbers = inputs[len(tensors) :]

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (*ctx.saved_tensors, *ctx.numbers)
        needs = [bool(ctx.needs_input_grad[slot]) for slot in slots]
        return _scatter(gradient(list(cotangents), *inputs, needs), needs, slots, len(inputs))

    return _define(name, f"({arguments}) -> {results}", run, fake, backward, setup_context)


def _register_gradient(name: str, arguments: str, implementation: Implementation, lse: bool) -> Callable[..., Any]:
    """The operator ``name_grad``: cotangents of the results to gradients of the arguments that need one."""
    name = f"{name}_grad"
    slots = _differentiable(implementation.signature)

    def pull(cotangents: Sequence[Tensor], inputs: Sequence[Any], needs: Sequence[bool]) -> list[Tensor]:
        wanted = [slot for slot, needed in zip(slots, needs, strict=True) if needed]

        def forward(*chosen: Tensor) -> Any:
            full = list(inputs)
            for slot, x in zip(wanted, chosen, strict=True):
                full[slot] = x
            q, k, v, *values = (_widened(x) for x in full)
            out, rows = implementation.evaluate(q, k, v, values, lse)
            return (out, rows) if lse else (out,)

        pullback: Any = torch.func.vjp(forward, *(inputs[slot] for slot in wanted))
        results, vjp = pullback
        return list(vjp(tuple(c.to(result.dtype) for c, result in zip(cotangents, results, strict=True))))

    def run(cotangents: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        _warn_once()
        *inputs, needs = rest
        grads = pull(cotangents, inputs, needs)
        return _detached(grads, [inputs[slot] for slot, needed in zip(slots, needs, strict=True) if needed])

    def fake(cotangents: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        *inputs, needs = rest
        return [torch.empty_like(inputs[slot]) for slot, needed in zip(slots, needs, strict=True) if needed]

    second = _register_second_gradient(name, arguments, slots, pull)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cotangents, *arguments, ctx.needs = inputs
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        ctx.save_for_backward(*cotangents, *tensors)
        ctx.counts = len(cotangents), len(tensors)
        ctx.numbers = arguments[len(tensors) :]

    def backward(ctx: Any, of_grads: Sequence[Tensor]) -> tuple[Any, ...]:
        split = ctx.counts[0]
        cotangents = list(ctx.saved_tensors[:split])
        inputs = [*ctx.saved_tensors[split:], *ctx.numbers]
        grads = second(list(of_grads), cotangents, *inputs, ctx.needs)
        of_inputs = _scatter(grads[split:], [True] * len(slots), slots, len(inputs))
        return (list(grads[:split]), *of_inputs, None)

    schema = f"(Tensor[] cotangents, {arguments}, bool[] needs) -> Tensor[]"
    return _define(name, schema, run, fake, backward, setup_context)


def _register_second_gradient(
    name: str,
    arguments: str,
    slots: Sequence[int],
    pull: Callable[[Sequence[Tensor], Sequence[Any], Sequence[bool]], list[Tensor]],
) -> Callable[..., Any]:
    """The operator ``name_grad2``: gradients of the cotangents and of every real argument."""
    name = f"{name.removesuffix('_grad')}_grad2"

    def run(of_grads: Sequence[Tensor], cotangents: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        *inputs, needs = rest
        count = len(cotangents)

        def first(*variables: Tensor) -> tuple[Tensor, ...]:
            full = list(inputs)
            for slot, x in zip(slots, variables[count:], strict=True):
                full[slot] = x
            return tuple(pull(variables[:count], full, needs))

        variables = (*cotangents, *(inputs[slot] for slot in slots))
        pullback: Any = torch.func.vjp(first, *variables)
        return _detached(list(pullback[1](tuple(of_grads))), variables)

    def fake(of_grads: Sequence[Tensor], cotangents: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        return [torch.empty_like(x) for x in (*cotangents, *(rest[slot] for slot in slots))]

    schema = f"(Tensor[] of_grads, Tensor[] cotangents, {arguments}, bool[] needs) -> Tensor[]"
    return _define(name, schema, run, fake, _third_gradient, lambda ctx, inputs, output: None)


def _differentiable(signature: Signature) -> list[int]:
    """Positions of q, k, v and the real inputs among the arguments."""
    return [0, 1, 2, *(3 + at for at, source in enumerate(signature.inputs) if source.kind is Kind.REAL)]


def _scatter(
    grads: Sequence[Tensor], needs: Sequence[bool], slots: Sequence[int], count: int
) -> tuple[Tensor | None, ...]:
    """``grads``, one for each needed slot, at their places among ``count`` arguments."""
    result: list[Tensor | None] = [None] * count
    given = iter(grads)
    for slot, needed in zip(slots, needs, strict=True):
        if needed:
            result[slot] = next(given)
    return tuple(result)


def _widened(x: Any) -> Any:
    """Half precision as f32: gradients through the reference are rounded once, at their end."""
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


def _detached(grads: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Copies in the layout that the fake kernel promises: an operator's results may share no memory."""
    return [torch.empty_like(x).copy_(grad) for grad, x in zip(grads, like, strict=True)]


def _third_gradient(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError("attnc differentiates an attention twice, not three times; use op.reference for that")


def _define(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
) -> Callable[..., Any]:
    """Register an operator with torch and return it.

    ``torch.library.custom_op`` would do, but the first call of what it makes imports all of ``torch._dynamo``, which
    takes longer than everything else between loading a spec and its first result.
    """
    _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, _untraced(run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def _untraced(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, hidden from ``torch.compile`` once that is in use."""
    hidden = torch._disable_dynamo(run)  # type: ignore[attr-defined]
    return lambda *args: hidden(*args) if "torch._dynamo" in sys.modules else run(*args)


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "attnc computes gradients with its eager reference for now: they are correct, but slow, and take memory "
            "in proportion to M * N",
            SlowGradientWarning,
            stacklevel=2,
        )
