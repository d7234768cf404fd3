"""What routed attentions compute, written from their papers and code: loops over rows, nothing of attnc.

Each formula takes ``e`` (sizes, constants and inputs by name) and q, k, v in float64 and gives ``[B, H, M, E]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Formula = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def rows(e: Any) -> Iterator[tuple[int, int, int, int, int]]:
    """``b, h, g, row, i``."""
    for b in range(e.B):
        for h in range(e.H):
            for row in range(e.M):
                yield b, h, h // (e.H // e.G), row, row + e.N - e.M


def attend(e: Any, q: Tensor, k: Tensor, v: Tensor, keys_of: Callable[..., Iterable[int]], **options: Any) -> Tensor:
    """Softmax attention of each row over the keys that ``keys_of(b, h, g, row, i)`` gives; 0 over none."""
    scale, bias = options.get("scale", e.D**-0.5), options.get("bias")
    out = q.new_zeros(e.B, e.H, e.M, v.shape[-1])
    for b, h, g, row, i in rows(e):
        keys = sorted(set(keys_of(b, h, g, row, i)))
        if keys:
            s = k[b, g, keys] @ q[b, h, row] * scale
            if bias is not None:
                s = s + bias[b, g, keys]
            out[b, h, row] = s.softmax(0) @ v[b, g, keys]
    return out


def blocks(n: int, size: int) -> list[range]:
    return [range(at, min(at + size, n)) for at in range(0, n, size)]


def means(x: Tensor, n: int, size: int) -> Tensor:
    """The mean of each block of ``x [n, D]``; the last has fewer."""
    return torch.stack([x[list(block)].mean(0) for block in blocks(n, size)])


def best(scores: Tensor, among: Iterable[int], count: int) -> list[int]:
    """The ``count`` highest; ties to the lower index."""
    return sorted(among, key=lambda at: (-float(scores[at]), at))[:count]


def union(parts: Iterable[Iterable[int]]) -> set[int]:
    return {key for part in parts for key in part}


def past(keys: Iterable[int], i: int) -> list[int]:
    return [key for key in keys if key <= i]


def moba(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Own block, and TOP - 1 of the blocks before it, whole."""

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        own = i // e.BLOCK
        scores = means(k[b, g], e.N, e.BLOCK) @ q[b, h, row]
        chosen = best(scores, range(own), e.TOP - 1)
        return past(union(blocks(e.N, e.BLOCK)[J] for J in [*chosen, own]), i)

    return attend(e, q, k, v, keys_of)


