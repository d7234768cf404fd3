"""What of a plan these kernels cannot run, with the node to blame."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.analyse.gradient.backward import Backward, Scatter, Walk
from attnc.analyse.gradient.groups import is_grouped
from attnc.backends.protocol import Target, Unsupported, Workload
from attnc.backends.triton.adjoint import prepare
from attnc.backends.triton.configs import SHARED_MEMORY
from attnc.backends.triton.vectors import part_of
from attnc.ir.nodes import BranchOutput, Cumsum, Dot, Literal, MatVec, Node, Read, Reduce, Solve, Token
from attnc.ir.traverse import postorder
from attnc.plan import Plan, TokenMap

WIDEST = 576
WIDEST_BACKWARD = 256
_MATRIX_WIDEST = 512


def find_problems(plan: Plan, workload: Workload, target: Target) -> Iterator[Unsupported]:
    """Every reason why there is no kernel."""
    if target.kind not in ("cuda", "hip") or target.arch not in SHARED_MEMORY:
        yield Unsupported(f"Triton compiles for {', '.join(SHARED_MEMORY)} here, not for `{target}`", plan.output)
        return
    if workload.dtype == "f64":
        yield Unsupported("GPU kernels compute in f32: float64 q, k and v run on the CPU", plan.output)
    if plan.program.branches or plan.program.body.routes:
        yield Unsupported("branches and routes have no Triton kernels yet", plan.output)
        return
    for width in plan.program.widths or ():
        if width > WIDEST:
            yield Unsupported(f"heads are at most {WIDEST} wide, found {width}", plan.output)
    pairs = [plan.mask]
    for step in plan.passes:
        pairs += [one.term for one in step.parts]
        for one in step.accumulators:
            if "i" in one.value.axes:
                yield Unsupported("a value that differs by query has no Triton kernel yet", one.value)
            elif part_of(one.value) is None:
                yield Unsupported("a value must be a vector of the key's token", one.value)
    seen: set[Node] = set()
    for node in postorder(*pairs):
        seen.add(node)
        yield from _pair_problems(node)
    for node in postorder(*(one.expression for one in plan.tokens), plan.output, *([plan.lse] if plan.lse else [])):
        if node not in seen:
            yield from token_problems(node)


def find_backward_problems(backward: Backward, workload: Workload, target: Target) -> Iterator[Unsupported]:
    """Every reason why there is no kernel for a backward."""
    plan = backward.plan
    if target.kind not in ("cuda", "hip") or target.arch not in SHARED_MEMORY:
        yield Unsupported(f"Triton compiles for {', '.join(SHARED_MEMORY)} here, not for `{target}`", plan.output)
        return
    if workload.dtype == "f64":
        yield Unsupported("GPU kernels compute in f32: float64 q, k and v run on the CPU", plan.output)
    if plan.program.branches or plan.program.body.routes:
        yield Unsupported("branches and routes have no Triton kernels yet", plan.output)
        return
    if plan.program.listed and not workload.unordered:
        yield Unsupported("sums over the rows that list a key have no fixed order", plan.output)
    over_rows = [step for step in backward.steps if isinstance(step, Walk) and step.over == "rows"]
    if plan.program.listed and not all(map(is_grouped, over_rows)):
        yield Unsupported("sums over the rows that list a key are those of a group of heads", plan.output)
    if plan.program.listed and any(isinstance(step, Scatter) for step in backward.steps):
        yield Unsupported("what is read a pair has no gradient over lists of keys", plan.output)
    for width in plan.program.widths or ():
        if width > (WIDEST if plan.program.listed else WIDEST_BACKWARD):
            yield Unsupported(f"gradients take heads at most {WIDEST_BACKWARD} wide, found {width}", plan.output)
    prepared = prepare(backward)
    seen: set[Node] = set()
    pairs, tokens = [prepared.mask], list[Node]()
    for step in prepared.steps:
        match step:
            case TokenMap(expression=expression):
                tokens.append(expression)
            case Scatter(term=term, indices=indices):
                pairs += [term, *indices]
            case Walk(over=over, sums=sums):
                for one in sums:
                    pairs.append(one.term)
                    part = None if one.value is None else part_of(one.value)
                    if one.value is not None and (part is None or part.side != ("key" if over == "keys" else "query")):
                        yield Unsupported(
                            "the gradient of a vector that differs by pair has no Triton kernel", one.value
                        )
    for node in postorder(*pairs):
        seen.add(node)
        yield from _pair_problems(node)
    for node in postorder(*tokens):
        if node not in seen:
            yield from token_problems(node)


def _pair_problems(node: Node) -> Iterator[Unsupported]:
    match node:
        case Dot(a=a, b=b):
            parts = [part_of(x) for x in (a, b)]
            if None in parts or {part.side for part in parts if part} != {"query", "key"}:
                yield Unsupported("a dot product over pairs needs one vector of the query and one of the key", node)
        case Reduce(over="d"):
            yield Unsupported("a reduction over d that differs by pair has no Triton kernel yet", node)
        case _:
            yield from _everywhere(node)


def token_problems(node: Node) -> Iterator[Unsupported]:
    match node:
        case MatVec(x=x, matrix=matrix):
            if matrix.axes & {"i", "j"}:
                yield Unsupported("`matmul` takes a matrix that is the same for all tokens of a head", node)
            for width in (x.width, matrix.width):
                if not isinstance(width, Literal) or int(width.value) > _MATRIX_WIDEST:
                    yield Unsupported(f"`matmul` takes vectors of a constant width up to {_MATRIX_WIDEST}", node)
        case _:
            yield from _everywhere(node)


def _everywhere(node: Node) -> Iterator[Unsupported]:
    match node:
        case Cumsum() | Solve() | BranchOutput():
            yield Unsupported(f"`{type(node).__name__.lower()}` has no Triton kernel yet", node)
        case Reduce(over="j"):
            yield Unsupported("a reduction over the keys is left in the plan", node)
        case Token() | Read() if node.is_vector and not isinstance(node.width, Literal):
            yield Unsupported("a vector must have a constant width", node)
