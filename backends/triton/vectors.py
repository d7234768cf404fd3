"""Vectors as tensor cores take them: which tensor they lie in, and chunks of a power of two lanes."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.nodes import Index, Literal, Node, Read, Slice, Token

SMALLEST = 16
"""Lanes that a matrix product needs at least."""


@dataclass(frozen=True, slots=True)
class Part:
    """Lanes ``lo .. lo + width`` of the rows of a tensor; ``head`` is ``h`` or ``g``."""

    tensor: str
    side: str
    head: str
    lo: int
    width: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """``valid`` lanes of a tensor from ``lo`` on, in a tile of ``padded``."""

    tensor: str
    lo: int
    valid: int
    padded: int


def part_of(node: Node) -> Part | None:
    """Where the lanes of a vector lie in memory; ``None`` if it is not a plain part of a tensor of tokens."""
    match node:
        case Token(name=name, width=Literal(value=width)):
            return Part(name, "query" if name == "q" else "key", "h" if name == "q" else "g", 0, int(width))
        case Slice(x=x, lo=Literal(value=lo), hi=Literal(value=hi)):
            inner = part_of(x)
            return inner and Part(inner.tensor, inner.side, inner.head, inner.lo + int(lo), int(hi) - int(lo))
        case Read(
            input=source,
            indices=(Index(name="b"), Index(name="h" | "g" as head), Index(name="row" | "j" as token), None),
            width=Literal(value=width),
        ):
            return Part(source.name, "query" if token == "row" else "key", head, 0, int(width))
    return None


def split(width: int) -> list[tuple[int, int, int]]:
    """``(lo, valid, padded)`` of at most two chunks that cover ``width`` lanes with least padding.

    A second chunk is worth it where it saves a quarter: 192 is 128 + 64, 96 is 64 + 32, 72 is 64 + 16.
    """
    whole = max(SMALLEST, 1 << (width - 1).bit_length())
    first = whole // 2
    rest = max(SMALLEST, 1 << (width - first - 1).bit_length()) if width > first else 0
    if first < SMALLEST or first + rest >= whole:
        return [(0, width, whole)]
    return [(0, first, first), (first, width - first, rest)]


def chunks_of(part: Part) -> list[Chunk]:
    return [Chunk(part.tensor, part.lo + lo, valid, padded) for lo, valid, padded in split(part.width)]
