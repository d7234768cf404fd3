"""Attention on a GPU: attnc, torch's SDPA (cuDNN, flash) and compiled FlexAttention, taking turns in one process.

Every result is checked first. Times are by device events with a cold L2 cache, medians over interleaved rounds: a card
changes its clock under load, so only ratios within one run compare. Writes ``results/gpu.json``. ``--quick`` uses
small sizes and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from cases import CASES, Case, Shape, check, flex_call, flops, sdpa_call, tensors
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import attnc

GPU = torch.device("cuda")
PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
FLUSH_BYTES = 512 * 2**20


def pinned(call: Callable[[], Tensor], backend: SDPBackend) -> Callable[[], Tensor]:
    """A call of SDPA that one backend must serve."""

    def pinned_call() -> Tensor:
        with sdpa_kernel(backend):
            return call()

    return pinned_call


def contenders(case: Case, shape: Shape, q: Tensor, k: Tensor, v: Tensor, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The peers that can say this case, by name; a string says why one cannot."""
    found: dict[str, Any] = {}
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        found |= {name: pinned(sdpa, backend) for name, backend in PEERS.items()}
    if case.flex:
        found["flex"] = flex_call(case, shape, inputs, q, k, v)
    for name, call in list(found.items()):
        try:
            call()
            torch.cuda.synchronize()
        except Exception as error:  # a peer that cannot is a result, not a failure of ours
            found[name] = str(error).strip().splitlines()[0][:200]
    return found


def prepare(name: str, D: int, backward: bool) -> None:
    """Compile a case into the cache on disk, from where the process that measures takes it."""
    case = next(case for case in CASES if case.name == name)
    shape = Shape(1, 2, 2, 256, D)
    q, k, v = tensors(shape, torch.bfloat16, GPU)
    op = attnc.loads(case.spec)
    inputs: dict[str, Any] = case.inputs(shape, GPU)
    if backward:
        op(*(x.requires_grad_() for x in (q, k, v)), **inputs).sum().backward()
    else:
        op(q, k, v, **inputs)


def gradients(call: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """The backward of a call whose forward is done once, here."""
    out = call()
    cotangent = torch.randn(out.shape, generator=torch.Generator(GPU).manual_seed(1), dtype=out.dtype, device=GPU)
    return lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True)


