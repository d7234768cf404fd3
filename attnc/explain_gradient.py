"""The derived backward of a spec, in the notation of the language: ``attnc explain --grad``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from attnc.analyse.gradient.backward import Backward, Contribution, Scatter, Step, Sum, Walk, expressions_of, results_of
from attnc.analyse.gradient.hoist import hoist_backward
from attnc.analyse.hoist import is_plain
from attnc.backends.triton.hopper.backward_explain import explain_walks
from attnc.ir.build import apply
from attnc.ir.nodes import Input, Kind, Node, Read
from attnc.ir.printer import expression
from attnc.ir.traverse import postorder
from attnc.plan import TokenMap

NOTHING = "zero: the result does not depend on it, or only through a step function or `detach`"


def explain_gradient(backward: Backward) -> str:
    """What the forward saves, the steps with their terms named, what gradients are summed from, kernels on Hopper."""
    on_hopper = list(explain_walks(backward))
    backward = hoist_backward(backward)
    printer = _Printer(backward)
    steps = [(title, list(group)) for title, group in groupby(backward.steps, _title)]
    sections = [
        ("Saved by the forward, a row of a head", [_saved(source) for source in backward.reads if _is_kept(source)]),
        *(
            (f"Step {number}, {title}", [line for step in group for line in printer.step(step)])
            for number, (title, group) in enumerate(steps, 1)
        ),
        ("Gradients", list(_gradients(backward))),
        (
            "Constants to the derivative",
            [f"{printer.text(c)}: the result does not change with it" for c in backward.shifts],
        ),
        ("On NVIDIA Hopper, in 16 bits, where it fits the registers", on_hopper),
    ]
    head = f"{backward.plan.program.name}: {_walks(backward)}, after a forward that saves {_size(backward)}"
    bodies = ("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections if lines)
    return "\n\n".join([head, *bodies]) + "\n"


def explain_refusal(name: str, reasons: Iterable[str]) -> str:
    """What is said where no backward is derived."""
    lines = "\n".join(f"  {reason}" for reason in reasons)
    return f"{name}: gradients come from the reference, in memory in proportion to M * N, because\n{lines}\n"


def _is_kept(source: Input) -> bool:
    return not source.name.startswith("d_")


def _walks(backward: Backward) -> str:
    counts = Counter(step.over for step in backward.steps if isinstance(step, Walk))
    scatters = sum(isinstance(step, Scatter) for step in backward.steps)
    parts = [f"{number} over the {over}" for over, number in counts.items()]
    parts += [f"{scatters} into tables"] if scatters else []
    return f"backward in {sum(counts.values()) + scatters} walks ({', '.join(parts)})"


def _width(source: Input) -> str:
    return expression(source.dims[3]) if len(source.dims) == 4 else "1"


def _size(backward: Backward) -> str:
    kept = [_width(source) for source in backward.reads if _is_kept(source)]
    return f"{' + '.join(kept)} numbers a row" if kept else "nothing"


def _saved(source: Input) -> str:
    dims = ", ".join(map(expression, source.dims))
    if source.name == "out":
        return f"out[{dims}], the output, in the element type of q"
    return f"{source.name.removeprefix('saved_')}[{dims}], in f32 (f64 where q is)"


def _title(step: Step) -> str:
    match step:
        case Walk(over="keys"):
            return "for each row, over the keys it sees"
        case Walk():
            return "for each key, over the rows that see it"
        case Scatter():
            return "for each pair, into a table"
        case TokenMap(side="query"):
            return "once a row"
        case TokenMap():
            return "once a key"


def _gradients(backward: Backward) -> Iterator[str]:
    program = backward.plan.program
    found: dict[str, list[Contribution]] = {"q": [], "k": [], "v": []}
    found |= {source.name: [] for source in program.inputs if source.kind is Kind.REAL}
    for part in backward.contributions:
        found.setdefault(part.name, []).append(part)
    parameters = {parameter.name for parameter in program.parameters}
    for name, parts in found.items():
        if name not in parameters:
            yield f"{name}: {' + '.join(map(_gathered, parts)) or NOTHING}"


def _gathered(part: Contribution) -> str:
    name = part.result.name
    if part.level == "pair":
        return f"{name}, summed to {expression(part.at)}"
    if is_plain(part.at):
        return name if part.name == "q" else f"{name}, summed over the heads that share {expression(part.at)}"
    return f"{name}, summed over the {'rows' if part.level == 'query' else 'keys'} that read {expression(part.at)}"


class _Printer:
    """Prints the expressions of steps in order, with names for what several places share."""

    def __init__(self, backward: Backward) -> None:
        roots = [root for step in backward.steps for root in expressions_of(step)]
        uses = Counter(roots)
        nodes = list(postorder(*roots))
        uses.update(child for node in nodes for child in node.children)
        self._shared = {node for node in nodes if uses[node] > 1 and _deserves_name(node)}
        self._names: dict[Node, str] = {}
        own = {*backward.reads, *(result for step in backward.steps for result in results_of(step))}
        for node in nodes:
            if isinstance(node, Read) and node.input in own:
                self._names[node] = node.input.name.removeprefix("saved_")
        self._count = 0

    def text(self, node: Node) -> str:
        return expression(node, self._names).replace("$", "")

    def step(self, step: Step) -> list[str]:
        lines = list(self._define(*expressions_of(step)))
        match step:
            case Walk(sums=sums):
                lines += [f"{one.result.name} = the sum of {self._summand(one)}" for one in sums]
            case Scatter(result=result, term=term, indices=indices):
                lines.append(f"{result.name}[{', '.join(map(self.text, indices))}] += {self.text(term)}")
            case TokenMap(result=result, expression=computed):
                lines.append(f"{result.name} = {self.text(computed)}")
        return lines

    def _define(self, *roots: Node) -> Iterator[str]:
        for node in postorder(*roots, stop=self._names):
            if node in self._shared and node not in self._names:
                text = self.text(node)
                self._names[node] = f"t{self._count}"
                self._count += 1
                yield f"let {self._names[node]} = {text}"

    def _summand(self, one: Sum) -> str:
        return self.text(one.term if one.value is None else apply("mul", one.term, one.value))


def _deserves_name(node: Node) -> bool:
    return any(child.children for child in node.children) and not isinstance(node, Read)
