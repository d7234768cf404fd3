"""What a program means, as one function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attnc.errors import UnsupportedError
from attnc.grammar.diagnostic import Diagnostic
from attnc.grammar.source import Source, Span
from attnc.ir.lse import log_denominator
from attnc.ir.nodes import (
    Node,
)
from attnc.ir.printer import expression
from attnc.ir.program import Program
from attnc.ir.specialize import nearest_span
from attnc.reference.interpreter import Run

_HALF = {torch.bfloat16, torch.float16}


def evaluate(
    program: Program,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Mapping[str, Tensor] = {},
    params: Mapping[str, float | Tensor] = {},
    extents: Mapping[str, int] = {},
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """What ``program`` means, differentiable in q, k, v, real inputs and tensor parameters.

    Arithmetic is in the dtype of q, in f32 for bf16 and f16 (whose range of integers is too small for positions).
    Positions are 64-bit. Memory is some numbers for every visible pair.

    Args:
        program: as checked or specialised.
        q: ``[B, H, M, D]``.
        k: ``[B, G, N, D]``.
        v: ``[B, G, N, E]``.
        inputs: every input by name.
        params: parameters by name; others have their default.
        extents: the run-time extents of the space, whose product is N.
        return_lse: also return the log-sum-exp of the rows, ``[B, H, M]``; minus infinity where no key is visible.

    Returns:
        ``[B, H, M, width of the output]`` in the dtype of q; rows without a visible key are 0 and have gradient 0.

    Raises:
        UnsupportedError: the program has routes or branches, or no log-sum-exp where one is wanted.
        IndexError: a read is outside its input at a visible pair.
        ValueError: a parameter is missing, or the space is not N.
    """
    _refuse_unsupported(program)
    compute = torch.float32 if q.dtype in _HALF else q.dtype
    run = Run(program, (q, k, v), inputs, params, extents, compute)
    output = run.rows_to_tensor(program.body.output, 0.0).to(q.dtype)
    if not return_lse:
        return output
    lse = log_denominator(program.body.weight)
    if lse is None:
        raise _unsupported(program, program.body.weight, "this weight has no softmax denominator, so no log-sum-exp")
    return output, run.rows_to_tensor(lse, float("-inf"))


def _refuse_unsupported(program: Program) -> None:
    for name, body in (*program.branches, ("", program.body)):
        for route in body.routes:
            raise _unsupported(program, route.keys_block, "the reference cannot run `route` yet", route.span)
        if name:
            raise _unsupported(program, body.output, f"the reference cannot run `branch {name}` yet")


def _unsupported(program: Program, node: Node, message: str, span: Span | None = None) -> UnsupportedError:
    text = expression(node)
    span = span or nearest_span(program, node) or Span(Source(f"<{program.name}>", text), 0, len(text))
    return UnsupportedError([Diagnostic("unsupported", message, span)])
