"""Routed operators for ``torch.compile`` and ``torch.export``: one operator of torch around all steps.

======================== ==============================================================================
``attnc::NAME_routed``     ``(q, k, v, ..., lse) -> [out, log-sum-exp if lse, choices]``
``attnc::NAME_routed_grad``  cotangents, choices and arguments to the gradients of what needs them
======================== ==============================================================================

In eager mode the steps are operators of their own and nothing is computed twice. Here the backward runs the attention
once more, as checkpointing does, but makes no choice again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnc.library import define, differentiable, scattered
from attnc.signature import size_value
from attnc.validate import check_call

if TYPE_CHECKING:
    from attnc.op import Op

_registered: dict[str, Callable[..., Any]] = {}


def register(name: str, op: Op) -> Callable[..., Any]:
    """The operator called ``attnc::name_routed``, made at the first call with this name."""
    if name not in _registered:
        _registered[name] = _define_forward(name, op, _define_gradient(name, op))
    return _registered[name]


def _define_forward(name: str, op: Op, gradient: Callable[..., Any]) -> Callable[..., Any]:
    signature = op.signature
    slots = differentiable(signature)

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> list[Tensor]:
        *values, lse = rest
        with torch.no_grad():
            states = op.composite.choose_all(q, k, v, values)
            found = op.composite.run(q, k, v, values, lse, states)
        results = list(found) if lse else [found]
        return [*(x.clone() if x is q else x for x in results), *states]

    def fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> list[Tensor]:
        *values, lse = rest
        sizes = check_call(op.program, signature, q, k, v, values)
        width = op.program.body.output.width
        assert width is not None
        rows = (sizes["B"], sizes["H"], sizes["M"])
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        results = [q.new_empty((*rows, size_value(width, sizes))), *([q.new_empty(rows, dtype=wide)] if lse else [])]
        return [*results, *op.composite.states_like(q, sizes)]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        *arguments, ctx.lse = inputs
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        states = output[2 if ctx.lse else 1 :]
        ctx.save_for_backward(*states, *tensors)
        ctx.split = len(states)
        ctx.numbers = arguments[len(tensors) :]
        ctx.mark_non_differentiable(*states)

    def backward(ctx: Any, cotangents: Sequence[Tensor]) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        states, inputs = saved[: ctx.split], (*saved[ctx.split :], *ctx.numbers)
        needs = [bool(ctx.needs_input_grad[slot]) for slot in slots]
        given = list(cotangents[: 2 if ctx.lse else 1])
        grads = gradient(given, list(states), *inputs, needs)
        return (*scattered(grads, needs, slots, len(inputs)), None)

    arguments = "Tensor q, Tensor k, Tensor v" + signature.schema()
    return define(f"{name}_routed", f"({arguments}, bool lse) -> Tensor[]", run, fake, backward, setup_context)


def _define_gradient(name: str, op: Op) -> Callable[..., Any]:
    slots = differentiable(op.signature)

    def run(cotangents: Sequence[Tensor], states: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        *inputs, needs = rest
        wanted = [slot for slot, needed in zip(slots, needs, strict=True) if needed]
        lse = len(cotangents) == 2
        with _differentiating():
            leaves = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
            for slot in wanted:
                leaves[slot].requires_grad_()
            q, k, v, *values = leaves
            found = op.composite.run(q, k, v, values, lse, states)
            results = list(found) if lse else [found]
            used = [(x, c) for x, c in zip(results, cotangents, strict=True) if x.requires_grad]
            grads: Sequence[Tensor | None] = [None] * len(wanted)
            if used:
                grads = torch.autograd.grad([x for x, _ in used], [leaves[slot] for slot in wanted],
                                            [c for _, c in used], allow_unused=True)  # fmt: skip
        like = [torch.empty_like(inputs[slot]) for slot in wanted]
        return [x.zero_() if g is None else x.copy_(g) for x, g in zip(like, grads, strict=True)]

    def fake(cotangents: Sequence[Tensor], states: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        *inputs, needs = rest
        return [torch.empty_like(inputs[slot]) for slot, needed in zip(slots, needs, strict=True) if needed]

    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("a compiled routed attention is differentiated once; call it uncompiled for more")

    arguments = "Tensor q, Tensor k, Tensor v" + op.signature.schema()
    schema = f"(Tensor[] cotangents, Tensor[] states, {arguments}, bool[] needs) -> Tensor[]"
    return define(f"{name}_routed_grad", schema, run, fake, backward, lambda ctx, inputs, output: None)


@contextlib.contextmanager
def _differentiating() -> Iterator[None]:
    """Autograd within the implementation of an operator, which runs below it."""
    keys = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (
        keys.AutogradCPU,
        keys.AutogradCUDA,
        keys.AutogradOther,
        keys.AutogradFunctionality,
        keys.ADInplaceOrView,
    ):
        excluded = excluded.remove(key)
    guard = torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)
    with guard, torch.enable_grad():
        yield
