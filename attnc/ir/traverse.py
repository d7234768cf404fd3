"""Walking and rebuilding graphs, without recursion: a spec may nest deeper than Python's stack.

``rewrite`` and ``rebuild`` go through the builders, so that whatever replaces a node, kinds, axes and widths above
it are inferred again, and :class:`~attnc.ir.build.IllTyped` is raised where they no longer fit.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping

from attnc.ir import build
from attnc.ir.nodes import (
    Apply,
    Bound,
    BranchOutput,
    Cumsum,
    Dot,
    Index,
    Literal,
    MatVec,
    Node,
    Param,
    Pool,
    Read,
    Reduce,
    Rope,
    Size,
    Slice,
    Solve,
    State,
    Token,
    Total,
    Window,
)


def postorder(*roots: Node, stop: Container[Node] = ()) -> Iterator[Node]:
    """Every node under ``roots`` once, children first and left to right; not below the nodes in ``stop``."""
    seen: set[Node] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node not in stop:
                stack.extend((child, False) for child in reversed(node.children))


def rebuild(node: Node, children: tuple[Node, ...]) -> Node:
    """``node`` made again from other children (those of ``node.children``, in that order).

    Raises:
        IllTyped: the children do not fit.
    """
    match node:
        case Literal() | Size() | Index() | Param() | Token() | BranchOutput() | State():
            return node
        case Read(input=source, indices=indices):
            given = iter(children)
            return build.read(source, tuple(None if at is None else next(given) for at in indices))
        case Apply(op=op):
            return build.apply(op, *children)
        case Dot():
            return build.dot(*children)
        case Reduce(op=op, over="j"):
            return build.reduce_keys(op, *children)
        case Reduce(op=op, over="J" | "w"):
            return build.reduce_candidates(op, *children)
        case Reduce(op=op):
            return build.reduce_width(op, *children)
        case Slice():
            return build.slice_(*children)
        case Rope():
            return build.rope(*children)
        case MatVec():
            return build.matvec(*children)  # type: ignore[arg-type]
        case Cumsum():
            return build.cumsum(*children)
        case Pool(op=op, over=over):
            return build.pool(op, over, *children)
        case Window(axis=axis):
            return build.window(axis, *children)
        case Bound(level=level):
            return build.bound(level, *children)
        case Total():
            return build.total(*children)  # type: ignore[arg-type]
        case Solve():
            return build.solve(*children)
    raise AssertionError(f"a node of unknown type {type(node).__name__}")


def rewrite(root: Node, fn: Callable[[Node], Node], memo: dict[Node, Node] | None = None) -> Node:
    """``root`` with ``fn`` applied to every node, children first.

    ``fn`` sees each node after its children were replaced. ``memo`` maps every node met to what became of it; pass
    the same one again to share work between several roots.

    Raises:
        IllTyped: a node does not fit its new children; its ``node`` says which.
    """
    memo = {} if memo is None else memo
    for node in postorder(root, stop=memo):
        if node not in memo:
            children = tuple(memo[child] for child in node.children)
            try:
                memo[node] = fn(node if children == node.children else rebuild(node, children))
            except build.IllTyped as error:
                error.node = error.node or node
                raise
    return memo[root]


def substitute(root: Node, replacements: Mapping[Node, Node]) -> Node:
    """``root`` with each key of ``replacements`` replaced by its value; the values are not searched again."""
    return rewrite(root, lambda node: node, dict(replacements))


def contains(root: Node, wanted: Callable[[Node], bool]) -> bool:
    """Whether any node of the graph is ``wanted``."""
    return any(map(wanted, postorder(root)))
