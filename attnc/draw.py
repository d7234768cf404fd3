"""A mask as a picture in text: one character a tile."""

from __future__ import annotations

from rich.text import Text

from attnc.analyse.scalar import Environment
from attnc.analyse.tiles import Tiles, classify_tiles
from attnc.analyse.visibility import Visibility

EMPTY, PARTIAL, FULL = "·", "▒", "█"
STYLES = {EMPTY: "dim", PARTIAL: "yellow", FULL: "green"}


def draw(
    visibility: Visibility,
    m: int,
    n: int,
    block_m: int = 64,
    block_n: int = 64,
    env: Environment | None = None,
    columns: int = 96,
) -> str:
    """The tiles of an ``m`` x ``n`` mask, row tiles downwards, key tiles to the right.

    Tiles are enlarged, by whole factors and alike in both directions, until a line has at most ``columns`` of them; the
    counts in the last line are of the tiles as asked for. ``env`` is as for
    :func:`~attnc.analyse.tiles.classify_tiles`.
    """
    env = env or {}
    larger = max(1, -(-n // (block_n * columns)))
    shown = classify_tiles(visibility, m, n, block_m * larger, block_n * larger, env)
    tiles = classify_tiles(visibility, m, n, block_m, block_n, env) if larger > 1 else shown
    return "\n".join([*_lines(shown), _legend(tiles, block_m, block_n, larger)])


def draw_coloured(*args: object, **kwargs: object) -> Text:
    """:func:`draw` as text that rich prints in colour."""
    text = Text(draw(*args, **kwargs))  # type: ignore[arg-type]
    for glyph, style in STYLES.items():
        text.highlight_regex(f"{glyph}+", style)
    return text


def _lines(tiles: Tiles) -> list[str]:
    glyphs = tiles.visited.int() + tiles.full.int()
    return ["".join((EMPTY, PARTIAL, FULL)[g] for g in line) for line in glyphs.tolist()]


def _legend(tiles: Tiles, block_m: int, block_n: int, larger: int) -> str:
    partial, full = tiles.counts
    total = tiles.visited.numel()
    scale = f", drawn {larger}x{larger} to a character" if larger > 1 else ""
    return (
        f"{total} tiles of {block_m}x{block_n}{scale}: "
        f"{EMPTY} {total - partial - full} empty  {PARTIAL} {partial} partial  {FULL} {full} full"
    )
