"""From a checked program to a plan: token-only work out, then the passes over the keys."""

from __future__ import annotations

from attnc.analyse.hoist import hoist, pull_scalars
from attnc.analyse.streaming import stream
from attnc.ir.lse import log_denominator
from attnc.ir.program import Program
from attnc.plan import NotLowerable, Plan

LOAD = "attnc.load runs it: choices and windows are made first, then attentions that have plans"


def lower_program_to_plan(program: Program) -> Plan:
    """Plans the forward pass of a program whose head widths may be known already: :func:`stream_program`, hoisted."""
    return hoist(stream_program(program))


def stream_program(program: Program, keep_detach: bool = False) -> Plan:
    """The passes of a program over its keys, with the work on tokens alone still in place.

    ``keep_detach`` is for derivatives: a plan with ``detach`` in it may take more passes.

    Raises:
        NotLowerable: the program is several steps (choices, windows, branches), each with a plan of its own, or has a
            reduction that is neither a statistic nor an accumulator.
    """
    body = program.body
    if program.branches:
        raise NotLowerable("`branch` has no plan of its own", body.output, LOAD)
    if body.routes:
        raise NotLowerable("`route` has no plan of its own", body.routes[0].rank, LOAD)
    if body.windows is not None:
        raise NotLowerable("`pool` has no plan of its own", body.score, LOAD)
    lse = log_denominator(body.weight)
    roots = (body.output,) if lse is None else (body.output, lse)
    streamed = stream(*map(pull_scalars, roots), keep_detach=keep_detach)
    output, *rest = streamed.roots
    return Plan(program, (), body.mask, streamed.passes, output, rest[0] if rest else None, streamed.notes)
