"""The pipeline, from the text of a spec to a kernel, as one straight function with named stop points."""

from __future__ import annotations

import enum
import re
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from attnc.analyse.gradient.backward import Backward
from attnc.analyse.gradient.derive import derive
from attnc.analyse.gradient.reverse import NotDifferentiable
from attnc.analyse.hoist import hoist
from attnc.analyse.lower import lower_program_to_plan, stream_program
from attnc.analyse.mask import analyse_mask
from attnc.analyse.visibility import Visibility
from attnc.backends.protocol import Backend, Config, Kernel, Target, Unsupported, Workload
from attnc.check import check
from attnc.errors import UnsupportedError
from attnc.grammar.diagnostic import Diagnostic, SpecError
from attnc.grammar.source import Source, Span
from attnc.ir.build import IllTyped
from attnc.ir.nodes import Node
from attnc.ir.program import Program
from attnc.ir.specialize import nearest_span, specialize
from attnc.ir.traverse import postorder
from attnc.plan import NotLowerable, Plan
from attnc.runtime import KernelSource, Widths
from attnc.spec import Spec
from attnc.targets import backend_for

if TYPE_CHECKING:
    from attnc.routing.composite import Composite


class Stop(enum.StrEnum):
    """After which step the pipeline ends."""

    CHECK = "check"
    SPECIALIZE = "specialize"
    PLAN = "plan"
    VISIBILITY = "visibility"
    BUILD = "build"


@dataclass(slots=True)
class Compilation:
    """What the steps made, up to where the pipeline was stopped."""

    program: Program
    plan: Plan | None = None
    visibility: Visibility | None = None
    kernel: Kernel | None = None


def compile_spec(
    spec: Spec | Program,
    widths: Widths,
    workload: Workload,
    target: Target,
    backend: str | None = None,
    stop: Stop = Stop.BUILD,
    config: Config = MappingProxyType({}),
) -> Compilation:
    """Text (or a program that was checked before) in, kernel out; tuned by ``config``.

    Raises:
        SpecError: the spec is wrong, or asks for what the target cannot do.
        TargetError: the backend is not to be had.
    """
    made = Compilation(check_spec(spec) if isinstance(spec, Spec) else spec)
    if stop is Stop.CHECK:
        return made
    made.program = specialize_program(made.program, widths)
    if stop is Stop.SPECIALIZE:
        return made
    made.plan = plan_program(made.program)
    if stop is Stop.PLAN:
        return made
    made.visibility = analyse_mask(made.plan.mask)
    if stop is Stop.VISIBILITY:
        return made
    made.kernel = build_kernel(made.plan, workload, target, backend_for(target, backend), config)
    return made


def check_spec(spec: Spec) -> Program:
    """The typed program of a text, or all of its errors as one ``SpecError``."""
    return check(spec.source, spec.name, spec.constants, spec.search)


def specialize_program(program: Program, widths: Widths) -> Program:
    """``program`` with its head widths set.

    Raises:
        SpecError: they do not suit it.
    """
    try:
        return specialize(program, *widths)
    except IllTyped as error:
        message = "with D = {} and E = {}: {}".format(*widths, error)
        raise SpecError([Diagnostic("E801", message, error.span or _whole(program), hint=error.hint)]) from None


def plan_program(program: Program) -> Plan:
    """The plan of a program whose head widths are set.

    Raises:
        UnsupportedError: it has what no plan exists for.
    """
    try:
        return lower_program_to_plan(program)
    except NotLowerable as error:
        span = _span_of(program, error.node) if error.node else _whole(program)
        raise UnsupportedError([Diagnostic("E802", str(error), span, hint=error.hint)]) from None


def made_of_parts(program: Program, source: KernelSource) -> Composite:
    """A program with routes, branches or windows as plain attentions with kernels of their own.

    Raises:
        UnsupportedError: a part of it has no plain attention.
    """
    from attnc.jit import JustInTime
    from attnc.op import Op
    from attnc.routing.composite import Composite

    try:
        made = Composite(program, lambda plain: Op(plain, source.of_part(plain)), source)
    except NotLowerable as error:
        span = _span_of(program, error.node) if error.node else _whole(program)
        raise UnsupportedError([Diagnostic("E802", str(error), span, hint=error.hint)]) from None
    if not isinstance(source, JustInTime):
        made.regroups = made.keeps = False
    return made


def build_kernel(
    plan: Plan, workload: Workload, target: Target, backend: Backend, config: Config = MappingProxyType({})
) -> Kernel:
    """Compile a plan.

    Raises:
        UnsupportedError: the backend cannot run it on ``target``; all reasons at once.
    """
    if problems := backend.problems(plan, workload, target):
        raise UnsupportedError([_located(plan.program, problem, target, backend) for problem in problems])
    return backend.build(plan, workload, target, config)


def derive_backward(program: Program, lse: bool = False) -> Backward:
    """The derived backward of a program whose head widths are set, for all gradients.

    Args:
        program: what to differentiate.
        lse: whether its log-sum-exp, which must exist, has a cotangent too.

    Raises:
        UnsupportedError: none can be derived.
    """
    try:
        return derive(stream_program(program, keep_detach=True), lse)
    except NotLowerable as error:
        span = _span_of(program, error.node) if error.node else _whole(program)
        raise UnsupportedError([Diagnostic("E802", str(error), span, hint=error.hint)]) from None
    except NotDifferentiable as error:
        span = _span_of(program, error.node) if error.node else _whole(program)
        raise UnsupportedError([Diagnostic("E803", str(error), span)]) from None


def training_problems(backward: Backward, workload: Workload, target: Target, backend: Backend) -> list[Diagnostic]:
    """Why ``backend`` cannot train with a derived backward: that and its forward, which saves states."""
    problems = [
        *backend.problems(hoist(backward.plan), workload, target),
        *backend.backward_problems(backward, workload, target),
    ]
    return [_located(backward.plan.program, problem, target, backend) for problem in problems]


def _located(program: Program, problem: Unsupported, target: Target, backend: Backend) -> Diagnostic:
    message = f"target `{target}` ({backend.name}) cannot run this: {problem.message}"
    return Diagnostic("E802", message, _span_of(program, problem.node), hint=problem.hint)


def _span_of(program: Program, node: Node) -> Span:
    """Where a node of a plan stands in the spec: it, what is around it, what it is made of, or the whole text."""
    if span := nearest_span(program, node):
        return span
    inside = [program.spans[part] for part in postorder(node) if part in program.spans]
    return inside[-1] if inside else _whole(program)


def _whole(program: Program) -> Span:
    """The name of the attention in the text that most of the program comes from."""
    spans = list(program.spans.values())
    if not spans:
        return Span(Source(program.name, ""), 0, 0)
    source = Counter(span.source for span in spans).most_common(1)[0][0]
    found = re.search(rf"\battention\s+({re.escape(program.name)})\b", source.text)
    return Span(source, *found.span(1)) if found else Span(source, 0, 0)
