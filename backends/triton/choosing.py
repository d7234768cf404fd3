"""Choosing single keys: from a ranking to its two kernels, and one call of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnc.analyse.key_ranking import KeyRanking, Operand
from attnc.analyse.mask import analyse_mask
from attnc.backends.protocol import Target, Unsupported, Workload
from attnc.backends.triton import slots
from attnc.backends.triton.assembly import SIZES, TRITON_TYPES, Assembly, Lowered, power_of_two, size_value
from attnc.backends.triton.call import Execute, bound_call
from attnc.backends.triton.configs import SHARED_MEMORY
from attnc.backends.triton.gather import LIST_HEADS
from attnc.backends.triton.printer import Text
from attnc.backends.triton.recipe import Arguments, Constant, Extent, Launch, Layout, Recipe, Value
from attnc.backends.triton.slots import spread
from attnc.ir.nodes import Bound, Dot
from attnc.ir.traverse import postorder

MOST_SCORES = 1 << 25
"""Ranks held at a time, 4 bytes each: rows are taken in stretches that keep to it, of ``FEWEST`` rows at least."""

FEWEST = 16
_PLACES = {"b": 0, "h": 1, "g": 2, "n": 3, "token": 4}


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys of a tile of ranks, warps and stages; keys that are selected from at once."""

    rows: int
    keys: int
    warps: int
    stages: int
    selected: int


INTERPRETED = Tile(16, 16, 1, 1, 32)


def tile_for(workload: Workload, target: Target, width: int) -> Tile:
    """What is compiled for."""
    if workload.dtype == "f32" or width > 256:
        return Tile(32, 32, 4, 1, 2048)
    stages = 1 if target.kind == "hip" else 3
    return Tile(64, 128, 8, stages, 2048) if width <= 128 else Tile(64, 64, 4, min(stages, 2), 2048)


def find_problems(ranking: KeyRanking, workload: Workload, target: Target) -> Iterator[Unsupported]:
    """Every reason why there is no kernel."""
    if target.kind not in ("cuda", "hip") or target.arch not in SHARED_MEMORY:
        yield Unsupported(f"Triton compiles for {', '.join(SHARED_MEMORY)} here, not for `{target}`", ranking.final)
        return
    types = {"q": workload.dtype, "k": workload.dtype} | _types(ranking, workload)
    used = [types[one.tensor] for one in (ranking.query, ranking.key) if one is not None]
    if "f64" in (*used, *(types[source.name] for source in ranking.program.inputs)):
        yield Unsupported("GPU kernels rank in f32: float64 is ranked in torch", ranking.final)
    if len(set(used)) > 1:
        yield Unsupported("the vectors of a rank are of one type in kernels", ranking.final)


def _types(ranking: KeyRanking, workload: Workload) -> dict[str, str]:
    return dict(zip((source.name for source in ranking.program.inputs), workload.inputs, strict=True))


def lower_key_ranking(ranking: KeyRanking, workload: Workload, tile: Tile, precision: str) -> Lowered:
    """The kernels of a ranking."""
    program = ranking.program
    types = {"q": TRITON_TYPES[workload.dtype], "k": TRITON_TYPES[workload.dtype], "scores": "i32"}
    types |= {name: TRITON_TYPES[dtype] for name, dtype in _types(ranking, workload).items()}
    types |= {"numbers": "i32", "counts": "i32"}
    assembly = Assembly(program, types["q"], precision, analyse_mask(ranking.visible), types)
    functions = assembly.functions("rank")
    slots.add_group(functions, program.group)
    assembly.add_ranges(functions, "keys")
    slots.add_visible(functions, ranking.visible, (), ())
    _add_ranks(functions, ranking)
    common: dict[str, Arguments] = {size: size_value(size) for size in ("first", "rows", "H", "G", "M", "N")}
    scores = Value("*i32", "tensor", "scores", divisible=16)
    constants: dict[str, Constant] = {
        "BLOCK": tile.rows,
        "INNER_BLOCK": tile.keys,
        "STAGES": tile.stages,
        "WIDTH": ranking.key.width if ranking.key else 0,
        "QUERY": _places(ranking.query),
        "KEY": _places(ranking.key),
        "MANY_KEYS": ranking.key is not None and "n" in ranking.key.places,
        "LIST_HEADS": LIST_HEADS[ranking.heads],
        "SUMMED": ranking.total is not None,
        "PRECISION": precision,
    }
    arguments = {
        "scores": scores,
        "query": _operand(assembly, ranking.query),
        "key": _operand(assembly, ranking.key),
        "env": tuple(functions.env.values),
        **common,
        "COUNT": size_value("count"),
    }
    grid: tuple[Extent, ...] = (Extent("N", tile.keys), Extent("rows", tile.rows), Extent("choosers"))
    assembly.add(
        Launch("rank", "rank_keys", arguments, constants, functions.names, grid, warps=tile.warps, stages=tile.stages),
        functions,
    )
    functions = assembly.functions("select")
    slots.add_group(functions, program.group)
    assembly.add_ranges(functions, "keys")
    arguments = {
        "scores": scores,
        "numbers": Value("*i32", "tensor", "numbers", divisible=4),
        "counts": Value("*i32", "tensor", "counts", divisible=4),
        "env": tuple(functions.env.values),
        **common,
        "LONGEST": size_value("longest"),
    }
    constants = {"SIZE": tile.selected, "LIST_HEADS": LIST_HEADS[ranking.heads]}
    grid = (Extent("rows"), Extent("choosers"))
    assembly.add(Launch("select", "select_keys", arguments, constants, functions.names, grid, warps=4), functions)
    recipe = Recipe(
        tuple(assembly.launches),
        tuple(source.name for source in program.inputs),
        tuple(parameter.name for parameter in program.parameters),
        tuple(program.extents),
        assembly.layouts,
    )
    return Lowered(recipe, tuple(assembly.texts))


