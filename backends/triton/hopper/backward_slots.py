"""The slots of a walk on Hopper that the portable family has not, or has otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.backends.triton.environment import identifier
from attnc.backends.triton.forms import SHIFT
from attnc.backends.triton.hopper.backward_terms import Split
from attnc.backends.triton.printer import Printer, Text
from attnc.backends.triton.slots import Functions, spread, tuple_of
from attnc.ir.nodes import Dot, Literal, Node, Read


def add_lines(functions: Functions, reads: Sequence[Read]) -> None:
    printer = functions.printer()
    texts = [text.text for text in printer.scalars(reads)]
    functions.add("LINES", "b, h, g, row, i, j, env", printer, tuple_of(texts), "What is read once an inner token.")


def add_visible(
    functions: Functions, mask: Node, dots: Sequence[Dot], rows: Sequence[Read], lines: Sequence[Read]
) -> None:
    """Write ``VISIBLE``: of the portable family's, with the lines."""
    printer = _printer(functions, dots, rows, lines)
    printer.expect(mask)
    if isinstance(mask, Literal):
        result = "inside" if mask.value else "inside & (j < 0)"
    else:
        result = f"inside & {printer.scalar(mask).within(SHIFT)}"
    functions.add(
        "VISIBLE", "inside, dots, rows, lines, b, h, g, row, i, j, env", printer, result, "Which pairs take part."
    )  # fmt: skip


def add_early(functions: Functions, split: Split, rows: Sequence[Read], lines: Sequence[Read]) -> None:
    printer = _printer(functions, split.early_dots, rows, lines)
    functions.add(
        "EARLY", "dots, rows, lines, b, h, g, row, i, j, env", printer, _tiles(printer, split.tiles),
        "The weights that wait for no cotangent, then what the others need of them.",
    )  # fmt: skip


def add_late(functions: Functions, split: Split, rows: Sequence[Read], lines: Sequence[Read]) -> None:
    printer = _printer(functions, split.late_dots, rows, lines)
    for at, tile in enumerate(split.tiles):
        printer.known[tile] = Text(printer.given(f"kept{at}", f"kept[{at}]"))
    functions.add(
        "LATE", "dots, kept, rows, lines, b, h, g, row, i, j, env", printer, _tiles(printer, split.late),
        "The weights with the cotangent.",
    )  # fmt: skip


def _printer(functions: Functions, dots: Sequence[Dot], rows: Sequence[Read], lines: Sequence[Read]) -> Printer:
    printer = functions.printer()
    for at, dot in enumerate(dots):
        printer.known[dot] = Text(printer.given(f"dot{at}", f"dots[{at}]"))
    for what, reads in (("rows", rows), ("lines", lines)):
        for at, read in enumerate(reads):
            name = identifier(f"{read.input.name}_{what[:-1]}", printer.taken)
            printer.known[read] = Text(printer.given(name, f"{what}[{at}]"))
    return printer


def _tiles(printer: Printer, terms: Sequence[Node]) -> str:
    printer.expect(*terms)
    return tuple_of([spread(term, printer.scalar(term)) for term in terms])
