"""Which walks of a backward the kernels for Hopper take, and in what shapes to try them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from attnc.analyse.gradient.backward import Walk
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.adjoint import Prepared
from attnc.backends.triton.configs import SHARED_MEMORY, Config
from attnc.backends.triton.hopper.backward_terms import find_shared, split_walk
from attnc.backends.triton.printer import static
from attnc.backends.triton.report import Report, fault_in
from attnc.backends.triton.rewrites import dots_of
from attnc.backends.triton.slots import Over
from attnc.backends.triton.vectors import Part, part_of, split
from attnc.ir.nodes import Node

FAMILY = "hopper_backward"
Side: TypeAlias = Literal["query", "key"]
OUTER_BLOCK = 128
"""Outer tokens of a program: two warpgroups of 64."""
_HIDDEN_MOST = 160
"""Bytes that a kernel may spill with ``hide``: more cost more than it gains."""
_RESERVED = 4096
"""Bytes of shared memory for barriers, for numbers of inner tokens and for reductions."""
_BYTES = 2
_ALIGNED = 16 // _BYTES
"""Elements in the 16 bytes that TMA counts in."""
_FUSED_WIDEST = 128
_REGISTERS = 240
_NARROW = {"keys": 64, "rows": 128}
"""Lanes of all sums up to which products with the cotangent had better start early, measured on an H200."""
_TILES = 2.5
"""Tiles of pairs, in float32, that a step holds at least."""
_STAGES = {"keys": 4, "rows": 2}
"""More did not help where they were measured."""


@dataclass(frozen=True, slots=True)
class WalkConfig(Config):
    """How a walk is built for Hopper.

    ``eager`` starts the products with the cotangent with the others, ``hide`` masks dot products instead of weights
    where that is enough, ``apart`` gives each sum a kernel of its own,
    ``fused`` adds up the sums over the keys in a walk over the rows.
    """

    eager: bool = False
    hide: bool = False
    apart: bool = False
    fused: bool = False
    consumer_registers: int = 240
    producer_registers: int = 24


def fault_of(config: WalkConfig, report: Report) -> str | None:
    """What a report holds against a kernel with a configuration."""
    if config.hide and report.spilled > _HIDDEN_MOST:
        return f"spills {report.spilled} bytes of registers"
    return fault_in(report, FAMILY, SHARED_MEMORY["sm_90"])


def refusal(over: Over, prepared: Prepared, workload: Workload, target: Target, widths: Mapping[str, int]) -> str:
    """Why the walks over ``over`` are not for these kernels; empty if they are.

    ``widths`` are the lanes of the tensors that the backward is given.
    """
    if str(target) != "cuda:sm_90":
        return f"the target is {target}"
    if workload.dtype not in ("bf16", "f16"):
        return f"elements of type {workload.dtype}"
    for walk in _walks(over, prepared):
        if all(one.value is None for one in walk.sums):
            return "there is nothing to multiply by vectors"
        if workload.dtype == "f16" and any(
            one.value is not None and one.result.name not in prepared.bounded for one in walk.sums
        ):
            return "weights may exceed what float16 holds"
        for part in _parts(walk, prepared.mask):
            if part.lo % _ALIGNED or widths.get(part.tensor, part.width) % _ALIGNED:
                return f"lanes of {part.tensor} do not lie on 16 bytes"
    return ""


def _walks(over: Over, prepared: Prepared) -> list[Walk]:
    return [step for step in prepared.steps if isinstance(step, Walk) and step.over == over]


def _parts(walk: Walk, mask: Node) -> Iterator[Part]:
    vectors = [node for dot in dots_of((*(one.term for one in walk.sums), mask)) for node in (dot.a, dot.b)]
    for node in (*vectors, *(one.value for one in walk.sums if one.value is not None)):
        part = part_of(node)
        assert part is not None, "other vectors were reported as unsupported"
        yield part


def fused_refusal(prepared: Prepared, late_vectors: frozenset[str]) -> str:
    """Why the walks over the keys and over the rows are not one kernel; empty if they are."""
    keys, rows = _walks("keys", prepared), _walks("rows", prepared)
    if len(keys) != 1 or len(rows) != 1:
        return "there is more than one walk over the keys or the rows"
    if len(keys[0].sums) != 1 or keys[0].sums[0].value is None:
        return "more than one vector is summed over the keys"
    one = keys[0].sums[0]
    if find_shared(one, split_walk(rows[0], prepared.mask, late_vectors), late_vectors) is None:
        return "the sums over the keys and over the rows share no term"
    if one.value not in {node for dot in dots_of([one.term for one in rows[0].sums]) for node in (dot.a, dot.b)}:
        return "what is summed over the keys is not multiplied in the walk over the rows"
    width = static(one.result.dims[-1])
    if len(split(width)) > 1 or _padded(width) > _FUSED_WIDEST:
        return f"vectors of {width} lanes"
    return ""


def fused_candidates(prepared: Prepared) -> Iterator[WalkConfig]:
    """Each warpgroup adds up 64 lanes of 64 rows at least, as wide as shared memory is swizzled."""
    (walk,) = _walks("keys", prepared)
    if _padded(static(walk.sums[0].result.dims[-1])) == _FUSED_WIDEST:
        yield WalkConfig(64, OUTER_BLOCK, 4, 2, hide=True, fused=True)
        yield WalkConfig(64, OUTER_BLOCK, 4, 2, fused=True)
    else:
        yield WalkConfig(128, OUTER_BLOCK, 4, 2, fused=True)


def walk_candidates(over: Over, prepared: Prepared) -> Iterator[WalkConfig]:
    """Shapes to try in order: wide inner tiles first, then a kernel for each sum.

    Those are left out whose accumulators and tiles surely exceed the registers, or whose tiles the shared memory.
    """
    inside: Side = "key" if over == "keys" else "query"
    inner = outer = together = widest = 0
    for walk in _walks(over, prepared):
        parts = set(_parts(walk, prepared.mask))
        inner = max(inner, sum(_padded(part.width) for part in parts if part.side == inside))
        outer = max(outer, sum(_padded(part.width) for part in parts if part.side != inside))
        lanes = [_padded(static(one.result.dims[-1])) for one in walk.sums if one.value is not None]
        together, widest = max(together, sum(lanes)), max(widest, *lanes)
    room = SHARED_MEMORY["sm_90"] - _RESERVED - _BYTES * OUTER_BLOCK * outer
    for apart, lanes_summed in ((False, together), *(((True, widest),) if together > widest else ())):
        for block in (128, 64, 32):
            stages = min(room // (_BYTES * block * inner), _STAGES[over])
            if stages and lanes_summed / 2 + _TILES * block / 2 <= _REGISTERS:
                shape = (OUTER_BLOCK, block) if over == "keys" else (block, OUTER_BLOCK)
                if together <= _NARROW[over]:
                    yield WalkConfig(*shape, 4, stages, eager=True, apart=apart)
                    continue
                yield WalkConfig(*shape, 4, stages, hide=True, apart=apart)
                yield WalkConfig(*shape, 4, stages, apart=apart)


def unsound(config: WalkConfig, over: Over, prepared: Prepared) -> str | None:
    """Why a configuration cannot be built; what it takes of registers is left to the compiler's report."""
    outer, inner = (config.block_m, config.block_n) if over == "keys" else (config.block_n, config.block_m)
    if outer != OUTER_BLOCK or config.warps != 4 or not 32 <= inner <= 128:
        return f"kernels for Hopper have {OUTER_BLOCK} outer tokens, 32 to 128 inner ones and groups of 4 warps"
    if config.fused and (config.apart or inner != next(fused_candidates(prepared)).block_m):
        return "each warpgroup of a fused walk adds up 64 lanes of 64 rows, in one kernel"
    inside: Side = "key" if over == "keys" else "query"
    parts = {part for walk in _walks(over, prepared) for part in _parts(walk, prepared.mask)}
    lanes = [sum(_padded(part.width) for part in parts if (part.side == inside) == within) for within in (True, False)]
    shared = _BYTES * (config.stages * inner * lanes[0] + OUTER_BLOCK * lanes[1]) + _RESERVED
    if shared > SHARED_MEMORY["sm_90"]:
        return f"it takes {shared} bytes of shared memory, there are {SHARED_MEMORY['sm_90']}"
    return None


def _padded(width: int) -> int:
    return sum(padded for _, _, padded in split(width))