def biformer(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Regions by all channels at once; scaled by the whole width."""
    regions = blocks(e.N, e.REGION)

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> set[int]:
        mine = i // e.REGION
        total = torch.zeros(len(regions), dtype=q.dtype)
        for head in range(e.H):
            key = means(k[b, head // (e.H // e.G)], e.N, e.REGION)
            query = q[b, head, [x - (e.N - e.M) for x in regions[mine] if x >= e.N - e.M]].mean(0)
            total += key @ query
        return union(regions[J] for J in best(total, range(len(regions)), e.TOP))

    return attend(e, q, k, v, keys_of, scale=(e.H * e.D) ** -0.5)


def seer_prefill(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = blocks(e.N, e.BLOCK)
    shift = (e.N - e.M) // e.BLOCK

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        mine = i // e.BLOCK
        s = e.gate_k[b, g, : mine + 1] @ e.gate_q[b, h, mine - shift] * e.GATE**-0.5
        p = s.softmax(0)
        dense = mine >= len(every) - e.DENSE
        return past(union(every[J] for J in range(mine + 1) if dense or p[J] > e.t), i)

    return attend(e, q, k, v, keys_of)


def seer_decode(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = blocks(e.N, e.BLOCK)

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        own = i // e.BLOCK
        s = e.gate_k[b, g] @ e.gate_q[b, g, row]
        return past(union(every[J] for J in [own, *best(s, range(own), e.TOP - 1)]), i)

    return attend(e, q, k, v, keys_of)


def complete(e: Any, i: int, length: int, stride: int) -> list[range]:
    """The windows whose last key is not after ``i``."""
    starts = range(0, e.N - length + 1, stride)
    return [range(start, start + length) for start in starts if start + length - 1 <= i]


def probabilities(e: Any, q: Tensor, k: Tensor, windows: list[range]) -> Tensor:
    keys = torch.stack([k[list(window)].mean(0) for window in windows])
    return (keys @ q * e.D**-0.5).softmax(0)


def nsa(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 5 to 12 of the paper, with mean windows; p_slc counts a window once for each stride shared."""
    every = blocks(e.N, e.BLOCK)
    compressed = q.new_zeros(e.B, e.H, e.M, e.E)
    group = e.H // e.G
    for b, h, g, row, i in rows(e):
        windows = complete(e, i, e.WINDOW, e.STRIDE)
        if windows:
            p = probabilities(e, q[b, h, row], k[b, g], windows)
            compressed[b, h, row] = p @ torch.stack([v[b, g, list(window)].mean(0) for window in windows])

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        windows, own = complete(e, i, e.WINDOW, e.STRIDE), i // e.BLOCK
        rank = torch.zeros(len(every), dtype=q.dtype)
        for head in range(g * group, (g + 1) * group):
            if windows:
                p = probabilities(e, q[b, head, row], k[b, g], windows)
                for J, block in enumerate(every):
                    for w, window in enumerate(windows):
                        rank[J] += p[w] * len({*block} & {*window}) / e.STRIDE
        forced = {0, own, max(own - 1, 0)}
        others = best(rank, [J for J in range(own + 1) if J not in forced], e.TOP - len(forced))
        return past(union(every[J] for J in [*forced, *others]), i)

    selected = attend(e, q, k, v, keys_of)
    near = attend(e, q, k, v, lambda b, h, g, row, i: range(max(0, i - e.LOCAL + 1), i + 1))
    gates = e.gate
    return gates[..., 0:1] * compressed + gates[..., 1:2] * selected + gates[..., 2:3] * near


def infllm(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = blocks(e.N, e.BLOCK)
    group = e.H // e.G

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        own = i // e.BLOCK
        if e.N < e.DENSE:
            return list(range(i + 1))
        fine = complete(e, i, e.WINDOW, e.STRIDE)
        coarse = complete(e, i, e.COARSE * e.WINDOW, e.COARSE * e.STRIDE)
        total = torch.zeros(len(fine), dtype=q.dtype)
        for head in range(g * group, (g + 1) * group):
            if coarse:
                lse = torch.stack([k[b, g, list(w)].mean(0) @ q[b, head, row] * e.D**-0.5 for w in coarse]).logsumexp(0)
                total += torch.stack(
                    [(k[b, g, list(w)].mean(0) @ q[b, head, row] * e.D**-0.5 - lse).exp() for w in fine]
                )
        rank = torch.full((len(every),), -math.inf, dtype=q.dtype)
        for J, block in enumerate(every):
            touching = [total[w] for w, window in enumerate(fine) if {*block} & {*window}]
            if touching and coarse:
                rank[J] = max(touching)
        forced = {0, *range(max(0, own - e.LOCAL + 1), own + 1)}
        others = best(rank, [J for J in range(own + 1) if J not in forced], max(0, e.TOP - len(forced)))
        return past(union(every[J] for J in [*forced, *others]), i)

    return attend(e, q, k, v, keys_of)


def query_block(e: Any, q: Tensor, mine: int, size: int) -> Tensor:
    """The queries at the positions of a block."""
    return q[[x - (e.N - e.M) for x in range(mine * size, min((mine + 1) * size, e.N)) if x >= e.N - e.M]]


def nabla(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ascending sums of at least 1 - p stay, and what is near."""
    every = blocks(e.N, e.BLOCK)
    places = [(n // (e.height * e.breadth), n // e.breadth % e.height, n % e.breadth) for n in range(len(every))]

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> set[int]:
        mine = i // e.BLOCK
        query = query_block(e, q[b, h], mine, e.BLOCK).mean(0)
        p = (means(k[b, g], e.N, e.BLOCK) @ query * e.D**-0.5).softmax(0)
        ascending = sorted(range(len(every)), key=lambda J: (float(p[J]), -J))
        kept, total = [], 0.0
        for J in ascending:
            total += float(p[J])
            if total > 1 - e.p + 1e-12:
                kept.append(J)
        sides = (e.WT // 2, e.WY // 2, e.WX // 2)
        near = [
            J
            for J in range(len(every))
            if all(abs(x - y) <= side for x, y, side in zip(places[mine], places[J], sides, strict=True))
        ]
        return union(every[J] for J in [*kept, *near])

    return attend(e, q, k, v, keys_of)


def resembles(x: Tensor, least: float) -> bool:
    """Whether the mean cosine over all pairs is above ``least``."""
    unit = x / x.norm(dim=-1, keepdim=True)
    return float((unit @ unit.T).mean()) > least


def sparge(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = blocks(e.N, e.KEYS)

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        mine = query_block(e, q[b, h], i // e.QUERIES, e.QUERIES)
        end = min((i // e.QUERIES + 1) * e.QUERIES, e.N) - 1
        seen = [J for J, block in enumerate(every) if block[0] <= end]
        alike = [J for J in seen if resembles(k[b, g, list(every[J])], e.SIMILAR)]
        if not resembles(mine, e.SIMILAR):
            return past(union(every[J] for J in seen), i)
        kept = [J for J in seen if J not in alike]
        if alike:
            p = (torch.stack([k[b, g, list(every[J])].mean(0) for J in alike]) @ mine.mean(0) * e.D**-0.5).softmax(0)
            order = best(p, range(len(alike)), len(alike))
            count = max(1, sum(float(p[order[: n + 1]].sum()) <= e.CDF for n in range(len(order))))
            kept += [alike[n] for n in order[:count]]
        return past(union(every[J] for J in kept), i)

    return attend(e, q, k, v, keys_of)


def vmoba_threshold(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = blocks(e.N, e.BLOCK)

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> set[int]:
        own = i // e.BLOCK
        s = means(k[b, g], e.N, e.BLOCK) @ q[b, h, row]
        share = (s - s.min()) / (s.max() - s.min())
        share = share / share.sum()
        goal, total, kept = max(e.TAU - float(share[own]), 0.0), 0.0, []
        for J in best(share, [J for J in range(len(every)) if own != J], len(every)):
            kept.append(J)
            total += float(share[J])
            if total >= goal:
                break
        return union(every[J] for J in [own, *kept])

    return attend(e, q, k, v, keys_of)


def vmoba_global(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = blocks(e.N, e.BLOCK)
    chosen: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for b in range(e.B):
        for h in range(e.H):
            key = means(k[b, h // (e.H // e.G)], e.N, e.BLOCK)
            pairs = [
                (-float(key[J] @ q[b, h, row]), row, J)
                for row in range(e.M)
                for J in range(len(every))
                if (row + e.N - e.M) // e.BLOCK != J
            ]
            chosen[b, h] = {(row, J) for _, row, J in sorted(pairs)[: e.TOP * e.M]}

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> set[int]:
        own = i // e.BLOCK
        return union(every[J] for J in range(len(every)) if own == J or (row, J) in chosen[b, h])

    return attend(e, q, k, v, keys_of)


def indexer(e: Any, b: int, row: int, key: Tensor) -> Tensor:
    """``sum_n w_n relu(q_n . key)`` for each row of ``key``."""
    return (e.index_q[b, :, row] @ key.T).relu().T @ e.index_w[b, row]


def dsa(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        return best(indexer(e, b, row, e.index_k[b]), range(i + 1), e.TOP)

    return attend(e, q, k, v, keys_of)


def hisa(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    every = blocks(e.N, e.BLOCK)

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        own = i // e.BLOCK
        coarse = indexer(e, b, row, means(e.index_k[b], e.N, e.BLOCK))
        forced = {0, own}
        picked = best(coarse, [J for J in range(own + 1) if J not in forced], e.COARSE - len(forced))
        among = past(union(every[J] for J in [*forced, *picked]), i)
        return best(indexer(e, b, row, e.index_k[b]), among, e.TOP)

    return attend(e, q, k, v, keys_of)


def mosa(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    count = max(2, e.N // e.SPARSITY)

    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        chosen = best(e.r[b, h], range(e.N), count)
        return past(chosen, i) if i in chosen else []

    return e.r[..., None] * attend(e, q, k, v, keys_of)


def dynamic_mask(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def keys_of(b: int, h: int, g: int, row: int, i: int) -> list[int]:
        return best(e.bias[b, g], range(i + 1), e.TOP)

    return attend(e, q, k, v, keys_of, bias=e.bias)


def star_query(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All hosts together are causal attention to everything."""
    return attend(e, q, k, v, lambda b, h, g, row, i: range(i + 1))


def hyper(e: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``exp`` sums over the bucket and, times N / SAMPLES, over the drawn keys that are not in it."""
    out = q.new_zeros(e.B, e.H, e.M, e.E)
    for b, h, g, row, _ in rows(e):
        mine = int(e.place_q[b, h, row]) // e.BUCKET
        weight = q.new_zeros(e.N)
        for j in range(e.N):
            value = math.exp(float(k[b, g, j] @ q[b, h, row]) * e.D**-0.5)
            same = int(e.place_k[b, h, j]) // e.BUCKET == mine
            weight[j] = value if same else value * float(e.drawn[b, h, j]) * e.N / e.SAMPLES
        if weight.sum() > 0:
            out[b, h, row] = weight / weight.sum() @ v[b, g]
    return out
