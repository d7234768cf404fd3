"""What a program means, as one function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnc.errors import UnsupportedError
from attnc.grammar.diagnostic import Diagnostic
from attnc.grammar.source import Source, Span
from attnc.ir.lse import log_denominator
from attnc.ir.nodes import BranchOutput, Node
from attnc.ir.printer import expression
from attnc.ir.program import Program
from attnc.ir.specialize import nearest_span
from attnc.ir.traverse import postorder
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
        UnsupportedError: a log-sum-exp is wanted and there is none.
        IndexError: a read is outside its input at a visible pair.
        ValueError: a parameter is missing, or the space is not N.
    """
    compute = torch.float32 if q.dtype in _HALF else q.dtype
    if program.branches:
        output, rows = _combined(program, (q, k, v), inputs, params, extents, compute, return_lse)
        return (output, rows) if rows is not None else output
    run = Run(program, (q, k, v), inputs, params, extents, compute)
    output = run.rows_to_tensor(program.body.output, 0.0).to(q.dtype)
    return (output, _lse(program, run)) if return_lse else output


def _lse(program: Program, run: Run) -> Tensor:
    lse = log_denominator(program.body.weight)
    if lse is None:
        raise _unsupported(program, program.body.weight, "this weight has no softmax denominator, so no log-sum-exp")
    return run.rows_to_tensor(lse, float("-inf"))


def _combined(
    program: Program,
    tokens: tuple[Tensor, Tensor, Tensor],
    inputs: Mapping[str, Tensor],
    params: Mapping[str, float | Tensor],
    extents: Mapping[str, int],
    compute: torch.dtype,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output of branches combined, and the log-sum-exp of a plain ``merge``."""
    outputs: dict[tuple[str, ...], Tensor] = {}
    lses: dict[str, Tensor] = {}
    used = [node for node in postorder(program.body.output) if isinstance(node, BranchOutput)]
    merged = {name for node in used if len(node.names) > 1 for name in node.names}
    b, h, m, _ = tokens[0].shape
    sees = torch.zeros(b, h, m, dtype=torch.bool, device=tokens[0].device)
    for name, body in program.branches:
        one = replace(program, body=body, branches=())
        run = Run(one, tokens, inputs, params, extents, compute)
        outputs[name,] = run.rows_to_tensor(body.output, 0.0)
        sees[run.seen.rows.b, run.seen.rows.h, run.seen.rows.row] = True
        if name in merged:
            lses[name] = _lse(one, run)
    for node in used:
        if len(node.names) > 1:
            outputs[node.names] = merge([outputs[name,] for name in node.names], [lses[name] for name in node.names])
    run = Run(program, tokens, inputs, params, extents, compute, outputs, sees)
    output = run.rows_to_tensor(program.body.output, 0.0).to(tokens[0].dtype)
    if not return_lse:
        return output, None
    if program.body.output not in used or not merged:
        message = "branches have one log-sum-exp where the output is their `merge` alone"
        raise _unsupported(program, program.body.output, message)
    return output, torch.stack([lses[name] for name in used[0].names]).logsumexp(0)


def merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tensor:
    """One softmax over disjoint key sets, from the output ``[.., E]`` and log-sum-exp ``[..]`` of each; 0 of none."""
    stacked = torch.stack(list(lses))
    largest = stacked.detach().amax(0)
    shares = (stacked - torch.where(largest.isneginf(), torch.zeros_like(largest), largest)).exp()
    total = shares.sum(0)
    shares = shares / torch.where(total > 0, total, torch.ones_like(total))
    return (shares[..., None] * torch.stack(list(outputs)).to(shares.dtype)).sum(0)


def _unsupported(program: Program, node: Node, message: str) -> UnsupportedError:
    text = expression(node)
    span = nearest_span(program, node) or Span(Source(f"<{program.name}>", text), 0, len(text))
    return UnsupportedError([Diagnostic("unsupported", message, span)])
