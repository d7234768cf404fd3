"""How many tiles are visited for the masks with a name, against the fewest there are: exact counts."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from attnc.analyse.mask import analyse_mask
from attnc.analyse.scalar import evaluate
from attnc.analyse.tiles import classify_tiles, visited_tiles
from attnc.analyse.visibility import Visibility, print_visibility
from attnc.check import check
from attnc.draw import draw, draw_coloured
from attnc.grammar.source import Source
from attnc.ir.build import apply, index, literal
from attnc.ir.nodes import Node

LINE = {
    "full": "true",
    "causal": "causal",
    "strictly_causal": "causal and i != j",
    "causal_first_rows": "causal and i < 100",
    "window": "window(100)",
    "sliding_window": "sliding_window(100)",
    "between": "between(-70, 30)",
    "prefix": "causal or prefix(70)",
    "prefix_of_batch_row": "causal or j < lengths[b]",
    "sink_and_window": "causal and (sliding_window(100) or sink(4))",
    "global_and_window": "window(41) or global_tokens(20)",
    "block": "block(48)",
    "block_causal": "block_causal(48)",
    "causal_in_block": "causal and block(100)",
    "blocks_back": "causal and i // 48 - j // 48 < 3",
    "star": "causal and (block(64) or prefix(32))",
    "strided": "causal and strided(40)",
    "dilated": "causal and dilated(24, 4)",
    "fixed": "causal and (block(64) or fixed(64, 4))",
    "power_attention": "power_blocks(16, 3)",
    "s2": "causal and (i // 16 - j // 16 < 3 or (j // 16 + h * 2 + 1) % 8 == 0 or h >= H - 1)",
    "spans_of_heads": "causal and i - j < spans[h]",
    "neighbourhood": "neighborhood(31)",
    "neighbourhood_even": "neighborhood(30)",
    "neighbourhood_dilated": "neighborhood(15, dilation=4)",
    "neighbourhood_strided": "neighborhood(31, stride=4)",
    "neighbourhood_causal": "neighborhood_causal(31)",
    "neighbourhood_causal_dilated": "neighborhood_causal(15, dilation=4)",
}
GRID = {
    "neighbourhood_2d": "neighborhood2d(7, 7)",
    "neighbourhood_2d_dilated": "neighborhood2d(5, 5, 2)",
    "neighbourhood_2d_strided": "neighborhood2d(8, 8, 1, 4)",
    "neighbourhood_2d_causal": "neighborhood_causal(5, i.y, j.y, Y) and neighborhood(5, i.x, j.x, X)",
    "block_2d": "block2d(8, 8)",
    "shifted_block_2d": "shifted_block2d(8, 8, 4, 4)",
    "grid_2d": "grid2d(4, 4)",
}
SHAPES = [(384, 384, 16, 16), (384, 384, 64, 32), (200, 384, 32, 48), (384, 200, 16, 32), (1, 384, 16, 64)]
ENV = {"b": 0, "h": 1, "g": 0, "H": 4, "G": 4, "B": 1, "lengths": [70], "spans": [5, 77, 1000, 0]}


def mask_of(text: str) -> Node:
    inputs = "input lengths: int[B]" if "lengths" in text else "input spans: int[H]" if "spans" in text else ""
    space = "space (y: Y, x: X)" if "2d" in text or ".x" in text else ""
    return check(Source("test", f"attention a {{ {inputs} {space} mask {text} }}")).body.mask


def fewest(mask: Node, m: int, n: int, block_m: int, block_n: int, env: dict[str, object]) -> tuple[int, int]:
    """How many tiles have a visible pair, and how many have only such."""
    i, j = torch.arange(n - m, n)[:, None], torch.arange(n)
    seen = torch.as_tensor(evaluate(mask, {**env, "M": m, "N": n, "i": i, "j": j})).expand(m, n)
    tiles = [tile for rows in seen.split(block_m) for tile in rows.split(block_n, dim=1)]
    return sum(bool(tile.any()) for tile in tiles), sum(bool(tile.all()) for tile in tiles)


def count_by_rows(v: Visibility, m: int, n: int, block_m: int, block_n: int) -> int:
    """How many tiles lie in the row ranges, key tile by key tile."""
    first = torch.arange(n - m, n, block_m)
    last = (first + block_m - 1).clamp(max=n - 1)
    count = 0
    for j in range(0, n, block_n):
        env = {**ENV, "M": m, "N": n, "j_lo": j, "j_hi": min(j + block_n, n) - 1}
        inside = torch.zeros(len(first), dtype=torch.bool)
        for r in v.row_ranges:
            lo, hi = evaluate(r.lo, env), evaluate(r.hi, env)
            inside |= (first < hi) & (last >= lo) & (lo < hi)
        count += int(inside.sum())
    return count


@pytest.mark.parametrize("name", LINE)
def test_no_tile_is_visited_in_vain(name: str) -> None:
    v = analyse_mask(mask_of(LINE[name]))
    for shape in SHAPES:
        partial, full = visited_tiles(v, *shape, ENV)
        some, every = fewest(v.mask, *shape, ENV)
        assert partial + full == some, shape
        if v.by_ranges:
            assert sum(visited_tiles(replace(v, empty=literal(False)), *shape, ENV)) == some, f"{shape} by key ranges"
            assert count_by_rows(v, *shape) == some, f"{shape} by row ranges"
        missed = {"s2": 1}.get(name, 0)
        assert every - missed <= full <= every, shape


@pytest.mark.parametrize("name", GRID)
def test_tiles_that_hold_whole_lines_or_parts_of_one(name: str) -> None:
    v = analyse_mask(mask_of(GRID[name]))
    for n, x, block in ((512, 16, 32), (1024, 32, 32), (1024, 64, 32), (768, 24, 24)):
        env = {**ENV, "X": x, "Y": n // x}
        partial, full = visited_tiles(v, n, n, block, block, env)
        assert partial + full == fewest(v.mask, n, n, block, block, env)[0], (n, x)


def test_tiles_that_break_lines_cost_a_little() -> None:
    v = analyse_mask(mask_of("neighborhood2d(7, 7)"))
    env = {**ENV, "X": 40, "Y": 40}
    assert sum(visited_tiles(v, 1600, 1600, 64, 64, env)) == 149
    assert fewest(v.mask, 1600, 1600, 64, 64, env)[0] == 125


@pytest.mark.parametrize(
    ("text", "by_ranges"),
    [
        ("causal", True),
        ("causal and sliding_window(100)", True),
        ("causal and (block(64) or prefix(32))", True),
        ("neighborhood(31)", True),
        ("causal and dilated(24, 4)", True),
        ("causal and strided(64)", False),
        ("j == i // 64 * 64", False),
        ("power_blocks(16, 3)", False),
        ("neighborhood2d(7, 7)", False),
    ],
)
def test_whether_ranges_say_it_all(text: str, by_ranges: bool) -> None:
    assert analyse_mask(mask_of(text)).by_ranges is by_ranges


def test_documents_are_left_to_the_device() -> None:
    mask = check(Source("test", "attention a { input doc: int[B, N] mask causal and same_document(doc) }")).body.mask
    v = analyse_mask(mask)
    assert (v.by_data, v.by_ranges) == (True, False)
    assert v.full is literal(False)
    assert visited_tiles(v, 256, 256, 32, 32, {}) == (36, 0)
    doc = torch.arange(256)[None] // 64
    assert visited_tiles(v, 256, 256, 32, 32, {"doc": doc}) == (8, 4)


def test_tiles_of_nothing() -> None:
    v = analyse_mask(mask_of("causal"))
    for m, n in ((0, 0), (0, 8), (8, 0)):
        assert visited_tiles(v, m, n, 4, 4, {}) == (0, 0)
    assert visited_tiles(analyse_mask(literal(False)), 8, 8, 4, 4, {}) == (0, 0)


def test_memory_is_of_the_order_of_the_tiles() -> None:
    tiles = classify_tiles(analyse_mask(mask_of("causal and sliding_window(4096)")), 1 << 20, 1 << 20, 2048, 2048, {})
    assert tiles.visited.shape == (512, 512)
    assert tiles.counts == (512 + 510, 511)


def test_analysis_takes_milliseconds() -> None:
    masks = [mask_of(text) for text in LINE.values()]
    start = time.process_time()
    for mask in masks:
        analyse_mask(mask)
    assert (time.process_time() - start) / len(masks) < 0.05


@pytest.mark.parametrize("shape", ["minmax", "truths", "remainders", "choices"])
@pytest.mark.parametrize("count", [20, 200])
def test_absurd_masks_are_given_up_quickly(shape: str, count: int) -> None:
    i, j = index("i"), index("j")
    x, truth = apply("sub", i, j), apply("lt", i, j)
    for k in range(count):
        c = literal(k + 2)
        match shape:
            case "minmax":
                x = apply("max", apply("min", x, apply("floordiv", apply("add", x, j), c)), apply("sub", c, x))
            case "truths":
                truth = apply("eq", truth, apply("lt", apply("add", i, c), j))
            case "remainders":
                truth = apply("and" if k % 2 else "or", truth, apply("eq", apply("mod", x, c), literal(k)))
            case "choices":
                x = apply("where", apply("lt", x, c), apply("add", x, j), apply("sub", x, i))
    start = time.process_time()
    analyse_mask(truth if shape in ("truths", "remainders") else apply("lt", x, literal(3)))
    assert time.process_time() - start < 2


GOLDEN = {
    "true": """\
