"""Few queries against many keys on a GPU: the share of the memory's bandwidth, beside cuDNN and FlashAttention.

What bounds decoding is reading keys and values once; the bandwidth it is measured against is that of a copy of as many
bytes in the same run (bytes read and written counted). Every result is checked against float32 first. Writes
``results/gpu-decode.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from gpu import GPU, PEERS, measure, pinned
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attnc

SPEC = "attention decode { mask causal }"
SHAPES = (
    # B, M, N: H 32, G 8, D 128
    (1, 1, 16384),
    (1, 1, 131072),
    (4, 1, 16384),
    (16, 1, 8192),
    (64, 1, 8192),
    (1, 128, 16384),
)
H, G, D = 32, 8, 128


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float32, a batch row at a time; row ``i`` of M sees the first ``N - M + i + 1`` keys."""
    rows, keys = q.shape[2], k.shape[2]
    mask = torch.arange(keys, device=GPU) <= torch.arange(rows, device=GPU)[:, None] + keys - rows
    outs = []
    for at in range(q.shape[0]):
        wide_q, wide_k, wide_v = (x[at : at + 1].float() for x in (q, k, v))
        outs.append(scaled_dot_product_attention(wide_q, wide_k, wide_v, attn_mask=mask, enable_gqa=True))
    return torch.cat(outs)


def compare(op: attnc.Op, batch: int, rows: int, keys: int, rounds: int) -> dict[str, Any]:
    """One row of the results."""
    q = torch.randn(batch, H, rows, D, device=GPU, dtype=torch.bfloat16)
    k, v = (torch.randn(batch, G, keys, D, device=GPU, dtype=torch.bfloat16) for _ in "kv")
    copy = torch.empty_like(k)
    calls: dict[str, Callable[[], Any]] = {"attnc": lambda: op(q, k, v), "copy": lambda: copy.copy_(k)}
    if rows == 1:  # causal masks of SDPA begin at the first key, so more rows would be another attention
        for name, backend in PEERS.items():
            call = pinned(lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True), backend)
            try:
                call()
            except RuntimeError:
                continue
            calls[name] = call
    error = (op(q, k, v).float() - exact(q, k, v)).abs().max().item()
    assert error < 2e-2, error
    times = {name: sorted(each)[len(each) // 2] for name, each in measure(calls, rounds).items()}
    read = (k.numel() + v.numel()) * 2
    rate = {name: read / time / 1e6 for name, time in times.items()}  # the copy reads half and writes half of it
    row = {"B": batch, "M": rows, "N": keys, "H": H, "G": G, "D": D, "error": error, "milliseconds": times}
    return row | {"gigabytes_per_second": rate, "of_copy": rate["attnc"] / rate["copy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    op = attnc.loads(SPEC)
    rounds = parser.parse_args().rounds
    rows = [compare(op, *shape, rounds) for shape in SHAPES]
    table = Table("B", "queries", "keys", "attnc", "cuDNN", "flash", "copy", "of copy", title="GB/s, heads 32/8 x 128")
    for row in rows:
        rate = row["gigabytes_per_second"]
        shown = (f"{rate[name]:.0f}" if name in rate else "-" for name in ("attnc", "cudnn", "flash", "copy"))
        table.add_row(str(row["B"]), str(row["M"]), str(row["N"]), *shown, f"{row['of_copy']:.2f}")
    Console(width=120).print(table)
    write("gpu-decode", GPU, {"rounds": rounds, "cold_l2": True}, rows)


if __name__ == "__main__":
    main()
