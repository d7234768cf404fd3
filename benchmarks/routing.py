"""Routed attention on a GPU: MoBA (B = 128, k = 8, 16 heads, D = 128, causal) beside dense attention, step by step.

Times are medians by device events, in milliseconds; every one is written as soon as it is known, so that a run that is
cut off leaves what it found. Errors of a small case come first. Writes ``results/routing.json``.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import write
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import attnc
from attnc.routing.choice import pack

SPECS = Path(__file__).resolve().parent.parent / "specs"
HEADS, WIDTH = 16, 128


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """The median of some rounds, after one that is not counted."""
    call()
    times: list[float] = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times), 3)


def tokens(n: int, heads: int = HEADS, groups: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(1, h, n, WIDTH, device="cuda", dtype=torch.bfloat16) for h in (heads, groups, groups))
    return q, k, v


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def errors(op: attnc.Op) -> list[float]:
    """The largest errors of the output and of three gradients over the largest value, against float32."""
    given = tokens(1500, 4, 2)
    narrow, wide = ([x.to(dtype).requires_grad_() for x in given] for dtype in (torch.bfloat16, torch.float32))
    out, exact = op(*narrow), op.reference(*wide)
    cotangent = torch.randn_like(out)
    found = (out, *torch.autograd.grad(out, narrow, cotangent))
    due = (exact, *torch.autograd.grad(exact, wide, cotangent.float()))
    with torch.no_grad():
        return [round(float((x - y).abs().max() / y.abs().max()), 5) for x, y in zip(found, due, strict=True)]


def both_ways(call: Callable[..., Tensor], given: tuple[Tensor, ...], rounds: int) -> tuple[float, float]:
    """The forward without gradients, and the backward."""
    with torch.no_grad():
        forward = milliseconds(functools.partial(call, *given), rounds)
    leaves = [x.clone().requires_grad_() for x in given]
    out = call(*leaves)
    cotangent = torch.randn_like(out)
    pull = functools.partial(torch.autograd.grad, out, leaves, cotangent, retain_graph=True)
    return forward, milliseconds(pull, rounds)


def measure(rows: list[dict[str, Any]], sizes: list[int], rounds: int) -> None:
    """Append a row a figure, and write them all each time."""
    started = time.perf_counter()

    def note(what: str, n: int, value: object) -> None:
        rows.append({"what": what, "tokens": n, "value": value, "at": round(time.perf_counter() - started, 1)})
        print(rows[-1], flush=True)
        write("routing", torch.device("cuda"), {"rounds": rounds, "heads": HEADS, "width": WIDTH}, rows)

    moba = attnc.load(SPECS / "routing" / "moba.attn", "flash_moba")
    dense = attnc.load(SPECS / "causal.attn")
    for regroups in (True, False):
        moba.composite.regroups = regroups
        note(f"errors, regrouped {regroups}", 1500, errors(moba))
    moba.composite.regroups = None
    for n in sizes:
        given = tokens(n)
        with torch.no_grad():
            note("moba, choosing alone", n, milliseconds(functools.partial(moba.composite.chosen, *given), rounds))
        for name, call in (("moba", moba), ("dense", dense), ("cudnn dense", cudnn)):
            forward, backward = both_ways(call, given, rounds)
            note(f"{name}, forward", n, forward)
            note(f"{name}, backward", n, backward)
    n = sizes[-1]
    lists = attnc.load(SPECS / "routing" / "nabla.attn").composite.parts[0][1]
    q, k, v = tokens(n)
    words = pack(torch.rand(1, HEADS, -(-n // 64), -(-n // 64), device="cuda") < 0.1)
    with torch.no_grad():
        made = milliseconds(lambda: lists(q, k, v, chosen__0=words.clone()), rounds)
        note("a tenth of the blocks, lists made each time", n, made)
        note("a tenth of the blocks, lists kept", n, milliseconds(lambda: lists(q, k, v, chosen__0=words), rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16384, 65536, 262144])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    measure([], arguments.sizes, arguments.rounds)


if __name__ == "__main__":
    main()