def measure(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; the calls take turns, in an order that alternates."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=GPU)
    for call, _ in itertools.product(calls.values(), range(3)):
        call()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            begin.record()
            calls[name]()
            end.record()
            events[name].append((begin, end))
        torch.cuda.synchronize()
    return {name: [begin.elapsed_time(end) for begin, end in pairs] for name, pairs in events.items()}


def compare(case: Case, shape: Shape, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One row of the results: checked first, then timed beside the peers."""
    q, k, v = tensors(shape, dtype, GPU)
    inputs: dict[str, Any] = case.inputs(shape, GPU)
    op = attnc.loads(case.spec)
    begun = time.perf_counter()
    out = op(q, k, v, **inputs)
    torch.cuda.synchronize()
    first = time.perf_counter() - begun
    error = check(case, op, out, q, k, v, inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    del out
    out = op(q, k, v, **inputs)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    peers = contenders(case, shape, q, k, v, inputs)
    for name, call in peers.items():
        if callable(call):  # every element, against a peer: what the reference is too large for
            difference = (call().float() - out.float()).abs().max().item()
            assert difference < 6e-2, f"{case.name}: {difference} from {name}"
    calls = {"attnc": lambda: op(q, k, v, **inputs)} | {name: call for name, call in peers.items() if callable(call)}
    row = {
        "case": case.name,
        "direction": "forward",
        "dtype": str(dtype).removeprefix("torch."),
        "shape": {name: getattr(shape, name) for name in ("B", "H", "G", "N", "D")},
        "error": error,
        "first_call_seconds": first,
        "extra_bytes": max(0, extra),
        "missing": {name: why for name, why in peers.items() if not callable(why)},
    }
    return row | timed(calls, rounds, flops(case, shape, inputs))


def compare_backward(case: Case, shape: Shape, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """One row of the results for the gradients of q, k and v: checked against the peers, then timed beside them."""
    q, k, v = leaves = tensors(shape, dtype, GPU)
    for leaf in leaves:
        leaf.requires_grad_()
    inputs: dict[str, Any] = case.inputs(shape, GPU)
    op = attnc.loads(case.spec)
    peers = contenders(case, shape, q, k, v, inputs)
    calls = {"attnc": lambda: op(q, k, v, **inputs)} | {name: call for name, call in peers.items() if callable(call)}
    pulls = {name: gradients(call, leaves) for name, call in calls.items()}
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ours = pulls["attnc"]()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    assert all(gradient.isfinite().all() for gradient in ours), f"{case.name}: a gradient is not finite"
    assert all(map(torch.equal, ours, pulls["attnc"]())), f"{case.name}: other bits at the second run"
    worst = 0.0
    for name, pull in pulls.items():
        for mine, theirs in zip(ours, pull(), strict=True):
            worst = max(worst, ((mine.float() - theirs.float()).norm() / theirs.float().norm()).item())
        assert worst < 2e-2, f"{case.name}: {worst} from {name}"
    row = {
        "case": case.name,
        "direction": "backward",
        "dtype": str(dtype).removeprefix("torch."),
        "shape": {name: getattr(shape, name) for name in ("B", "H", "G", "N", "D")},
        "error": worst,
        "extra_bytes": max(0, extra),
        "missing": {name: why for name, why in peers.items() if not callable(why)},
    }
    return row | timed(pulls, rounds, 2.5 * flops(case, shape, inputs))


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int, work: float) -> dict[str, Any]:
    """Times, rates and ratios of calls that do ``work`` floating point operations."""
    milliseconds = measure(calls, rounds)
    medians = {name: statistics.median(values) for name, values in milliseconds.items()}
    return {
        "milliseconds": {name: {"median": medians[name], "all": values} for name, values in milliseconds.items()},
        "tflops": {name: work / median / 1e9 for name, median in medians.items()},
        "ratio": {name: medians[name] / medians["attnc"] for name in medians if name != "attnc"},
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Rates of all, in TFLOP/s over the visible pairs."""
    names = ("attnc", *PEERS, "flex")
    shown = Table("case", "D", "N", *names)
    for row in rows:
        rates = (f"{row['tflops'][name]:.0f}" if name in row["tflops"] else "-" for name in names)
        shown.add_row(row["case"], str(row["shape"]["D"]), str(row["shape"]["N"]), *rates)
    return shown


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--backward", action="store_true", help="time the gradients of q, k and v instead")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) * 3 // 4), help="that compile at once")
    parser.add_argument("--name", help="name of the file in results/; gpu or gpu-backward if not given")
    given = parser.parse_args()
    run = compare_backward if given.backward else compare
    if not torch.cuda.is_available():
        parser.exit(1, "no GPU here\n")
    console = Console(width=120)
    sizes = ((8, 4096), (2, 16384)) if not given.quick else ((1, 1024),)
    shapes = [Shape(B, 2048 // D, 2048 // D, N, D) for (B, N), D in itertools.product(sizes, (64, 128))]
    rounds = 3 if given.quick else given.rounds
    chosen = [case for case in CASES if not given.case or case.name in given.case]
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        jobs = itertools.product(chosen, (64, 128))
        for job in [pool.submit(prepare, case.name, D, given.backward) for case, D in jobs]:
            job.result()
    rows = []
    for case, shape in itertools.product(chosen, shapes):
        torch.compiler.reset()
        rows.append(run(case, shape, torch.bfloat16, rounds))
        console.print(rows[-1]["case"], shape, {name: f"{rate:.0f}" for name, rate in rows[-1]["tflops"].items()})
    console.print(table(rows))
    if not given.quick:
        name = given.name or ("gpu-backward" if given.backward else "gpu")
        console.print(f"written to {write(name, GPU, {'rounds': rounds, 'cold_l2': True}, rows)}")


if __name__ == "__main__":
    main()
