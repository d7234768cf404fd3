"""Programs, plans and derived backwards as text for the cache on disk: JSON around printed expressions.

Expressions stand in the notation of :mod:`attnc.ir.printer`, one line for each that is shared, and are read by
:mod:`attnc.ir.reader`. Everything else is a field of one of :data:`CLASSES`; nothing that is read can run code.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from attnc.grammar.source import Source
from attnc.ir.nodes import Input, Node, Read
from attnc.ir.printer import declaration, expression, listing, parameter
from attnc.ir.program import Parameter, Program
from attnc.ir.reader import Names, Unreadable
from attnc.ir.traverse import postorder

CLASSES: Mapping[str, str] = {
    name: module
    for module, names in {
        "attnc.grammar.source": "Span",
        "attnc.ir.program": "Program Body Route Select Listed",
        "attnc.plan": "Plan Pass Statistic Accumulator TokenMap",
        "attnc.analyse.gradient.backward": "Backward Walk Sum Scatter Contribution",
    }.items()
    for name in names.split()
}
"""Where each class is; its module is imported when one is read, so that programs alone take nothing of plans."""
DEEP = 1_000
"""Levels that an expression has at most once what is shared or nested has a line of its own."""


@functools.cache
def _class(name: str) -> tuple[type[Any], tuple[str, ...]]:
    """A class of :data:`CLASSES`, and its fields."""
    found: type[Any] = getattr(importlib.import_module(CLASSES[name]), name)
    return found, tuple(one.name for one in fields(found))


def write(value: Any) -> str:
    """``value`` as text: plain numbers, texts, tuples and mappings, and instances of :data:`CLASSES`.

    Raises:
        TypeError: it holds something else.
    """
    nodes: list[Node] = []
    declared: dict[Any, None] = {}
    sources: dict[Source, int] = {}
    widths = None
    for one in _parts(value):
        match one:
            case Node():
                nodes.append(one)
            case Input() | Parameter():
                declared[one] = None
            case Source():
                sources.setdefault(one, len(sources))
            case Program():
                widths = one.widths
    declared |= dict.fromkeys(node.input for node in postorder(*nodes) if isinstance(node, Read))
    if len({one.name for one in declared}) < len(declared):
        raise TypeError("two declarations of one name")
    lines, names = listing(dict.fromkeys(nodes))

    def pack(one: Any) -> Any:
        match one:
            case None | bool() | int() | float() | str():
                return one
            case tuple():
                return [pack(part) for part in one]
            case Node():
                return {"=": expression(one, names, DEEP)}
            case Input() | Parameter():
                return {"declared": one.name}
            case Source():
                return {"source": sources[one]}
            case Mapping():
                return {"map": [[pack(name), pack(part)] for name, part in one.items()]}
        return {type(one).__name__: [pack(getattr(one, name)) for name in _class(type(one).__name__)[1]]}

    return json.dumps(
        {
            "widths": widths,
            "sources": [[source.name, source.text] for source in sources],
            "inputs": [declaration(one) for one in declared if isinstance(one, Input)],
            "parameters": [parameter(one) for one in declared if isinstance(one, Parameter)],
            "lines": lines,
            "value": pack(value),
        }
    )


def read(text: str) -> Any:
    """The value that :func:`write` wrote.

    Raises:
        ValueError: it wrote no such thing; :class:`~attnc.ir.reader.Unreadable` is one.
    """
    try:
        return _read(json.loads(text))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise Unreadable(f"this was not kept here: {error}") from None


def _read(found: Mapping[str, Any]) -> Any:
    names = Names(widths=found["widths"] and tuple(found["widths"]))
    sources = [Source(name, text) for name, text in found["sources"]]
    declared: dict[str, Input | Parameter] = {}
    for text in found["inputs"]:
        declared |= {one.name: one for one in (names.declare_input(text),)}
    for text in found["parameters"]:
        declared |= {one.name: one for one in (names.declare_parameter(text),)}
    for line in found["lines"]:
        names.define(line)

    def unpack(one: Any) -> Any:
        if isinstance(one, list):
            return tuple(map(unpack, one))
        if not isinstance(one, dict):
            return one
        ((word, inside),) = one.items()
        match word:
            case "=":
                return names.read(inside)
            case "declared":
                return declared[inside]
            case "source":
                return sources[inside]
            case "map":
                return {unpack(name): unpack(part) for name, part in inside}
        return _class(word)[0](*map(unpack, inside))

    return unpack(found["value"])


def _parts(value: Any) -> Iterator[Any]:
    """The value and all that it is made of, down to expressions."""
    yield value
    match value:
        case None | bool() | int() | float() | str() | Node() | Input() | Parameter() | Source():
            return
        case tuple():
            inside: Iterable[Any] = value
        case Mapping():
            inside = (part for pair in value.items() for part in pair)
        case _ if CLASSES.get(type(value).__name__) == type(value).__module__:
            inside = (getattr(value, name) for name in _class(type(value).__name__)[1])
        case _:
            raise TypeError(f"{type(value).__name__} is not kept on disk")
    for one in inside:
        yield from _parts(one)
