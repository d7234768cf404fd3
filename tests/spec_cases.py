"""Every attention in specs/: small sizes to run it at, and who sees whom, as plain Python over integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Visible = Callable[[Any, int, int, int, int], bool]
Made = Callable[[Any, torch.Generator], dict[str, Tensor]]


def _nothing(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    return {}


def _everything(e: Any, b: int, h: int, i: int, j: int) -> bool:
    return True


def _causal(e: Any, b: int, h: int, i: int, j: int) -> bool:
    return j <= i


@dataclass(frozen=True)
class Case:
    """One attention.

    Attributes:
        name: the file's stem, with ``:attention`` where a file has several.
        visible: ``visible(e, b, h, i, j)``; ``e`` holds sizes, constants, extents, parameters and inputs by name.
        constants: overrides that make the defaults of the spec small.
        sizes: overrides of :data:`SIZES`.
        extents: of the space.
        params: values of parameters.
        made: inputs that are not just random reals.
        kernels: whether backends can run it yet.
        spread: deviation of the elements of q and k; less where the definition amplifies errors.
    """

    name: str
    visible: Visible = _everything
    constants: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    extents: Mapping[str, int] = field(default_factory=dict)
    params: Mapping[str, float] = field(default_factory=dict)
    made: Made = _nothing
    spread: float = 1.0
    kernels: bool = True

    @property
    def env(self) -> SimpleNamespace:
        """Sizes, constants, extents and parameters, by name."""
        return SimpleNamespace(**{**SIZES, **self.sizes, **self.constants, **self.extents, **self.params})


SIZES = {"B": 2, "H": 4, "G": 2, "M": 21, "N": 24, "D": 16, "E": 16}
SQUARE = {"M": 24}
IMAGE = {"sizes": {"M": 48, "N": 48}, "extents": {"Y": 6, "X": 8}}


def integers(low: int, high: int, *size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high, size, generator=generator, dtype=torch.int32)


def documents(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Non-decreasing document numbers from 0, and where each token's document begins."""
    doc = (torch.rand(e.B, e.N, generator=generator) < 0.2).int().index_fill(1, torch.tensor([0]), 0).cumsum(1)
    start = torch.tensor([[row.tolist().index(number) for number in row.tolist()] for row in doc])
    return {"doc": doc.int(), "start": start.int()}


