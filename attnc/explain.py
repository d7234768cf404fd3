"""What the compiler derived from a spec, in words: ``attnc explain`` and ``Op.explain``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from attnc.analyse.invariance import free_maxima
from attnc.analyse.mask import analyse_mask
from attnc.analyse.scan import why_pairwise
from attnc.analyse.visibility import Visibility
from attnc.backends.triton.choice import outlook
from attnc.ir.nodes import Literal
from attnc.ir.printer import expression
from attnc.plan import Accumulator, Pass, Plan, PlanPrinter, Statistic, TokenMap


def explain(plan: Plan, visibility: Visibility | None = None) -> str:
    """Passes over the keys, running state, rescales, skipped tiles, token maps; what was not possible, and why.

    Args:
        plan: what to explain.
        visibility: what is known of its mask, if that was analysed before.
    """
    printer = PlanPrinter(plan)
    passes, free = len(plan.passes), free_maxima(plan)
    sections = [
        (f"{plan.program.name}: {_count(passes, 'pass', 'passes')} over the keys ({plan.family})", ()),
        ("Once a token, before the passes", [_token_map(token_map) for token_map in plan.tokens]),
        *(
            ("In the pass" if passes == 1 else f"In pass {number}", _pass(step, printer, free))
            for number, step in enumerate(plan.passes, 1)
        ),
        ("For each row, after the last key", _epilogue(plan, printer)),
        ("State of a row", [_state(plan)]),
        ("Which keys a row walks over", _walk(visibility or analyse_mask(plan.mask))),
        ("On NVIDIA Hopper, in 16 bits", [outlook(plan)]),
        ("Not possible, and why", [*plan.notes, why_pairwise(plan)]),
    ]
    return "\n\n".join(_section(title, lines) for title, lines in sections if lines or title is sections[0][0]) + "\n"


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _token_map(token_map: TokenMap) -> str:
    dims = ", ".join(expression(dim) for dim in token_map.result.dims)
    return f"{token_map.result.name}[{dims}] = {expression(token_map.expression)}"


def _pass(step: Pass, printer: PlanPrinter, free: Set[str]) -> Iterator[str]:
    for part in step.parts:
        yield from printer.define(*((part.term,) if part.shift is None else (part.term, part.shift)))
        yield f"{part.name}: {_sum(part, printer)}"
    for name in sorted({one.name for one in step.statistics} & free):
        yield f"no result depends on {name}: a kernel may let it lag behind"
    if all(part.shift is None for part in step.parts):
        yield "nothing is rescaled: no sum is relative to a running maximum"


def _sum(part: Statistic | Accumulator, printer: PlanPrinter) -> str:
    match part:
        case Statistic(op="max"):
            return f"the largest {printer.text(part.term)}"
        case Statistic(term=Literal()):
            what = "how many keys are visible"
        case Statistic():
            what = f"the sum of {printer.text(part.term)}"
        case Accumulator():
            what = f"the sum of {printer.text(part.summand)}, a vector of {_width(part)}"
    if part.shift is None:
        return what
    c = printer.text(part.shift)
    return f"{what}; when c = {c} grows, what is summed so far is multiplied by exp(c(old) - c(new))"


def _width(accumulator: Accumulator) -> str:
    width = accumulator.value.width
    assert width is not None
    return expression(width)


def _epilogue(plan: Plan, printer: PlanPrinter) -> Iterator[str]:
    yield from printer.lines("", "output =", plan.output)
    if plan.lse is None:
        yield "no log-sum-exp: the weight has not exactly one softmax denominator"
    else:
        yield from printer.lines("", "log-sum-exp =", plan.lse)
    yield "a row that sees no key: output 0" + ("" if plan.lse is None else ", log-sum-exp -inf")


def _state(plan: Plan) -> str:
    numbers = sum(len(step.statistics) for step in plan.passes)
    vectors = [f"a vector of {_width(a)}" for step in plan.passes for a in step.accumulators]
    return ", ".join([*([_count(numbers, "number", "numbers")] if numbers else []), *vectors])


def _walk(visibility: Visibility) -> Iterator[str]:
    yield f"mask: {expression(visibility.mask)}"
    for part in visibility.key_ranges:
        yield f"rows i_lo to i_hi walk over the keys from {expression(part.lo)} to before {expression(part.hi)}"
    if not isinstance(visibility.empty, Literal):
        yield f"a tile of them and the keys j_lo to j_hi is skipped where {expression(visibility.empty)}"
    if not isinstance(visibility.full, Literal):
        yield f"it needs no mask where {expression(visibility.full)}"
    if visibility.by_data:
        yield "the mask depends on data: the tiles left are classified on the device, once for each version of the data"
