"""The canonical form of a program: the same for two programs that differ only in names, order and spelling.

Operands are put in the order of digests that know no names, inputs included. Inputs that look alike at first are told
apart by where they are used (colour refinement), and if that does not do it, by trying each (individualisation) and
keeping the smallest text, so that the choice does not depend on how they were called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from attnc.ir import build
from attnc.ir.nodes import (
    Apply,
    Bound,
    BranchOutput,
    Index,
    Input,
    Literal,
    Node,
    Param,
    Pool,
    Read,
    Reduce,
    Size,
    State,
    Token,
    Window,
)
from attnc.ir.normal import Normalizer, operands
from attnc.ir.printer import print_program
from attnc.ir.program import Body, Program, Route
from attnc.ir.traverse import postorder, rewrite

_Digest: TypeAlias = bytes
_Colours: TypeAlias = Mapping[str, _Digest]
_MOST_TRIALS = 64


@dataclass(frozen=True, slots=True)
class Canonical:
    """A program in canonical form, and what its inputs, parameters and extents were called, in their new order."""

    program: Program
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    extents: tuple[str, ...]

    @property
    def text(self) -> str:
        """The program, printed: equal for programs of equal canonical form, and only for them."""
        return print_program(self.program)


def canonicalize(program: Program) -> Canonical:
    """The canonical form. It has no spans and no names of the author's.

    Programs with very many inputs that are used alike (so that 64 trials do not settle their order) may have a form
    that depends on the order of their declaration; forms of different meanings are never equal.
    """
    colours = {x.name: _digest("input", x.kind, len(x.dims)) for x in program.inputs}
    colours |= {x.name: _digest("param", x.kind, repr(x.default)) for x in program.parameters}
    return _Search(program).best(colours)


class _Search:
    """Looks for the smallest form over the orders of inputs that cannot be told apart."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.trials = 0

    def best(self, colours: _Colours) -> Canonical:
        form, colours = self._refined(colours)
        alike = _alike(colours)
        if not alike:
            return form.named()
        alike = self._one_of_each_kind(alike, colours)
        found: Canonical | None = None
        for name in alike:
            if found is not None and self.trials >= _MOST_TRIALS:
                break
            self.trials += 1
            candidate = self.best({**colours, name: _digest("chosen", colours[name])})
            if found is None or candidate.text < found.text:
                found = candidate
        assert found is not None
        return found

    def _refined(self, colours: _Colours) -> tuple[_Form, _Colours]:
        """Colours told apart by use as far as that goes."""
        form = _Form(self.program, colours)
        while len({*colours.values()}) < len(colours):
            finer = form.colours_by_use()
            is_stable = len({*finer.values()}) == len({*colours.values()})
            colours, form = finer, _Form(self.program, finer)
            if is_stable:
                break
        return form, colours

    def _one_of_each_kind(self, alike: list[str], colours: _Colours) -> list[str]:
        """Those of ``alike`` that exchanging two of them does not make equal."""
        total = {name: _digest(colour, place) for place, (name, colour) in enumerate(colours.items())}
        text = _Form(self.program, total).text_by_colour()
        kept: list[str] = []
        for name in alike:
            exchanged = ({**total, name: total[other], other: total[name]} for other in kept)
            if not any(_Form(self.program, swapped).text_by_colour() == text for swapped in exchanged):
                kept.append(name)
        return kept


def _alike(colours: _Colours) -> list[str]:
    """The names of the first colour that several have; empty if there is none."""
    classes: dict[_Digest, list[str]] = {}
    for name, colour in colours.items():
        classes.setdefault(colour, []).append(name)
    several = [colour for colour, names in classes.items() if len(names) > 1]
    return classes[min(several, key=lambda colour: (len(classes[colour]), colour))] if several else []


