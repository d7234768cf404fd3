"""From a ranking to a recipe: what stands for blocks, maps of queries and of blocks, and the selection.

In 16 bits a made vector is kept as two of them, the second what the first leaves: products then have 16 bits or more of
each factor, and tensor cores take them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from attnc.analyse.mask import analyse_mask
from attnc.analyse.ranking import BLOCKS, BlockPool, Ranking
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton import slots
from attnc.backends.triton.assembly import BLOCK_TOKENS, TRITON_TYPES, Assembly, Lowered, size_value
from attnc.backends.triton.chunks import Chunks
from attnc.backends.triton.configs import SHARED_MEMORY, Config
from attnc.backends.triton.printer import static
from attnc.backends.triton.recipe import Extent, Launch, Recipe, Value
from attnc.backends.triton.rewrites import dots_of, token_read, widths
from attnc.backends.triton.slots import StepResult
from attnc.backends.triton.support import token_problems
from attnc.ir.build import apply, dot, literal, read
from attnc.ir.nodes import Dot, Literal, Node, Read
from attnc.ir.traverse import postorder, substitute
from attnc.plan import Pass, TokenMap

NUMBERS, COUNTS = "chosen.numbers", "chosen.counts"
WIDEST = 256
REGISTERS = 1 << 15
"""Of a program with many warps: half of what there are, so that two of them share a multiprocessor."""
KINDS = ("self", "first", "last")


def find_reasons(ranking: Ranking, workload: Workload, target: Target) -> Iterator[str]:
    """Every reason why there are no kernels."""
    if target.kind not in ("cuda", "hip") or target.arch not in SHARED_MEMORY:
        yield f"Triton compiles for {', '.join(SHARED_MEMORY)} here, not for `{target}`"
        return
    if workload.dtype == "f64":
        yield "GPU kernels compute in f32"
    if workload.dtype == "f16" and any(one.op == "sum" for one in ranking.pools):
        yield "sums over a block may exceed float16"
    made = [*(one.x for one in ranking.pools), *(one.expression for one in ranking.maps)]
    for node in postorder(*made):
        yield from (problem.message for problem in token_problems(node))
    for one in dots_of((ranking.rank, *(() if ranking.candidates is None else (ranking.candidates,)))):
        if not isinstance(one.a.width, Literal) or static(one.a.width) > WIDEST:
            yield f"vectors of a rank are at most {WIDEST} wide"


def lower_ranking_to_recipe(ranking: Ranking, workload: Workload, config: Config, precision: str) -> Lowered:
    """All kernels that choose."""
    program, element = ranking.program, TRITON_TYPES[workload.dtype]
    types = {"q": element, "k": element, "v": element, NUMBERS: "i32", COUNTS: "i32"}
    for declared, dtype in zip(program.inputs, workload.inputs, strict=True):
        types[declared.name] = TRITON_TYPES[dtype]
    D, E = widths(program)
    assembly = Assembly(program, element, precision, analyse_mask(literal(True)), types, {"q": D, "k": D, "v": E})
    for pool in ranking.pools:
        _add_pool(assembly, pool, ranking.block)
    for one in ranking.maps:
        _add_map(assembly, one, "fp32")
    split: dict[Node, tuple[Node, ...]] = {}
    roots: list[Node] = [ranking.rank, *(() if ranking.candidates is None else (ranking.candidates,))]
    if element != "fp32":
        made: dict[str, BlockPool | TokenMap] = {one.result.name: one for one in ranking.pools}
        made |= {one.result.name: one for one in ranking.maps}
        for node in [vector for one in dots_of(roots) for vector in (one.a, one.b)]:
            if isinstance(node, Read) and node not in split:
                split[node] = _add_halves(assembly, node, made[node.input.name], element)
    sums: dict[Node, Node] = {node: _product(node, split) for node in dots_of(roots)}
    rank, *rest = [substitute(root, sums) for root in roots]
    _add_selection(assembly, ranking, config, rank, rest[0] if rest else None)
    recipe = Recipe(
        tuple(assembly.launches),
        tuple(declared.name for declared in program.inputs),
        tuple(parameter.name for parameter in program.parameters),
        tuple(program.extents),
        assembly.layouts,
        block=ranking.block,
    )
    return Lowered(recipe, tuple(assembly.texts))


def _product(node: Dot, split: dict[Node, tuple[Node, ...]]) -> Node:
    """A dot product as a sum of those of the halves; that of two second halves is too small to count."""
    left, right = (split.get(x, (x,)) for x in (node.a, node.b))
    terms = [dot(a, b) for n, a in enumerate(left) for m, b in enumerate(right) if n + m < 2]
    total = terms[0]
    for term in terms[1:]:
        total = apply("add", total, term)
    return total


def _add_halves(assembly: Assembly, node: Read, made: BlockPool | TokenMap, element: str) -> tuple[Node, ...]:
    """A made vector as two of ``element``."""
    found: list[Node] = []
    rest: Node = node
    side = made.side if isinstance(made, TokenMap) else "key"
    for half in ("high", "low"):
        result = replace(made.result, name=f"{made.result.name}{half}")
        _add_map(assembly, TokenMap(result, side, made.per, rest), element)
        found.append(read(result, node.indices))
        rest = apply("sub", node, found[0])
    return tuple(found)


def _add_map(assembly: Assembly, one: TokenMap, kind: str) -> None:
    buffer = assembly.buffer(one.result, kind)
    tokens = "" if one.side == "query" else BLOCKS.name
    name = f"made_{one.result.name}"
    assembly.token_kernel(name, one.result.name, one.expression, one.side, one.per, None, (buffer,), tokens)


def _add_pool(assembly: Assembly, one: BlockPool, block: int) -> None:
    buffer = assembly.buffer(one.result, "fp32")
    functions = assembly.functions(one.result.name)
    width = assembly.widths.get(one.result.name, 0)
    padded = 1 << (width - 1).bit_length() if width else 1
    slots.add_group(functions, assembly.program.group)
    lanes = slots.add_value(functions, token_read(one.x), None, padded)
    tokens = min(1 << (block - 1).bit_length(), max(1, min(BLOCK_TOKENS * 2, 16384 // max(padded, *lanes, 1))))
    assembly.add(
        Launch(
            f"pool_{one.result.name}",
            "pool",
            {
                "out": assembly.tensor(one.result.name, width),
                "env": tuple(functions.env.values),
                "HEADS": size_value(one.per),
                "BLOCKS": size_value(BLOCKS.name),
                "N": size_value("N"),
            },
            {
                "KEYS": block,
                "BLOCK_T": tokens,
                "WIDTH": width,
                "PADDED": padded,
                "LANES": lanes,
                "PER_QUERY_HEAD": one.per == "H",
                "OP": one.op,
            },
            functions.names,
            (Extent(BLOCKS.name), Extent(one.per), Extent("B")),
            (buffer,),
        ),
        functions,
    )


def _one_by_one(items: Iterable[tuple[str, int]]) -> tuple[tuple[int, int], ...]:
    """``("first", 2)`` as the first and the second; kinds by their place in ``KINDS``, none twice."""
    return tuple(dict.fromkeys((KINDS.index(kind), at) for kind, n in items for at in range(n)))


def _add_selection(assembly: Assembly, ranking: Ranking, config: Config, rank: Node, candidates: Node | None) -> None:
    functions = assembly.functions("select")
    roots = (rank, *(() if candidates is None else (candidates,)))
    dots, reads = dots_of(roots), slots.outer_reads("keys", *roots)
    slots.add_group(functions, assembly.program.group)
    slots.add_rows(functions, reads)
    slots.add_ranking(functions, rank, candidates, dots, reads)
    table = Chunks("keys", dots, Pass((), ()), StepResult((), ()), ())
    constants = assembly.walk_constants("keys", table, config)
    for unused in ("OVER_ROWS", "LISTED", "LISTS_PER_BATCH", "LISTS_PER_HEAD"):
        del constants[unused]
    always, also = (_one_by_one(items) for items in (ranking.always, ranking.also))
    most = {kind: sum(code == at for code, _ in always) for at, kind in enumerate(KINDS)}
    assembly.add(
        Launch(
            "select",
            "select",
            {
                "outers": assembly.vectors(table.outers),
                "inners": assembly.vectors(table.inners),
                "numbers": Value("*i32", "tensor", NUMBERS, divisible=16),
                "counts": Value("*i32", "tensor", COUNTS, divisible=16),
                "env": tuple(functions.env.values),
                **{name: size_value(name) for name in ("H", "M", "N")},
                "BLOCKS": size_value(BLOCKS.name),
            },
            {
                **constants,
                "KEYS": ranking.block,
                "CAUSAL": ranking.causal,
                "SIEVED": candidates is not None,
                "HELD": max(1, ranking.top, len(always)),
                "TOP": ranking.top,
                "MOST": ranking.most,
                "SELF": most["self"] > 0,
                "FIRST": most["first"],
                "LAST": most["last"],
                "ALWAYS": always,
                "ALSO": also,
            },
            functions.names,
            (Extent("M", config.block_m), Extent("H"), Extent("B")),
            warps=config.warps,
            stages=config.stages,
            registers=REGISTERS // (32 * config.warps) if config.warps >= 8 else 0,
        ),
        functions,
    )
