"""Routed attention on a GPU: MoBA (B = 128, k = 8, 16 heads, D = 128, causal) beside dense attention, step by step.

Then lists of blocks at 90 % sparsity beside the dense rate, and native sparse attention. Kernels are compiled first, in
processes side by side. Times are medians by device events, in milliseconds; every one is written as soon as it is
known, so that a run that is cut off leaves what it found; nothing new begins after ``--seconds``. Errors of a small
case come first. Writes ``results/routing.json``.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from record import write
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import attnc
from attnc.routing.choice import pack

SPECS = Path(__file__).resolve().parent.parent / "specs"
HEADS, WIDTH = 16, 128
LONG = 131072
"""From here on only a forward of dense attention is measured, in two rounds."""
SHARE = 0.1
"""Of the blocks that lists hold."""
LISTED = """
attention listed {{
    input chosen: int[B, H, (N - 1) // {0} - (N - M) // {0} + 1, (N + 32 * {0} - 1) // (32 * {0})]
    mask chosen[b, h, i // {0} - (i - row) // {0}, j // {0} // 32] >> j // {0} % 32 & 1 == 1
}}
"""
"""A tile of ``{0}`` queries and keys each, by bits."""


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


def cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def moba() -> attnc.Op:
    return attnc.load(SPECS / "routing" / "moba.attn", "flash_moba")


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


def choice(op: attnc.Op, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The lists of blocks that kernels choose."""
    sizes = {"B": 1, "H": q.shape[1], "G": k.shape[1], "M": q.shape[2], "N": k.shape[2], "D": WIDTH, "E": WIDTH}
    found = op.composite.choosers[""].choose(q, k, v, {}, sizes)
    assert found is not None, op.composite.choosers[""].find(q, k, v, {})
    return found.lists(8).numbers


def prepare(name: str) -> None:
    """Compile, forward and backward."""
    given = [x.requires_grad_() for x in tokens(2048)]
    match name:
        case "moba":
            op = moba()
            op.composite.regroups = True
            out = op(*given)
        case "dense":
            out = attnc.load(SPECS / "causal.attn")(*given)
        case "nsa":
            op = attnc.load(SPECS / "routing" / "nsa.attn")
            op.composite.regroups = True
            with torch.no_grad():
                op(*given, gate=torch.rand(1, HEADS, 2048, 3, device="cuda"))
            return
        case _:
            block = int(name)
            words = torch.full((1, HEADS, 2048 // block, -(-2048 // (32 * block))), -1, device="cuda")
            out = attnc.loads(LISTED.format(block))(*given, chosen=words.int())
    out.sum().backward()


@dataclass(slots=True)
class Report:
    """Rows found so far."""

    rounds: int
    seconds: float
    started: float = field(default_factory=time.perf_counter)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def note(self, what: str, n: int, value: object) -> Any:
        now = round(time.perf_counter() - self.started, 1)
        self.rows.append({"what": what, "tokens": n, "value": value, "at": now})
        print(self.rows[-1], flush=True)
        write("routing", torch.device("cuda"), {"rounds": self.rounds, "heads": HEADS, "width": WIDTH}, self.rows)
        return value

    def time(self, what: str, n: int, call: Callable[[], object], rounds: int | None = None) -> float | None:
        """A figure, if there is time for it and memory."""
        if time.perf_counter() - self.started > self.seconds:
            return None
        try:
            found: float = self.note(what, n, milliseconds(call, rounds or self.rounds))
        except torch.cuda.OutOfMemoryError:
            self.note(what, n, "out of memory")
            return None
        return found

    def backward(self, what: str, n: int, call: Callable[..., Tensor], given: tuple[Tensor, ...]) -> float | None:
        if time.perf_counter() - self.started > self.seconds:
            return None
        leaves = [x.clone().requires_grad_() for x in given]
        out = call(*leaves)
        cotangent = torch.randn_like(out)
        return self.time(what, n, lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True))


def kernels(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each kernel of a call, by name."""
    call()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    found: dict[str, float] = defaultdict(float)
    for event in seen.events():
        found[event.name[:40]] += event.device_time / 1e3
    return {name: round(spent, 3) for name, spent in sorted(found.items(), key=lambda one: -one[1])}


def measure_moba(report: Report, n: int) -> None:
    given, op = tokens(n), moba()
    with torch.no_grad():
        lists = choice(op, *given)
        chosen = report.time("moba, choosing", n, functools.partial(choice, op, *given))
        listed = op.composite.listed[""]
        report.time("moba, attention by given lists", n, lambda: listed(*given, lists__=lists))
        forward = report.time("moba, forward", n, functools.partial(op, *given))
        report.note("moba, kernels of a forward", n, kernels(functools.partial(op, *given)))
        rounds = 2 if n >= LONG else None
        theirs = report.time("cudnn dense, forward", n, functools.partial(cudnn, *given), rounds)
        dense = attnc.load(SPECS / "causal.attn")
        report.time("dense, forward", n, functools.partial(dense, *given), rounds)
    if chosen and forward and theirs:
        report.note("share of choosing", n, round(chosen / forward, 3))
        report.note("times faster than cudnn dense, forward", n, round(theirs / forward, 2))
    back = report.backward("moba, backward", n, op, given)
    if n < LONG:
        theirs = report.backward("cudnn dense, backward", n, cudnn, given)
        report.backward("dense, backward", n, dense, given)
        if back and theirs:
            report.note("times faster than cudnn dense, backward", n, round(theirs / back, 2))


def measure_lists(report: Report, n: int) -> None:
    """Random lists of blocks: the rate on the pairs that are chosen, as a share of the dense rate without a mask."""
    given = tokens(n)
    full = attnc.loads("attention full {}")
    with torch.no_grad():
        dense = report.time("full dense, forward", n, functools.partial(full, *given), 2)
        theirs = report.time("cudnn full dense, forward", n, functools.partial(cudnn, *given, causal=False), 2)
        for block in (64, 128):
            chosen = torch.rand(1, HEADS, n // block, n // block, device="cuda") < SHARE
            words, share = pack(chosen), float(chosen.float().mean())
            op = attnc.loads(LISTED.format(block))
            made = report.time(f"a tenth of blocks of {block}, lists made", n, lambda: op(*given, chosen=words.clone()))  # noqa: B023
            kept = report.time(f"a tenth of blocks of {block}, lists kept", n, lambda: op(*given, chosen=words))  # noqa: B023
            for name, one in (("ours", dense), ("cudnn's", theirs)):
                if made and kept and one:
                    rates = [round(one * share / x, 3) for x in (made, kept)]
                    report.note(f"blocks of {block}: rate over {name} dense, lists made and kept", n, rates)


def measure_nsa(report: Report, n: int) -> None:
    op, gate = attnc.load(SPECS / "routing" / "nsa.attn"), torch.rand(1, HEADS, n, 3, device="cuda")
    with torch.no_grad():
        report.time("nsa, forward (its choice in torch)", n, functools.partial(op, *tokens(n), gate=gate), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16384, 65536, 262144])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240.0)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
        for name, done in [(name, pool.submit(prepare, name)) for name in ("moba", "dense", "64", "128", "nsa")]:
            if error := done.exception():
                print(f"compiling {name}: {error}", flush=True)
    report = Report(arguments.rounds, arguments.seconds)
    for regroups in (True, False):
        op = moba()
        op.composite.regroups = regroups
        report.note(f"errors, regrouped {regroups}", 1500, errors(op))
    for n in arguments.sizes:
        measure_moba(report, n)
    measure_lists(report, 65536)
    measure_nsa(report, 65536)


if __name__ == "__main__":
    main()