class _Form:
    """A program in normal form, ordered by the digests that some colours of its names give."""

    def __init__(self, program: Program, colours: _Colours) -> None:
        self.colours = colours
        self.extents = {name: place for place, name in enumerate(program.extents)}
        self.branches: dict[str, _Digest] = {}
        self.digests: dict[Node, _Digest] = {}
        normal = Normalizer((node for _, node in program.roots()), self.digest)
        branches = []
        for name, body in program.branches:
            branches.append((name, body.map(normal)))
            self.branches[name] = self._body(branches[-1][1])
        self.program = replace(program.map(normal), branches=tuple(branches), spans={})

    def digest(self, node: Node) -> _Digest:
        """What a node computes, names left out."""
        for part in postorder(node, stop=self.digests):
            if part not in self.digests:
                self.digests[part] = self._node(part)
        return self.digests[node]

    def _node(self, node: Node) -> _Digest:
        children = [self.digests[child] for child in node.children]
        match node:
            case Size(name=name) if name in self.extents:
                return _digest("extent", self.extents[name])
            case Literal(value=value):
                return _digest("literal", node.kind, repr(value))
            case Size(name=name) | Index(name=name) | Token(name=name) | State(name=name):
                return _digest(type(node).__name__, name)
            case Param(name=name):
                return _digest("param", self.colours[name])
            case Read(input=source, indices=indices):
                dims = [self.digest(dim) for dim in source.dims]
                opened = [at is None for at in indices]
                return _digest("read", self.colours[source.name], *dims, *opened, *children)
            case BranchOutput(names=names):
                return _digest("branch", *(self.branches[name] for name in names))
            case Apply(op=op):
                return _digest(op, *children)
            case Reduce(op=op, over=over):
                return _digest(op, over, *children)
            case Pool(op=op, over=over):
                return _digest("pool", op, over, *children)
            case Window(axis=axis):
                return _digest("window", axis, *children)
            case Bound(level=level):
                return _digest("bound", level, *children)
            case _:
                return _digest(type(node).__name__, *children)

    def _body(self, body: Body) -> _Digest:
        return _digest(*(part for label, node in _labelled(body) for part in (label, self.digest(node))))

    def _roots(self) -> Iterator[tuple[_Digest, Node]]:
        """Every expression with a digest of its place."""
        yield _digest("group"), self.program.group
        for place, (_, extent) in enumerate(self.program.space):
            yield _digest("space", place), extent
        for declared in self.program.inputs:
            for place, dim in enumerate(declared.dims):
                yield _digest("dim", self.colours[declared.name], place), dim
        for name, body in self.program.branches:
            yield from ((_digest("branch", self.branches[name], label), node) for label, node in _labelled(body))
        yield from ((_digest("body", label), node) for label, node in _labelled(self.program.body))

    def colours_by_use(self) -> _Colours:
        """Colours that also tell in what place of which expressions a name occurs."""
        above: dict[Node, set[_Digest]] = {}
        roots = list(self._roots())
        for which, node in roots:
            above.setdefault(node, set()).add(which)
        uses: dict[str, list[_Digest]] = {name: [] for name in self.colours}
        for node in reversed(list(postorder(*(node for _, node in roots)))):
            if node not in above:  # a link within a chain
                continue
            here = _digest(self.digest(node), *sorted(above[node]))
            for role, part in operands(node):
                above.setdefault(part, set()).add(_digest(here, role))
            if isinstance(node, Read):
                uses[node.input.name].append(here)
            elif isinstance(node, Param):
                uses[node.name].append(here)
        return {name: _digest(self.colours[name], *sorted(found)) for name, found in uses.items()}

    def named(self) -> Canonical:
        """With names by the order of first use."""
        return self._rename(self._order_of_use())

    def text_by_colour(self) -> str:
        """The text with names by the order of colours, which are all different."""
        return self._rename(sorted(self.colours, key=self.colours.__getitem__)).text

    def _order_of_use(self) -> list[str]:
        unused = sorted(self.colours, key=self.colours.__getitem__)
        used: dict[str, None] = {}
        for node in postorder(*(node for _, node in self.program.roots())):
            if isinstance(node, Read):
                used[node.input.name] = None
            elif isinstance(node, Param):
                used[node.name] = None
        return [*used, *(name for name in unused if name not in used)]

    def _rename(self, order: Iterable[str]) -> Canonical:
        program = self.program
        order = list(order)
        inputs = {x.name: x for x in program.inputs}
        parameters = {x.name: x for x in program.parameters}
        read = [name for name in order if name in inputs]
        given = [name for name in order if name in parameters]
        names = {name: f"x{place}" for place, name in enumerate(read)}
        names |= {name: f"p{place}" for place, name in enumerate(given)}
        names |= {name: f"s{place}" for name, place in self.extents.items()}
        branches = self._branch_order()
        branch_names = {name: f"branch{place}" for place, name in enumerate(branches)}
        memo: dict[Node, Node] = {}

        def renamed(node: Node) -> Node:
            match node:
                case Size(name=name) if name in self.extents:
                    return build.size(names[name])
                case Param(name=name, kind=kind):
                    return build.param(names[name], kind)
                case BranchOutput(names=used, width=Node() as width):
                    return build.branch_output(tuple(branch_names[name] for name in used), width)
                case Read(input=source, indices=indices):
                    return build.read(_with_dims(rename_input(source), rename), indices)
                case _:
                    return node

        def rename(root: Node) -> Node:
            return rewrite(root, renamed, memo)

        def rename_input(source: Input) -> Input:
            return Input(names[source.name], source.kind, source.dims)

        bodies = dict(program.branches)
        form = Program(
            name="attention",
            inputs=tuple(_with_dims(rename_input(inputs[name]), rename) for name in read),
            parameters=tuple(replace(parameters[name], name=names[name]) for name in given),
            space=tuple((f"c{place}", rename(extent)) for place, (_, extent) in enumerate(program.space)),
            group=rename(program.group),
            body=program.body.map(rename),
            branches=tuple((branch_names[name], bodies[name].map(rename)) for name in branches),
            widths=program.widths,
            listed=program.listed and program.listed.map(lambda x: _with_dims(rename_input(x), rename)),
        )
        return Canonical(form, tuple(read), tuple(given), program.extents)

    def _branch_order(self) -> list[str]:
        """Branches by first use in the output, unused ones by what they compute."""
        used = (node.names for node in postorder(self.program.body.output) if isinstance(node, BranchOutput))
        order = dict.fromkeys(name for names in used for name in names)
        rest = sorted(self.branches, key=self.branches.__getitem__)
        return [*order, *(name for name in rest if name not in order)]


def _labelled(body: Body) -> Iterator[tuple[str, Node]]:
    """The expressions of a body with what tells their place; routes with all that is no expression in them."""
    for place, route in enumerate(body.routes):
        shape = repr(_shape(route))
        yield from ((f"route {place} {number} {shape}", node) for number, node in enumerate(route.roots()))
    yield from ((label, node) for label, node in body.roots() if label != "route")


def _shape(route: Route) -> Route:
    return route.map(lambda node: build.literal(0))


def _with_dims(source: Input, fn: Callable[[Node], Node]) -> Input:
    return Input(source.name, source.kind, tuple(map(fn, source.dims)))


def _digest(*parts: object) -> _Digest:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        made.update(len(data).to_bytes(4, "little") + data)
    return made.digest()
