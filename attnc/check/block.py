"""The declarations and clauses of an attention block or of one of its branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from attnc.check.functions import Scope, declare
from attnc.check.report import Report
from attnc.grammar import tree as t

Declared: TypeAlias = t.InputDecl | t.ConstDecl | t.ParamDecl | t.Let | t.Branch | t.Name
"""What a name of a block stands for; a bare ``Name`` is an extent of the space that the caller passes."""

ALWAYS_THERE = frozenset("b h g i j row I J B H G M N D E q k v scale score weight o".split())
SIZES = frozenset("BHGMNDE")
INDICES = frozenset({"b", "h", "g", "row", "i", "j"})


@dataclass(eq=False, slots=True)
class Block:
    """What stands between the braces. Names not found here are sought in ``outer``.

    ``refused`` are names whose declaration was an error. ``is_file`` marks the stand-in for a block in which the
    functions of a file are checked by themselves.
    """

    name: t.Name
    scope: Scope
    outer: Block | None = None
    declared: dict[str, Declared] = field(default_factory=dict)
    clauses: dict[str, t.Clause] = field(default_factory=dict)
    space: t.SpaceDecl | None = None
    routes: list[t.RouteDecl] = field(default_factory=list)
    keep: t.Keep | None = None
    branches: dict[str, Block] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    is_file: bool = False

    def find(self, name: str) -> tuple[Declared, Block] | None:
        """A declaration and the block it stands in."""
        if name in self.declared:
            return self.declared[name], self
        return self.outer.find(name) if self.outer else None

    def clause(self, keyword: str) -> tuple[t.Clause, Block] | None:
        """The clause in force here: the block's own, else the one around it."""
        if keyword in self.clauses:
            return self.clauses[keyword], self
        if self.outer is None or keyword == "output":
            return None
        return self.outer.clause(keyword)

    def names(self) -> Iterator[str]:
        """All declared names in sight."""
        yield from self.declared
        if self.outer:
            yield from self.outer.names()


def collect(
    name: t.Name, items: tuple[t.Item, ...], scope: Scope, outer: Block | None, report: Report, builtins: frozenset[str]
) -> Block:
    """Sort the statements of a block; doubles and names that are taken are reported."""
    block = Block(name, Scope(scope), outer)
    definitions = [item for item in items if isinstance(item, t.Def)]
    declare(block.scope, definitions, report, builtins | ALWAYS_THERE, block)
    for item in items:
        match item:
            case t.Def():
                pass
            case t.Clause(keyword=keyword):
                if keyword == "groups" and outer is not None:
                    report.add("E403", "a branch has no `groups` of its own", item.at, hint="write it outside")
                elif keyword in block.clauses:
                    first = block.clauses[keyword].at
                    report.add("E402", f"a second `{keyword}` clause", item.at, notes=(f"the first is at {first}",))
                else:
                    block.clauses[keyword] = item
            case t.RouteDecl():
                block.routes.append(item)
            case t.Keep():
                if block.keep is not None:
                    report.add("E402", "a second `keep queries`", item.span)
                block.keep = item
            case t.SpaceDecl():
                _space(block, item, report)
            case t.Branch():
                if outer is not None:
                    report.add("E403", "a branch cannot have branches", item.name.span)
                elif _declare(block, item.name, item, report):
                    inner = collect(item.name, item.items, block.scope, block, report, builtins)
                    block.branches[item.name.text] = inner
            case t.InputDecl() | t.ConstDecl() | t.ParamDecl() if outer is not None:
                report.add("E403", f"`{item.name.text}` is declared inside a branch", item.name.span,
                           hint="declare it outside: it belongs to the whole attention")  # fmt: skip
            case t.InputDecl() | t.ConstDecl() | t.ParamDecl() | t.Let():
                _declare(block, item.name, item, report)
    for function in block.scope.own.values():
        _refuse_taken(block, function.declared.name, report)
    return block


def _space(block: Block, item: t.SpaceDecl, report: Report) -> None:
    if block.outer is not None or block.space is not None:
        if block.outer is None:
            report.add("E402", "a second `space`", item.span)
        else:
            report.add("E403", "a branch has no `space` of its own", item.span, hint="write it outside")
        return
    block.space = item
    seen: set[str] = set()
    for axis, extent in item.axes:
        if axis.text in seen:
            report.add("E103", f"two coordinates are named `{axis.text}`", axis.span)
        seen.add(axis.text)
        if isinstance(extent, t.Name) and extent.text in SIZES:
            hint = f"name it otherwise, as in `{axis.text}: {extent.text}{axis.text}`"
            report.add("E104", f"`{extent.text}` is always there and no extent", extent.span, hint=hint)


def _declare(block: Block, name: t.Name, item: Declared, report: Report) -> bool:
    may_shadow = isinstance(item, t.Let) and name.text in SIZES
    if name.text in ALWAYS_THERE and not may_shadow:
        block.refused.add(name.text)
        report.add("E104", f"`{name.text}` is always there", name.span, "cannot be declared", "choose another name")
        return False
    if name.text in block.declared:
        first = name_of(block.declared[name.text]).span
        report.add("E103", f"`{name.text}` is declared twice", name.span, notes=(f"first declared at {first}",))
        return False
    block.declared[name.text] = item
    return True


def name_of(declared: Declared) -> t.Name:
    """The name with the place of a declaration."""
    return declared if isinstance(declared, t.Name) else declared.name


def _refuse_taken(block: Block, name: t.Name, report: Report) -> None:
    if name.text in block.declared:
        first = name_of(block.declared[name.text]).span
        report.add("E103", f"`{name.text}` is a name and a function", name.span, notes=(f"declared at {first}",))


def add_extents(block: Block) -> None:
    """Declare the extents of the space that no constant defines: sizes that come with a call."""
    for _, extent in block.space.axes if block.space else ():
        if isinstance(extent, t.Name) and extent.text not in block.declared and extent.text not in ALWAYS_THERE:
            block.declared[extent.text] = extent
