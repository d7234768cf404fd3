"""The only door from text to a typed program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attnc.check import names
from attnc.check.block import add_extents, collect
from attnc.check.clauses import body_of, clause_value
from attnc.check.declared import extent_of, parameter_of
from attnc.check.evaluate import Evaluator
from attnc.check.frame import Frame
from attnc.check.functions import Scope
from attnc.check.intrinsics import INTRINSICS
from attnc.check.modules import Modules
from attnc.check.report import Report, TooMuch, did_you_mean
from attnc.check.unused import check_definitions, check_unused
from attnc.check.values import Whole
from attnc.grammar import Diagnostic, Source, Span, SpecError
from attnc.grammar import tree as t
from attnc.grammar.parse import parse
from attnc.ir.nodes import Node
from attnc.ir.program import Parameter, Program


def check(
    source: Source,
    name: str | None = None,
    constants: Mapping[str, int | float | bool] | None = None,
    search: Sequence[Path] = (),
) -> Program:
    """The program of one attention of a file.

    Every attention of the file is checked, so that all its errors come out at once.

    Args:
        source: the text; its name is the path that imports are relative to.
        name: which attention, needed where the file has several.
        constants: values for the attention's constants, by name.
        search: folders, besides the file's own, that imports may come from.

    Raises:
        SpecError: with every error found.
    """
    report = Report()
    program: Program | None = None
    file = parse(source)
    try:
        modules = Modules(source, search, report)
        scope = modules.scope(file)
        chosen = _choose(file, name, source, report)
        seen: dict[str, Span] = {}
        for attention in file.attentions:
            if attention.name.text in seen:
                name_, first = attention.name, seen[attention.name.text]
                notes = (f"the first is at {first}",)
                report.add("E103", f"a second attention named `{name_.text}`", name_.span, notes=notes)
                continue
            seen[attention.name.text] = attention.name.span
            is_chosen = attention is chosen
            made = _Attention(attention, scope, report, constants or {} if is_chosen else None).program()
            program = made if is_chosen else program
        for functions in (scope, *modules.imported()):
            check_definitions(functions, report)
    except TooMuch:
        pass
    except RecursionError:
        message = "this spec is nested too deeply"
        raise SpecError([Diagnostic("E902", message, Span(source, 0, 0), hint="name parts of it with `let`")]) from None
    report.raise_if_any()
    assert program is not None
    return program


def _choose(file: t.File, name: str | None, source: Source, report: Report) -> t.Attention | None:
    """The attention to be made into a program."""
    names = [attention.name.text for attention in file.attentions]
    end = Span(source, 0, 0)
    if not names:
        report.add("E504", "this file holds no attention", end, hint="write `attention NAME { ... }`")
    elif name is None and len(names) > 1:
        listed = ", ".join(f"`{other}`" for other in names)
        report.add("E504", "this file holds several attentions: name one", end, hint=f"there are {listed}")
    elif name is not None and name not in names:
        hint = did_you_mean(name, names) or f"there are {', '.join(f'`{other}`' for other in names)}"
        report.add("E504", f"this file holds no attention `{name}`", end, hint=hint)
    else:
        return file.attentions[names.index(name) if name is not None else 0]
    return None


class _Attention:
    """Checks one attention block. Without ``constants``, ones that lack a value are no error."""

    def __init__(
        self, attention: t.Attention, scope: Scope, report: Report, constants: Mapping[str, int | float | bool] | None
    ) -> None:
        self.report = report
        self.block = collect(attention.name, attention.items, scope, None, report, frozenset(INTRINSICS))
        self.ev = Evaluator(report, constants)
        add_extents(self.block)

    def program(self) -> Program | None:
        """The typed program; ``None`` where there were errors."""
        block, ev = self.block, self.ev
        before = len(self.report)
        self._refuse_unknown_constants()
        declared = self._declared()
        extents = [extent_of(ev, block, n) for n in range(len(block.space.axes) if block.space else 0)]
        group = clause_value(ev, block, "groups")
        branches = [(name, body_of(ev, branch)) for name, branch in block.branches.items()]
        body = body_of(ev, block)
        check_unused(ev, block, had_errors=len(self.report) > before)
        if len(self.report) > before or body is None or not isinstance(group, Node):
            return None
        axes = [axis.text for axis, _ in block.space.axes] if block.space else []
        return Program(
            name=block.name.text,
            inputs=tuple(value.input for value in declared if isinstance(value, Whole)),
            parameters=tuple(value for value in declared if isinstance(value, Parameter)),
            space=tuple((axis, extent) for axis, extent in zip(axes, extents, strict=True) if isinstance(extent, Node)),
            group=group,
            body=body,
            branches=tuple((name, made) for name, made in branches if made is not None),
            spans=ev.spans,
        )

    def _declared(self) -> list[Whole | Parameter]:
        """The inputs and params, in order; constants are checked on the way."""
        block, ev = self.block, self.ev
        frame = Frame("let", block.scope, block, block)
        found: list[Whole | Parameter | None] = []
        for declared in block.declared.values():
            match declared:
                case t.InputDecl() | t.ConstDecl():
                    value = names.declared_value(ev, declared, block, frame)
                    found.append(value if isinstance(value, Whole) else None)
                case t.ParamDecl():
                    found.append(parameter_of(ev, declared, block, frame)[0])
        return [value for value in found if value is not None]

    def _refuse_unknown_constants(self) -> None:
        block, given = self.block, self.ev.constants or {}
        known = [name for name, declared in block.declared.items() if isinstance(declared, t.ConstDecl)]
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known) or f"its constants are {', '.join(known) or '(none)'}"
                message = f"`{block.name.text}` has no constant `{name}`"
                self.report.add("E307", message, block.name.span, hint=hint)
