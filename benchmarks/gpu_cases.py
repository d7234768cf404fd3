"""What is measured on a GPU: more attentions than on a CPU, and the sizes of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from cases import CASES, Case, Inputs, PairFunction, Shape
from torch import Tensor

TOKENS = 32768
"""Of a batch: long sequences make small batches."""
WIDTH = 2048
"""Lanes of all heads of a token."""
NEIGHBOURS, SIDE = 13, 64
BUCKETS = 32


def _triangle(shape: Shape, inputs: Inputs) -> int:
    return shape.N * (shape.N + 1) // 2


def _square(shape: Shape, inputs: Inputs) -> int:
    return shape.N**2


def _causal(inputs: Inputs) -> PairFunction:
    return lambda b, h, i, j: i >= j


def _table(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(3)
    return {"table": torch.randn(BUCKETS, shape.H, generator=generator, device=device)}


def _t5(inputs: Inputs) -> PairFunction:
    table, half = inputs["table"], BUCKETS // 2

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        far = torch.log(torch.clamp(i - j, min=1) / half) / torch.log(torch.tensor(128 / half))
        bucket = torch.where(i - j < half, i - j, torch.clamp(half + (far * half + 0.0001).int(), max=BUCKETS - 1))
        return score + table[torch.clamp(bucket, min=0), h]

    return biased


def _prefixes(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    return {"n": torch.full((shape.B,), shape.N // 4, dtype=torch.int32, device=device)}


def _prefix(inputs: Inputs) -> PairFunction:
    n = inputs["n"]
    return lambda b, h, i, j: (j < n[b]) | (i >= j)


def _before_and_below(shape: Shape, inputs: Inputs) -> int:
    n, rest = shape.N // 4, shape.N - shape.N // 4
    return n * shape.N + rest * (rest + 1) // 2


def _near(inputs: Inputs) -> PairFunction:
    def seen(q: Tensor, k: Tensor) -> Tensor:
        half = NEIGHBOURS // 2
        return abs(torch.clamp(q, half, SIDE - 1 - half) - k) <= half

    return lambda b, h, i, j: seen(i // SIDE, j // SIDE) & seen(i % SIDE, j % SIDE)


GPU_CASES = (
    *CASES,
    Case("sigmoid causal", "attention one { mask causal normalize sigmoid(score - log(N)) }", _triangle, flex=False),
    Case("cog", "attention one { mask causal normalize cog(score) }", _triangle, flex=False),
    Case("affine", "attention one { mask causal normalize affine(score, 0.7, 0.01) }", _triangle, flex=False),
    Case(
        "tapa",
        "attention one { let half = D // 2  mask causal  score dot(q[0:half], k[0:half]) / sqrt(half)"
        " * cos(6.283185307179586 * abs(i - j) ** 0.1 * dot(q[half:D], k[half:D]) / sqrt(half)) }",
        _triangle,
        flex=False,
    ),
    Case(
        "t5",
        "def bucket(d, e, l, f) = d if d < e"
        " else min(e + floor(log(max(d, 1) / e) / log(f / e) * (l + 1 - e) + 0.0001), l)"
        f" attention one {{ input table: real[{BUCKETS}, H]  mask causal"
        f" score dot(q, k) * scale + table[bucket(i - j, {BUCKETS // 2}, {BUCKETS - 1}, 128), h] }}",
        _triangle,
        _table,
        score_mod=_t5,
        mask_mod=_causal,
    ),
    Case(
        "prefix",
        "attention one { input n: int[B]  mask j < n[b] or causal }",
        _before_and_below,
        _prefixes,
        mask_mod=_prefix,
    ),
    Case(
        "neighbourhood",
        f"attention one {{ space (y: {SIDE}, x: {SIDE})  mask neighborhood2d({NEIGHBOURS}, {NEIGHBOURS}) }}",
        lambda shape, inputs: shape.N * NEIGHBOURS**2,
        mask_mod=_near,
    ),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the results: an attention, its sizes, and ``forward`` or ``backward``."""

    case: Case
    shape: Shape
    direction: str


def shape_of(N: int, D: int, groups: int = 1) -> Shape:
    heads = WIDTH // D if groups == 1 else 32
    return Shape(max(1, TOKENS // N), heads, heads // groups, N, D)


def measurements(names: list[str], directions: list[str], longest: int) -> Iterator[Measurement]:
    """What to measure, the most telling first: plain attention at all sizes comes last."""
    named = {case.name: case for case in GPU_CASES if not names or case.name in names}
    plain = [case for name, case in named.items() if name in ("full", "causal")]
    special = [case for name, case in named.items() if name not in ("full", "causal")]
    shapes: list[tuple[Case, Shape]] = [(case, shape_of(16384, D)) for D in (128, 64) for case in plain]
    for case, D in itertools.product(special, (128, 64)):
        shapes.append((case, shape_of(SIDE**2 if case.name == "neighbourhood" else 16384, D)))
    shapes += [(case, shape_of(N, 128, 4)) for case in plain if case.name == "causal" for N in (4096, 16384)]
    for case, D, N in itertools.product(plain, (128, 64, 256), (4096, 8192, 2048, 32768, 16384)):
        if (case, shape_of(N, D)) not in shapes:
            shapes.append((case, shape_of(N, D)))
    for (case, shape), direction in itertools.product(shapes, directions):
        if longest >= shape.N:
            yield Measurement(case, shape, direction)