empty false
full  true
keys  [0, N)  full [0, N)
rows  [N - M, N)  full [N - M, N)
tiles by ranges""",
    "causal": """\
empty i_hi < j_lo
full  i_lo >= j_hi
keys  [0, i_hi + 1)  full [0, i_lo + 1)
rows  [j_lo, N)  full [j_hi, N)
tiles by ranges""",
    "causal and sliding_window(128)": """\
empty i_hi < j_lo or j_hi + 127 < i_lo
full  i_lo >= j_hi and j_lo + 127 >= i_hi
keys  [i_lo - 127, i_hi + 1)  full [i_hi - 127, i_lo + 1)
rows  [j_lo, j_hi + 128)  full [j_hi, j_lo + 128)
tiles by ranges""",
    "causal or j < lengths[b]": """\
empty i_hi < j_lo and lengths[b] <= j_lo
full  i_lo >= j_hi or lengths[b] > j_hi
keys  [0, max(i_hi, lengths[b] - 1) + 1)  full [0, max(i_lo, lengths[b] - 1) + 1)
rows  [min(j_lo, N - M if lengths[b] > j_lo else N), N)  full [min(j_hi, N - M if lengths[b] > j_hi else N), N)
tiles by ranges""",
    "causal and block(64)": """\
empty i_hi < j_lo or (j_hi // 64 < i_lo // 64 or i_hi // 64 < j_lo // 64)
full  i_lo >= j_hi and (i_lo // 64 >= j_hi // 64 and j_lo // 64 >= i_hi // 64)
keys  [i_lo // 64 * 64, i_hi + 1)  full [i_hi // 64 * 64, i_lo + 1)
rows  [j_lo, j_hi // 64 * 64 + 64)  full [j_hi, j_lo // 64 * 64 + 64)
tiles by ranges""",
    "causal and strided(64)": """\
empty i_hi < j_lo or (i_hi - j_lo) // 64 < (max(i_lo - j_hi, 0) + 63) // 64
full  i_lo >= j_hi and (i_lo + j_lo >= j_hi + i_hi and (i_lo - j_hi) % 64 == 0)
keys  [0, i_hi + 1)
rows  [j_lo, N)
tiles one by one""",
}


@pytest.mark.parametrize("text", GOLDEN)
def test_printed_bounds(text: str) -> None:
    assert print_visibility(analyse_mask(mask_of(text))) == GOLDEN[text]


def test_drawing() -> None:
    v = analyse_mask(mask_of("causal and (sliding_window(96) or sink(4))"))
    assert draw(v, 256, 256, 32, 32).splitlines() == [
        "▒·······",
        "█▒······",
        "██▒·····",
        "▒██▒····",
        "▒▒██▒···",
        "▒·▒██▒··",
        "▒··▒██▒·",
        "▒···▒██▒",
        "64 tiles of 32x32: · 34 empty  ▒ 17 partial  █ 13 full",
    ]


def test_drawing_of_many_keys_fits_the_width() -> None:
    lines = draw(analyse_mask(mask_of("causal")), 4096, 4096, 32, 32, columns=16).splitlines()
    assert [len(line) for line in lines[:-1]] == [16] * 16
    assert lines[-1].startswith("16384 tiles of 32x32, drawn 8x8 to a character")


def test_drawing_in_colour_says_the_same() -> None:
    v = analyse_mask(mask_of("causal"))
    text = draw_coloured(v, 96, 96, 32, 32)
    assert text.plain == draw(v, 96, 96, 32, 32)
    assert {str(span.style) for span in text.spans} == {"dim", "yellow", "green"}