def doc_only(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    return {"doc": documents(e, generator)["doc"]}


def lengths(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    return {"length": torch.tensor([e.N, e.N // 3], dtype=torch.int32)}


def positive(name: str, *axes: str) -> Made:
    """A real input in (0.1, 1.1)."""
    return lambda e, generator: {name: torch.rand([getattr(e, a) for a in axes], generator=generator) + 0.1}


def log_gates(name: str) -> Made:
    """Logarithms of gates in (0, 1), a head and key."""
    return lambda e, generator: {name: -torch.rand(e.B, e.H, e.N, generator=generator)}


def lifetimes(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Kinds of keys, the first and last global, and the next global position at or after each."""
    kind = integers(0, 3, e.B, e.G, e.N, generator=generator)
    kind[..., 0] = 0
    until = torch.full_like(kind, e.N - 1)
    for j in reversed(range(e.N - 1)):
        until[..., j] = torch.where(kind[..., j] == 0, j, until[..., j + 1])
    return {"kind": kind, "until": until}


def tail_padding(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Blocks whose first tokens may be padding."""
    valid = torch.ones(e.B, e.N, dtype=torch.bool)
    valid[0, [0, 4, 5]] = False
    return {"valid": valid}


def filter_inputs(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    made = {
        name: torch.rand(e.H, generator=generator) + 0.5 for name in ("sigma", "eta", "gamma", "freedom", "temperature")
    }
    made["decay"] = -torch.rand(e.H, generator=generator) - 0.05
    made["time"] = torch.rand(e.B, e.N, generator=generator).cumsum(1)
    return made


def nearby(x: int, y: int, n: int, size: int, dilation: int = 1, stride: int = 1) -> bool:
    """The inward-shifted window of one coordinate, counted out within the dilation group."""
    if x % dilation != y % dilation:
        return False
    group = list(range(x % dilation, n, dilation))
    place = group.index(x)
    leader = place if stride == 1 else min(place // stride * stride + stride // 2, len(group) - 1)
    centre = min(max(leader, size // 2), len(group) - 1 - (size // 2 + size % 2 - 1))
    return y in group[centre - size // 2 : centre - size // 2 + size]


def nearby_before(x: int, y: int, n: int, size: int, dilation: int = 1, stride: int = 1) -> bool:
    """The causal window of one coordinate."""
    if x % dilation != y % dilation or y > x:
        return False
    group = list(range(x % dilation, n, dilation))
    place = group.index(x)
    leader = place if stride == 1 else min(place // stride * stride + stride - 1, len(group) - 1)
    return group.index(y) in range(max(leader - size + 1, 0), place + 1)


def rolled(e: Any, i: int, j: int) -> bool:
    """Swin: the same window of the rolled image."""
    (yi, xi), (yj, xj) = divmod(i, e.X), divmod(j, e.X)
    return all((a - e.SHIFT) % n // e.W == (c - e.SHIFT) % n // e.W for a, c, n in ((yi, yj, e.Y), (xi, xj, e.X)))


def power_of_two(x: int) -> bool:
    return x in {2**n for n in range(20)}


def blockrank(e: Any, b: int, h: int, i: int, j: int) -> bool:
    u, w, last = i // e.BLOCK, j // e.BLOCK, e.N // e.BLOCK - 1
    if not (e.valid[b][i] and e.valid[b][j]):
        return False
    return (u == w and j <= i) or (w == 0 and 0 < u < last) or (u == last and w < last)


def s2(e: Any, b: int, h: int, i: int, j: int) -> bool:
    bi, bj, hk = i // e.BLOCK, j // e.BLOCK, h // (e.H // e.G)
    step = max(1, e.VERTICAL // e.H)
    return j <= i and (bi - bj < e.LOCAL or (bj + hk * step + e.OFFSET) % e.VERTICAL == 0 or hk >= e.G - e.DENSE)


def nats(e: Any, b: int, h: int, i: int, j: int) -> bool:
    kind, until = e.kind[b][h // (e.H // e.G)][j], e.until[b][h // (e.H // e.G)][j]
    return j <= i and (until == j or (kind == 2 and i <= j + e.W) or (kind == 1 and i <= until))


def wrapped(e: Any, b: int, h: int, i: int, j: int) -> bool:
    shift = 0 if h < e.H // 2 else e.SIZE // 2
    a, c = (i - shift) % e.N, (j - shift) % e.N
    return a // e.SIZE == c // e.SIZE and c <= a


def cut(e: Any, b: int, h: int, i: int, j: int) -> bool:
    shift = 0 if h < e.H // 2 else e.SIZE // 2
    return (i + shift) // e.SIZE == (j + shift) // e.SIZE and j <= i


def isolated(e: Any, b: int, h: int, i: int, j: int) -> bool:
    of_i, of_j = ({s for s in range(8) if e.word[b][x] >> s & 1} for x in (i, j))
    return not any(a != c for a in of_i for c in of_j)


def bounded(e: Any, b: int, h: int, i: int, j: int) -> bool:
    of_i, of_j = ({s for s in range(8) if e.word[b][x] >> s & 1} for x in (i, j))
    return not of_i or not of_j or bool(of_i & of_j)


def words(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    return {"word": integers(0, 8, e.B, e.N, generator=generator) & integers(0, 8, e.B, e.N, generator=generator)}


def freeswim(e: Any, b: int, h: int, i: int, j: int) -> bool:
    (yi, xi), (yj, xj) = divmod(i % (e.Y * e.X), e.X), divmod(j % (e.Y * e.X), e.X)
    return all(
        a - e.REACH - max(a + e.REACH - n + 1, 0) <= c <= a + e.REACH + max(e.REACH - a, 0)
        for a, c, n in ((yi, yj, e.Y), (xi, xj, e.X))
    )


def volume(e: Any, b: int, h: int, i: int, j: int) -> bool:
    (ti, pi), (tj, pj) = divmod(i, e.Y * e.X), divmod(j, e.Y * e.X)
    (yi, xi), (yj, xj) = divmod(pi, e.X), divmod(pj, e.X)
    return nearby_before(ti, tj, e.T, e.FRAMES) and nearby(yi, yj, e.Y, e.SIZE) and nearby(xi, xj, e.X, e.SIZE)


def image(rule: Callable[[int, int, int], bool]) -> Callable[[Any, int, int], bool]:
    """A rule on one coordinate, in both."""
    return lambda e, i, j: rule(i // e.X, j // e.X, e.Y) and rule(i % e.X, j % e.X, e.X)


CASES = (
    Case("full"),
    Case("causal", _causal),
    Case("mistral", lambda e, b, h, i, j: 0 <= i - j < e.W, {"W": 5}),
    Case("streaming_llm", lambda e, b, h, i, j: j <= i and (i - j < 5 or j < 2), {"W": 5, "FIRST": 2}),
    Case("gemma2:local", lambda e, b, h, i, j: 0 <= i - j < e.W, {"W": 5}),
    Case("gemma2:global", _causal),
    Case("alibi", _causal),
    Case("t5:encoder", constants={"BUCKETS": 8, "FAR": 16}),
    Case("t5:decoder", _causal, {"BUCKETS": 8, "FAR": 16}),
    Case("rope", _causal),
    Case("attention_buckets", _causal, made=lambda e, generator: {"base": torch.tensor([10000.0, 17500.0])}),
    Case("qk_norm", _causal),
    Case("mla", _causal, {"LATENT": 24, "HEAD_WIDTH": 20}, {"G": 1, "D": 32, "E": 24}),
    Case("gpt_oss:local", lambda e, b, h, i, j: 0 <= i - j < e.W, {"W": 5}),
    Case("gpt_oss:global", _causal),
    Case("softmax1", _causal),
    Case("sigmoid"),
    Case("relu:relu"),
    Case("relu:by_length"),
    Case("mega:laplace", constants={"SPAN": 24}),
    Case("mega:relu2", constants={"SPAN": 24}),
    Case("cog", _causal),
    Case("affine", params={"average": 0.7}),
    Case("inline"),
    Case("tapa", _causal),
    Case("ssa", _causal, made=positive("query_temperature", "B", "H", "M")),
    Case("gated:elementwise", _causal),
    Case("gated:headwise", _causal),
    Case(
        "neighborhood_1d:neighborhood",
        lambda e, b, h, i, j: nearby(i, j, e.N, e.SIZE, e.DILATION),
        {"SIZE": 4, "DILATION": 3},
        {"M": 20, "N": 23},
    ),
    Case(
        "neighborhood_1d:causal_neighborhood",
        lambda e, b, h, i, j: nearby_before(i, j, e.N, e.SIZE, e.DILATION),
        {"SIZE": 4, "DILATION": 3},
        {"M": 20, "N": 23},
    ),
    Case(
        "neighborhood_2d",
        lambda e, b, h, i, j: image(lambda x, y, n: nearby(x, y, n, e.SIZE, e.DILATION))(e, i, j),
        {"SIZE": 3, "DILATION": 2},
        **IMAGE,
    ),
    Case("neighborhood_3d", volume, {"SIZE": 3, "FRAMES": 2}, {"M": 60, "N": 60}, {"T": 3, "Y": 4, "X": 5}),
    Case(
        "gna:gna_1d",
        lambda e, b, h, i, j: nearby(i, j, e.N, e.SIZE, 1, e.STRIDE),
        {"SIZE": 6, "STRIDE": 4},
        {"M": 20, "N": 23},
    ),
    Case(
        "gna:gna_1d_causal",
        lambda e, b, h, i, j: nearby_before(i, j, e.N, e.SIZE, 1, e.STRIDE),
        {"SIZE": 6, "STRIDE": 4},
        {"M": 20, "N": 23},
    ),
    Case(
        "gna:gna_2d",
        lambda e, b, h, i, j: image(lambda x, y, n: nearby(x, y, n, e.SIZE, 1, e.STRIDE))(e, i, j),
        {"SIZE": 4, "STRIDE": 2},
        **IMAGE,
    ),
    Case("freeswim", freeswim, {"REACH": 1}, {"M": 40, "N": 40}, {"T": 2, "Y": 4, "X": 5}),
    Case(
        "longformer",
        lambda e, b, h, i, j: j in {i + n * e.DILATION for n in range(-3, 4)} or min(i, j) < e.GLOBAL,
        {"REACH": 3, "DILATION": 2, "GLOBAL": 2},
    ),
    Case("sparse_transformer:local", lambda e, b, h, i, j: 0 <= i - j < e.L, {"L": 5}),
    Case("sparse_transformer:strided", lambda e, b, h, i, j: j in range(i, -1, -e.L), {"L": 5}),
    Case("sparse_transformer:fixed_block", lambda e, b, h, i, j: j in range(i // e.L * e.L, i + 1), {"L": 5}),
    Case("sparse_transformer:fixed_summary", lambda e, b, h, i, j: j <= i and j % 5 in {3, 4}, {"L": 5, "C": 2}),
    Case(
        "power",
        lambda e, b, h, i, j: (
            j <= i
            and (i // e.BLOCK - j // e.BLOCK < e.LOCAL or power_of_two(i // e.BLOCK - j // e.BLOCK) or j < e.BLOCK)
        ),
        {"BLOCK": 2, "LOCAL": 2},
    ),
    Case("s2", s2, {"BLOCK": 2, "LOCAL": 2, "VERTICAL": 8, "OFFSET": 1, "DENSE": 0}),
    Case(
        "moa",
        lambda e, b, h, i, j: j <= i and (j // e.BLOCK < e.first[h] or j // e.BLOCK > i // e.BLOCK - e.near[h]),
        {"BLOCK": 3},
        made=lambda e, generator: {
            "first": integers(0, 3, e.H, generator=generator),
            "near": integers(1, 4, e.H, generator=generator),
        },
    ),
    Case(
        "block_attention",
        lambda e, b, h, i, j: j <= i and (e.block[b][i] in (e.block[b][j], e.block[b][e.N - 1])),
        made=lambda e, generator: {"block": documents(e, generator)["doc"]},
    ),
    Case("blockrank", blockrank, {"BLOCK": 4}, SQUARE, made=tail_padding),
    Case("nats", nats, {"W": 3}, made=lifetimes),
    Case("longlora:wrapped", wrapped, {"SIZE": 6}),
    Case("longlora:cut", cut, {"SIZE": 6}),
    Case("bounded", bounded, made=words),
    Case("isolation", isolated, made=words),
    Case(
        "tabpfn",
        lambda e, b, h, i, j: j < e.trained[b],
        made=lambda e, generator: {"trained": integers(0, e.N, e.B, generator=generator)},
    ),
    Case(
        "star",
        lambda e, b, h, i, j: j <= i and (i // e.BLOCK == j // e.BLOCK or j < e.ANCHOR),
        {"BLOCK": 6, "ANCHOR": 4},
    ),
    Case("swin", lambda e, b, h, i, j: rolled(e, i, j), {"W": 2, "SHIFT": 1}, **IMAGE),
    Case("swin_v2", lambda e, b, h, i, j: image(lambda x, y, n: x // 2 == y // 2)(e, i, j), {"W": 2}, **IMAGE),
    Case("twins", lambda e, b, h, i, j: image(lambda x, y, n: x // 2 == y // 2)(e, i, j), {"W": 2}, **IMAGE),
    Case("maxvit:block", lambda e, b, h, i, j: image(lambda x, y, n: x // 2 == y // 2)(e, i, j), {"P": 2}, **IMAGE),
    Case(
        "maxvit:grid",
        lambda e, b, h, i, j: image(lambda x, y, n: x % (n // 2) == y % (n // 2))(e, i, j),
        {"P": 2},
        **IMAGE,
    ),
    Case(
        "tkl",
        lambda e, b, h, i, j: j < e.length[b] and i // 6 * 6 - 2 <= j < i // 6 * 6 + 8,
        {"CHUNK": 6, "OVERLAP": 2},
        made=lengths,
    ),
    Case(
        "onion_peel",
        lambda e, b, h, i, j: bool(e.peel[b][i + e.M - e.N] and e.known[b][j]),
        made=lambda e, generator: {
            "peel": torch.rand(e.B, e.M, generator=generator) < 0.5,
            "known": torch.rand(e.B, e.N, generator=generator) < torch.tensor([[0.5], [0.0]]),
        },
    ),
    Case("documents:full_document", lambda e, b, h, i, j: e.doc[b][i] == e.doc[b][j], made=doc_only),
    Case("documents:causal_document", lambda e, b, h, i, j: e.doc[b][i] == e.doc[b][j] and j <= i, made=doc_only),
    Case(
        "documents:share_question",
        lambda e, b, h, i, j: (e.doc[b][j] == 0 != e.doc[b][i]) or (e.doc[b][i] == e.doc[b][j] and j <= i),
        made=doc_only,
    ),
    Case(
        "documents:causal_blockwise",
        lambda e, b, h, i, j: (
            (e.doc[b][i] == e.doc[b][e.N - 1] != e.doc[b][j]) or (e.doc[b][i] == e.doc[b][j] and j <= i)
        ),
        made=doc_only,
    ),
    Case("documents:prefix_lm_causal", lambda e, b, h, i, j: j <= max(i, e.prefix), params={"prefix": 7}),
    Case(
        "documents:prefix_lm_document",
        lambda e, b, h, i, j: e.doc[b][i] == e.doc[b][j] and j <= max(i, e.start[b][j] + e.prefix),
        params={"prefix": 1},
        made=documents,
    ),
    Case("documents:sliding_window", lambda e, b, h, i, j: abs(i - j) <= e.W, {"W": 4}),
    Case("documents:sliding_window_causal", lambda e, b, h, i, j: 0 <= i - j <= e.W, {"W": 4}),
    Case("documents:global_sliding_window", lambda e, b, h, i, j: abs(i - j) <= 2 or i < 4 or j < 4, {"W": 2}),
    Case(
        "documents:block_causal_document",
        lambda e, b, h, i, j: e.doc[b][i] == e.doc[b][j] and j < (i // 5 + 1) * 5,
        {"BLOCK": 5},
        made=doc_only,
    ),
    Case("padded", lambda e, b, h, i, j: j < e.length[b], made=lengths),
    Case("sahp", lambda e, b, h, i, j: j <= i and j < e.length[b], made=lengths, spread=0.4),
    Case("attention_regulation"),
    Case(
        "marginal",
        lambda e, b, h, i, j: e.prior[b][h][i + e.M - e.N][j] > 0,
        made=lambda e, generator: {"prior": (torch.rand(e.B, e.H, e.M, e.N, generator=generator) - 0.3).clamp(min=0)},
    ),
    Case("locality_dial", _causal, params={"dial": 0.8}),
    Case("adaptive_filter", _causal, made=filter_inputs),
    Case("linear:linear", _causal),
    Case("linear:lightning", _causal, made=positive("slope", "H")),
    Case("retnet", _causal),
    Case("based", _causal),
    Case("forgetting", _causal, made=log_gates("log_gate"), kernels=False),
    Case("mamba2", _causal, made=log_gates("log_decay"), kernels=False),
    Case("lucid", _causal, kernels=False),
)
