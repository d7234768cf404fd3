"""The syntax tree: what was written, with where. Nothing here knows what a name means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from attnc.grammar.source import Span


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier with its place."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Number:
    value: int | float
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Truth:
    value: bool
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Coordinate:
    """``i.x``: a coordinate of a position, or (``N.x``) the extent of an axis of the space."""

    base: Name
    axis: Name
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unary:
    """``-x`` or ``not x``."""

    op: str
    x: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic, bitwise and logical operators, by their symbol."""

    op: str
    a: Expr
    b: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """``first op expr op expr ...``, true where every link is."""

    first: Expr
    rest: tuple[tuple[str, Expr], ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Conditional:
    """``then if condition else otherwise``."""

    then: Expr
    condition: Expr
    otherwise: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a call; ``name`` where it is given by name."""

    name: Name | None
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    function: Name
    arguments: tuple[Argument, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Range:
    """``lo:hi`` in brackets; both may be left out."""

    lo: Expr | None
    hi: Expr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Subscript:
    """``base[item, ...]``: a read of an input, a slice of a vector, or a running sum at a position."""

    base: Expr
    items: tuple[Expr | Range, ...]
    span: Span = field(compare=False, repr=False)


Expr: TypeAlias = Name | Number | Truth | Coordinate | Unary | Binary | Compare | Conditional | Call | Subscript


@dataclass(frozen=True, slots=True)
class Import:
    path: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function, with its default value."""

    name: Name
    default: Expr | None


@dataclass(frozen=True, slots=True)
class Def:
    name: Name
    parameters: tuple[Parameter, ...]
    body: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class InputDecl:
    name: Name
    kind: str
    dims: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ConstDecl:
    name: Name
    kind: str | None
    value: Expr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ParamDecl:
    name: Name
    kind: str | None
    value: Expr | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SpaceDecl:
    axes: tuple[tuple[Name, Expr], ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Let:
    name: Name
    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Clause:
    """``query key value mask score normalize output scale groups``, by keyword. ``at`` is the keyword's place."""

    keyword: str
    value: Expr
    at: Span = field(compare=False, repr=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Rank:
    value: Expr
    over: str | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SelectDecl:
    call: Call
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Candidates:
    """``candidates EXPR``: the blocks that are ranked."""

    value: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Always:
    """``always`` (counted by ``select``) or ``also`` (not counted): ``self``, ``first(n)``, ``last(n)``, conditions."""

    word: str
    blocks: tuple[Expr, ...]
    span: Span = field(compare=False, repr=False)


RouteItem: TypeAlias = Rank | Candidates | SelectDecl | Always


@dataclass(frozen=True, slots=True)
class RouteDecl:
    """``route keys(...) per query|queries(...)|head { rank, candidates, select, always, also }``."""

    keys: tuple[Argument, ...]
    per: str
    queries: tuple[Argument, ...]
    items: tuple[RouteItem, ...]
    head: Span = field(compare=False, repr=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Keep:
    """``keep queries top(n) by EXPR``."""

    select: Call
    by: Expr
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Branch:
    name: Name
    items: tuple[Item, ...]
    span: Span = field(compare=False, repr=False)


Item: TypeAlias = InputDecl | ConstDecl | ParamDecl | SpaceDecl | Let | Def | Clause | RouteDecl | Keep | Branch


@dataclass(frozen=True, slots=True)
class Attention:
    name: Name
    items: tuple[Item, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class File:
    """One file: its imports, functions and attentions, in order."""

    imports: tuple[Import, ...]
    functions: tuple[Def, ...]
    attentions: tuple[Attention, ...]
    span: Span = field(compare=False, repr=False)