def _add_ranks(functions: slots.Functions, ranking: KeyRanking) -> None:
    """Write ``TERM`` and ``RANK``."""
    printer = functions.printer()
    for node in postorder(ranking.term):
        if isinstance(node, Bound):
            printer.known[node] = Text("n")
        if isinstance(node, Dot):
            printer.known[node] = Text("dot")
    printer.expect(ranking.term)
    text = spread(ranking.term, printer.scalar(ranking.term))
    functions.add("TERM", "dot, n, b, h, g, row, i, j, env", printer, text, "What is summed over `n`.")
    printer = functions.printer({} if ranking.total is None else {ranking.total: Text("total")})
    printer.expect(ranking.final)
    text = spread(ranking.final, printer.scalar(ranking.final))
    functions.add("RANK", "total, b, h, g, row, i, j, env", printer, text, "The rank of a pair.")


def _places(operand: Operand | None) -> tuple[int, ...]:
    return () if operand is None else tuple(_PLACES[place] for place in operand.places)


def _operand(assembly: Assembly, operand: Operand | None) -> Arguments:
    """Address and strides; its rows are laid out so that they load as a whole."""
    if operand is None:
        return ()
    kind = assembly.types[operand.tensor]
    layout = Layout(power_of_two(operand.width * SIZES[kind], 16))
    assembly.layouts[operand.tensor] = layout
    step = max(1, layout.align // SIZES[kind])
    strides = (Value("i64", "stride", operand.tensor, dim, step) for dim in range(len(operand.places)))
    return (Value(f"*{kind}", "tensor", operand.tensor, divisible=layout.align), *strides)


def run_choice(
    recipe: Recipe,
    execute: Execute,
    q: Tensor,
    k: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[float],
    sizes: Mapping[str, int],
    numbers: Tensor,
    counts: Tensor,
) -> None:
    """Choose for all rows, a stretch at a time; see :class:`attnc.backends.protocol.Selector`."""
    choosers = numbers.shape[0] * numbers.shape[1]
    rows, keys, longest = numbers.shape[2], k.shape[2], numbers.shape[3]
    if 0 in (choosers, rows, keys, longest):
        counts.zero_()
        return
    step = max(FEWEST, MOST_SCORES // (choosers * keys))
    step = min(rows, step // 128 * 128 or step)
    call = bound_call(recipe, q, k, inputs, parameters, {**sizes, "choosers": choosers, "longest": longest})
    scores = torch.empty(choosers, step, keys, dtype=torch.int32, device=q.device)
    call.tensors |= {"scores": scores, "numbers": numbers, "counts": counts}
    for first in range(0, rows, step):
        call.sizes["first"], call.sizes["rows"] = first, min(step, rows - first)
        for at, launch in enumerate(recipe.launches):
            programs = 1
            for extent in launch.grid:
                programs *= call.extent(extent)
            execute(at, programs, call.bind)
