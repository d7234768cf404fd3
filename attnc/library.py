"""Registration with torch: operators of a program, with their schemas, fake kernels and gradients.

======================== ==============================================================================
``attnc::NAME``            ``(q, k, v, ...) -> out``
``attnc::NAME_lse``        ``(q, k, v, ...) -> (out, lse)``
``attnc::NAME_train``      the same and the states that the derived backward reads, for training
``attnc::NAME_grad``       cotangents, kept states and arguments to the gradients of what needs them
``attnc::NAME_grad2``      the gradients of ``NAME_grad``, through the reference
======================== ==============================================================================

The first two may be differentiated too; what training keeps is then computed in their backward.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from attnc.ir.nodes import Kind
from attnc.signature import Signature

if TYPE_CHECKING:
    from attnc.analyse.gradient.backward import Backward

Values = Sequence[Any]


class SlowGradientWarning(UserWarning):
    """A gradient is computed by the eager reference: correct, but slow and of O(M·N) memory."""


class Implementation(Protocol):
    """What an operator needs to know of its program. ``values`` are those of :meth:`Signature.bind`.

    ``needs`` says of q, k, v and every real input whether its gradient is wanted; empty if none is.
    """

    signature: Signature

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, values: Values, lse: bool, needs: Sequence[bool] = ()
    ) -> list[Tensor]:
        """Check the call and compute ``out``, the log-sum-exp if ``lse``, and states for the backward, by a kernel."""
        ...

    def shapes(
        self, q: Tensor, k: Tensor, v: Tensor, values: Values, lse: bool, needs: Sequence[bool] = ()
    ) -> list[Tensor]:
        """Check the call and return empty tensors like those of :meth:`run`."""
        ...

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, values: Values, lse: bool, needs: Sequence[bool]
    ) -> Backward | str:
        """The derived backward of a call, or why there is none and the reference serves."""
        ...

    def pull(
        self,
        cotangents: Sequence[Tensor],
        kept: Sequence[Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        values: Values,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        """The gradients needed, by the derived backward; a second cotangent is that of the log-sum-exp."""
        ...

    def evaluate(self, q: Tensor, k: Tensor, v: Tensor, values: Values, lse: bool) -> tuple[Tensor, Tensor | None]:
        """The reference, differentiable by torch."""
        ...


@dataclass(frozen=True, slots=True)
class Operators:
    """The callables that ``torch.ops`` holds."""

    forward: Callable[..., Any]
    forward_lse: Callable[..., Any]
    train: Callable[..., Any]
    gradient: Callable[..., Any]


NAMESPACE = "attnc"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_registered: dict[str, Operators] = {}
_warned: set[str] = set()


def register(name: str, implementation: Implementation) -> Operators:
    """The operators called ``attnc::name``, made at the first call with this name.

    Two programs may share a name only if they mean the same and take the same arguments in the same order.
    """
    if name not in _registered:
        arguments = "Tensor q, Tensor k, Tensor v" + implementation.signature.schema()
        gradient = _register_gradient(name, arguments, implementation)
        _registered[name] = Operators(
            _register_forward(name, arguments, implementation, gradient, lse=False),
            _register_forward(f"{name}_lse", arguments, implementation, gradient, lse=True),
            _register_training(name, arguments, implementation, gradient),
            gradient,
        )
    return _registered[name]


def needed(signature: Signature, q: Tensor, k: Tensor, v: Tensor, values: Values) -> list[bool]:
    """Of q, k, v and every real input, whether it requires a gradient."""
    arguments = (q, k, v, *values)
    return [arguments[slot].requires_grad for slot in differentiable(signature)]


def _register_forward(
    name: str, arguments: str, implementation: Implementation, gradient: Callable[..., Any], lse: bool
) -> Callable[..., Any]:
    """An operator that keeps nothing for its backward."""
    slots = differentiable(implementation.signature)

    def run(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> Any:
        results = implementation.run(q, k, v, values, lse)
        return tuple(results) if lse else results[0]

    def fake(q: Tensor, k: Tensor, v: Tensor, *values: Any) -> Any:
        results = implementation.shapes(q, k, v, values, lse)
        return tuple(results) if lse else results[0]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.numbers = inputs[len(tensors) :]

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (*ctx.saved_tensors, *ctx.numbers)
        needs = [bool(ctx.needs_input_grad[slot]) for slot in slots]
        return scattered(gradient(list(cotangents), [], *inputs, needs), needs, slots, len(inputs))

    schema = f"({arguments}) -> {'(Tensor, Tensor)' if lse else 'Tensor'}"
    return define(name, schema, run, fake, backward, setup_context)


def _register_training(
    name: str, arguments: str, implementation: Implementation, gradient: Callable[..., Any]
) -> Callable[..., Any]:
    """The operator ``name_train``: the output, the log-sum-exp if asked for, and what the backward reads."""
    slots = differentiable(implementation.signature)

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> list[Tensor]:
        *values, needs, lse = rest
        return implementation.run(q, k, v, values, lse, needs)

    def fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> list[Tensor]:
        *values, needs, lse = rest
        return implementation.shapes(q, k, v, values, lse, needs)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        *arguments, ctx.needs, ctx.lse = inputs
        q, k, v, *values = arguments
        derived = implementation.backward(q, k, v, values, ctx.lse, ctx.needs)
        kept = _kept(derived, output, ctx.lse)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        ctx.save_for_backward(*kept, *tensors)
        ctx.split = len(kept)
        ctx.numbers = arguments[len(tensors) :]
        ctx.mark_non_differentiable(*output[2 if ctx.lse else 1 :])
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, of_results: Sequence[Tensor | None]) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: checkpoints give them out a single time
        kept, inputs = saved[: ctx.split], (*saved[ctx.split :], *ctx.numbers)
        cotangents = list(of_results[: 2 if ctx.lse else 1])
        if all(x is None for x in cotangents):
            return (None,) * (len(inputs) + 2)
        q, k, v, *values = inputs
        like = implementation.shapes(q, k, v, values, ctx.lse)
        given = [torch.zeros_like(x) if c is None else c for c, x in zip(cotangents, like, strict=True)]
        grads = gradient(given, list(kept), *inputs, ctx.needs)
        return (*scattered(grads, ctx.needs, slots, len(inputs)), None, None)

    schema = f"({arguments}, bool[] needs, bool lse) -> Tensor[]"
    return define(f"{name}_train", schema, run, fake, backward, setup_context)


def _kept(derived: Backward | str, results: Sequence[Tensor], lse: bool) -> list[Tensor]:
    """Of the results of training, what the derived backward reads."""
    if isinstance(derived, str):
        return []
    out = [results[0]] if any(source.name == "out" for source in derived.reads) else []
    return [*out, *results[2 if lse else 1 :]]


def _register_gradient(name: str, arguments: str, implementation: Implementation) -> Callable[..., Any]:
    """The operator ``name_grad``: cotangents of the results to gradients of the arguments that need one."""
    slots = differentiable(implementation.signature)

    def pull(cotangents: Sequence[Tensor], inputs: Sequence[Any], needs: Sequence[bool]) -> list[Tensor]:
        """Through the reference."""
        wanted = [slot for slot, needed in zip(slots, needs, strict=True) if needed]
        lse = len(cotangents) == 2

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

    def run(cotangents: Sequence[Tensor], kept: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        *inputs, needs = rest
        q, k, v, *values = inputs
        lse = len(cotangents) == 2
        derived = implementation.backward(q, k, v, values, lse, needs)
        if isinstance(derived, str):
            _warn_once(
                f"attnc computes gradients of `{name.rsplit('_', 1)[0]}` with its eager reference: they are correct, "
                f"but slow, and take memory in proportion to M * N. {derived}"
            )
            grads = pull(cotangents, inputs, needs)
            return _detached(grads, [inputs[slot] for slot, needed in zip(slots, needs, strict=True) if needed])
        if not kept and any(not source.name.startswith("d_") for source in derived.reads):
            kept = _kept(derived, implementation.run(q, k, v, values, lse, needs), lse)
        return implementation.pull(cotangents, kept, q, k, v, values, needs)

    def fake(cotangents: Sequence[Tensor], kept: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        *inputs, needs = rest
        return [torch.empty_like(inputs[slot]) for slot, needed in zip(slots, needs, strict=True) if needed]

    second = _register_second_gradient(name, arguments, slots, pull)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cotangents, kept, *arguments, ctx.needs = inputs
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        ctx.save_for_backward(*cotangents, *tensors)
        ctx.counts = len(cotangents), len(kept)
        ctx.numbers = arguments[len(tensors) :]

    def backward(ctx: Any, of_grads: Sequence[Tensor]) -> tuple[Any, ...]:
        split, kept = ctx.counts
        saved = ctx.saved_tensors
        cotangents, inputs = list(saved[:split]), [*saved[split:], *ctx.numbers]
        grads = second(list(of_grads), cotangents, *inputs, ctx.needs)
        of_inputs = scattered(grads[split:], [True] * len(slots), slots, len(inputs))
        return (list(grads[:split]), [None] * kept, *of_inputs, None)

    schema = f"(Tensor[] cotangents, Tensor[] kept, {arguments}, bool[] needs) -> Tensor[]"
    return define(f"{name}_grad", schema, run, fake, backward, setup_context)


def _register_second_gradient(
    name: str,
    arguments: str,
    slots: Sequence[int],
    pull: Callable[[Sequence[Tensor], Sequence[Any], Sequence[bool]], list[Tensor]],
) -> Callable[..., Any]:
    """The operator ``name_grad2``: gradients of the cotangents and of every real argument."""

    def run(of_grads: Sequence[Tensor], cotangents: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        _warn_once("attnc computes second derivatives with its eager reference, in memory in proportion to M * N")
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
    return define(f"{name}_grad2", schema, run, fake, _third_gradient, lambda ctx, inputs, output: None)


def differentiable(signature: Signature) -> list[int]:
    """Positions of q, k, v and the real inputs among the arguments."""
    return [0, 1, 2, *(3 + at for at, source in enumerate(signature.inputs) if source.kind is Kind.REAL)]


def scattered(
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


def define(
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
    _library.impl(name, untraced(run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def untraced(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, hidden from ``torch.compile`` once that is in use."""
    hidden = torch._disable_dynamo(lambda *args: run(*args))  # type: ignore[attr-defined]  # methods bear no marks
    return lambda *args: hidden(*args) if "torch._dynamo" in sys.modules else run(*args)


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, SlowGradientWarning, stacklevel=2)
