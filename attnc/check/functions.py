"""Functions written with ``def``: where each is seen, and calling one by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attnc.check.report import Report, TooMuch
from attnc.grammar import tree as t

if TYPE_CHECKING:
    from attnc.check.block import Block

MAX_FUNCTIONS = 1000


@dataclass(eq=False)
class Scope:
    """The functions seen from a file or an attention block; what is not here is sought in ``outer``."""

    outer: Scope | None = None
    own: dict[str, Function] = field(default_factory=dict)

    def find(self, name: str) -> Function | None:
        """The function of that name nearest to this scope."""
        return self.own.get(name) or (self.outer.find(name) if self.outer else None)

    def names(self) -> Iterator[str]:
        """All names seen from here."""
        yield from self.own
        if self.outer:
            yield from self.outer.names()


@dataclass(eq=False, slots=True)
class Function:
    """A ``def`` with the scope of its body; ``home`` is the block whose declarations it sees, if it stands in one."""

    declared: t.Def
    scope: Scope
    home: Block | None
    recursive: bool = False
    callees: tuple[Function, ...] = ()

    @property
    def required(self) -> int:
        """How many arguments must be given."""
        return sum(parameter.default is None for parameter in self.declared.parameters)


def declare(
    scope: Scope, definitions: Sequence[t.Def], report: Report, reserved: frozenset[str], home: Block | None
) -> None:
    """Add functions to a scope; doubles, reserved names and recursion are reported."""
    if len(definitions) > MAX_FUNCTIONS:
        span = definitions[MAX_FUNCTIONS].name.span
        report.add("E901", f"this spec is too large: {len(definitions)} functions, the limit is {MAX_FUNCTIONS}", span)
        raise TooMuch
    added = []
    for definition in definitions:
        name = definition.name
        if name.text in reserved:
            report.add("E104", f"`{name.text}` is always there", name.span, "cannot be defined again")
        if name.text in scope.own:
            first = scope.own[name.text].declared.name.span
            report.add("E103", f"`{name.text}` is defined twice", name.span, notes=(f"first defined at {first}",))
            continue
        seen: set[str] = set()
        for parameter in definition.parameters:
            if parameter.name.text in seen:
                report.add("E103", f"two parameters are named `{parameter.name.text}`", parameter.name.span)
            seen.add(parameter.name.text)
        scope.own[name.text] = function = Function(definition, scope, home)
        added.append(function)
    for function in added:
        function.callees = tuple(_called(function))
    for function in added:
        if _reaches_itself(function):
            function.recursive = True
            name = function.declared.name
            hint = "functions are inlined; write the expression out"
            report.add("E105", f"`{name.text}` calls itself", name.span, "recursive", hint)


def _reaches_itself(function: Function) -> bool:
    todo = list(function.callees)
    seen = set(todo)
    while todo:
        callee = todo.pop()
        if callee is function:
            return True
        new = [other for other in callee.callees if other not in seen]
        seen.update(new)
        todo += new
    return False


def _called(function: Function) -> Iterator[Function]:
    parameters = {parameter.name.text for parameter in function.declared.parameters}
    defaults = [parameter.default for parameter in function.declared.parameters if parameter.default]
    for expr in (function.declared.body, *defaults):
        for name in names_in(expr):
            found = None if name in parameters else function.scope.find(name)
            if found is not None:
                yield found


def names_in(expr: t.Expr | t.Range) -> Iterator[str]:
    """All names an expression mentions, of values and functions alike."""
    match expr:
        case t.Name(text=text):
            yield text
        case t.Unary(x=x):
            yield from names_in(x)
        case t.Binary(a=a, b=b):
            yield from names_in(a)
            yield from names_in(b)
        case t.Compare(first=first, rest=rest):
            yield from names_in(first)
            for _, x in rest:
                yield from names_in(x)
        case t.Conditional(then=then, condition=condition, otherwise=otherwise):
            for x in (then, condition, otherwise):
                yield from names_in(x)
        case t.Call(function=function, arguments=arguments):
            yield function.text
            for argument in arguments:
                yield from names_in(argument.value)
        case t.Subscript(base=base, items=items):
            yield from names_in(base)
            for item in items:
                yield from names_in(item)
        case t.Range(lo=lo, hi=hi):
            for bound in (lo, hi):
                if bound is not None:
                    yield from names_in(bound)
        case t.Number() | t.Truth() | t.Coordinate():
            return
