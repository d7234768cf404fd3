"""The verifier that runs between passes: what a pass may leave behind, and whether it left it well-typed."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from types import MappingProxyType

from attnc.ir import build
from attnc.ir.build import IllTyped
from attnc.ir.nodes import (
    NO_AXES,
    ROW_AXES,
    BranchOutput,
    Cumsum,
    Index,
    Kind,
    Literal,
    MatVec,
    Node,
    Param,
    Pool,
    Read,
    Reduce,
    Size,
    Solve,
    State,
    Token,
    Total,
    Window,
)
from attnc.ir.program import Body, Program
from attnc.ir.traverse import contains, postorder, rebuild


class Level(enum.Enum):
    """How far an expression has come down the pipeline."""

    CHECKED = "checked program"
    SPECIALIZED = "specialized program"
    PLAN = "plan"


class Malformed(Exception):
    """A pass broke a rule of the IR: a mistake in attnc, not in the spec."""


def _is_state(node: Node) -> bool:
    return isinstance(node, State)


def _is_head_width(node: Node) -> bool:
    return isinstance(node, Size) and node.name in {"D", "E"}


def _has_open_width(node: Node) -> bool:
    return node.width is not None and not isinstance(node.width, Literal)


def _is_over_keys(node: Node) -> bool:
    return isinstance(node, Reduce) and node.over == "j"


def _couples_tokens(node: Node) -> bool:
    return isinstance(node, Cumsum | Solve | BranchOutput | Pool | Window | Total)


ILLEGAL: MappingProxyType[Level, tuple[tuple[str, Callable[[Node], bool]], ...]] = MappingProxyType(
    {
        Level.CHECKED: (("a state", _is_state),),
        Level.SPECIALIZED: (
            ("a state", _is_state),
            ("D or E", _is_head_width),
            ("a vector of unknown width", _has_open_width),
        ),
        Level.PLAN: (
            ("D or E", _is_head_width),
            ("a vector of unknown width", _has_open_width),
            ("a reduction over the keys", _is_over_keys),
            ("work across tokens", _couples_tokens),
        ),
    }
)
"""What must not occur at each level."""


def verify(roots: Iterable[Node], level: Level) -> None:
    """Checks every node under ``roots``.

    Raises:
        Malformed: a node is illegal at ``level``, or its kind, axes or width are not what its parts give.
    """
    roots = list(roots)
    nodes = list(postorder(*roots))
    matrices = {*roots, *(node.matrix for node in nodes if isinstance(node, MatVec))}
    for node in nodes:
        for what, occurs in ILLEGAL[level]:
            if occurs(node):
                raise Malformed(f"{what} in a {level.value}: {node!r}")
        if isinstance(node, Read) and node.indices.count(None) > 1 and node not in matrices:
            raise Malformed(f"a matrix outside `matmul`: {node!r}")
        try:
            again = _made_again(node)
        except (IllTyped, KeyError) as error:
            raise Malformed(f"{error}: {node!r}") from error
        if again is not node:
            found, due = ((one.kind.value, "".join(sorted(one.axes)), one.width) for one in (node, again))
            raise Malformed(f"{node!r} is {found}, its parts give {due}")


def _made_again(node: Node) -> Node:
    match node:
        case Literal(value=value):
            return build.literal(value)
        case Size(name=name):
            return build.size(name)
        case Index(name=name):
            return build.index(name)
        case Param(name=name, kind=kind):
            return build.param(name, kind)
        case Token(name=name, width=width):
            return build.token(name, width)
        case State(name=name, width=width):
            return build.state(name, width)
        case BranchOutput(names=names, width=Node() as width):
            return build.branch_output(names, width)
        case _:
            return rebuild(node, node.children)


def verify_program(program: Program, level: Level = Level.CHECKED) -> Program:
    """``program``, checked: its expressions, what each clause must be, and that what is used is declared.

    Raises:
        Malformed: it breaks a rule.
    """
    verify((node for _, node in program.roots()), level)
    if (program.widths is None) is not (level is Level.CHECKED):
        raise Malformed(f"a {level.value} with widths {program.widths}")
    _verify_declarations(program)
    for name, body in (*program.branches, ("", program.body)):
        where = f"branch {name}: " if name else ""
        _verify_body(body, where)
    return program


_RESERVED = {*build.INDEX_AXES, *"qkvBHGMNDE", "true", "false", "not", "and", "or", "if", "else"}


def _verify_declarations(program: Program) -> None:
    names = [x.name for x in program.inputs] + [x.name for x in program.parameters]
    if len({*names}) < len(names) or not _RESERVED.isdisjoint(names):
        raise Malformed(f"names that are taken among {', '.join(names)}")
    kinds = {x.name: x.kind for x in program.parameters}
    sizes = {*"BHGMNDE", *program.extents}
    for declared in program.inputs:
        for dim in declared.dims:
            _require(dim, f"dim of {declared.name}", Kind.INT, False, NO_AXES)
    for _, extent in program.space:
        _require(extent, "extent", Kind.INT, False, NO_AXES)
    _require(program.group, "group", Kind.INT, False, frozenset("h"))
    branches = {name for name, _ in program.branches}
    for node in postorder(*(node for _, node in program.roots())):
        match node:
            case Read(input=source) if source not in program.inputs:
                raise Malformed(f"`{source.name}` is read but not declared so: {node!r}")
            case Param(name=name, kind=kind) if kinds.get(name) is not kind:
                raise Malformed(f"`{name}` is used but no {kind} param")
            case Size(name=name) if name not in sizes:
                raise Malformed(f"`{name}` is used but no size")
            case BranchOutput(names=used) if not branches.issuperset(used):
                raise Malformed(f"{node!r} names a branch that is not there")
            case _:
                pass


def _verify_body(body: Body, where: str) -> None:
    pair = frozenset("bhij")
    _require(body.mask, f"{where}mask", Kind.BOOL, False, pair)
    if contains(body.mask, _is_over_keys):
        raise Malformed(f"{where}the mask decides over which keys is reduced, so it cannot reduce: {body.mask!r}")
    _require(body.score, f"{where}score", Kind.REAL, False, pair)
    _require(body.weight, f"{where}weight", Kind.REAL, False, pair)
    _require(body.value, f"{where}value", Kind.REAL, True, pair)
    _require(body.output, f"{where}output", Kind.REAL, True, ROW_AXES)


def _require(node: Node, what: str, kind: Kind, vector: bool, axes: frozenset[str]) -> None:
    if node.kind is not kind or node.is_vector is not vector or not node.axes <= axes:
        shape = "vector" if vector else "scalar"
        raise Malformed(f"{what} must be a {kind} {shape} over {''.join(sorted(axes)) or 'no axis'}: {node!r}")
