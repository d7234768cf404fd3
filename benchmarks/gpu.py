"""Attention on a GPU, forward and backward: attnc, torch's SDPA (cuDNN, flash) and compiled FlexAttention.

Every result is checked first. Times are by device events with a cold L2 cache, medians over interleaved rounds in one
process: a card changes its clock under load, so only ratios within one row compare. Score functions, normalisations and
masks are also timed beside our own softmax of the same shape (``softmax``), backwards beside the one whose bits do not
change from call to call (``ordered``). Writes ``results/gpu.json`` and ``gpu.md`` after each row, ``gpu.png`` at the
end. ``--quick`` uses small sizes and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch
from cases import CASES, Case, Shape, check, flex_call, flops, sdpa_call, tensors
from fresh import latency
from gpu_cases import GPU_CASES, Measurement, measurements
from gpu_report import plot, save
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import attnc

GPU = torch.device("cuda")
PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
FLUSH_BYTES = 512 * 2**20
PLAIN = ("full", "causal")
SOFTMAX = {case.name: case.spec for case in CASES if case.name in PLAIN}
FLEX_LENGTHS = (4096, 16384)
"""Where FlexAttention takes part: it compiles each shape anew."""
BOUND = 2e-2
"""How far gradients in bf16 may be from others, relative to their norm."""


def pinned(call: Callable[[], Tensor], backend: SDPBackend) -> Callable[[], Tensor]:
    """A call of SDPA that one backend must serve."""

    def pinned_call() -> Tensor:
        with sdpa_kernel(backend):
            return call()

    return pinned_call


def ordered(pull: Callable[[], Any]) -> Callable[[], Any]:
    """A backward that adds up in one order."""

    def ordered_pull() -> Any:
        torch.use_deterministic_algorithms(True)
        try:
            return pull()
        finally:
            torch.use_deterministic_algorithms(False)

    return ordered_pull


def is_square(case: Case) -> bool:
    """Whether all pairs are visible."""
    return "mask" not in case.spec


def contenders(case: Case, shape: Shape, q: Tensor, k: Tensor, v: Tensor, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The peers that can say this case, by name; a string says why one cannot."""
    found: dict[str, Any] = {}
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        found |= {name: pinned(sdpa, backend) for name, backend in PEERS.items()}
    if case.flex and shape.N in FLEX_LENGTHS:
        found["flex"] = flex_call(case, shape, inputs, q, k, v)
    if case.name not in PLAIN:
        softmax = attnc.loads(SOFTMAX["full" if is_square(case) else "causal"])
        found["softmax"] = lambda: softmax(q, k, v)
    for name, call in list(found.items()):
        try:
            call()
            torch.cuda.synchronize()
        except Exception as error:  # a peer that cannot is a result, not a failure of ours
            found[name] = str(error).strip().splitlines()[0][:200]
    return found


def prepare(name: str, shape: Shape, backward: bool) -> str:
    """Compile a case, and FlexAttention's kernel for it, into the caches on disk."""
    torch.set_num_threads(1)
    case = next(case for case in GPU_CASES if case.name == name)
    small = Shape(1, shape.H, shape.G, shape.N, shape.D)
    q, k, v = tensors(small, torch.bfloat16, GPU)
    for leaf in (q, k, v):
        leaf.requires_grad_(backward)
    op = attnc.loads(case.spec)
    inputs: dict[str, Any] = case.inputs(small, GPU)
    begun = time.perf_counter()
    out = op(q, k, v, **inputs)
    if backward:
        out.sum().backward()
        ordered(lambda: op(q, k, v, **inputs).sum().backward())()
    if case.flex and shape.N in FLEX_LENGTHS:
        flex_q, flex_k, flex_v = tensors(shape, torch.bfloat16, GPU)
        for leaf in (flex_q, flex_k, flex_v):
            leaf.requires_grad_(backward)
        found = flex_call(case, shape, case.inputs(shape, GPU), flex_q, flex_k, flex_v)()
        if backward:
            found.sum().backward()
    return f"{name} {shape.D} {time.perf_counter() - begun:.1f} s"


def gradients(call: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """The backward of a call whose forward is done once, here."""
    out = call()
    cotangent = torch.randn(out.shape, generator=torch.Generator(GPU).manual_seed(1), dtype=out.dtype, device=GPU)
    return lambda: torch.autograd.grad(out, leaves, cotangent, retain_graph=True)


def measure(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; the calls take turns, in an order that alternates."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=GPU)
    for call, _ in itertools.product(calls.values(), range(2)):
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


def forward(case: Case, shape: Shape, rounds: int) -> dict[str, Any]:
    """Checked against the reference in its last rows and against peers everywhere, then timed."""
    q, k, v = tensors(shape, torch.bfloat16, GPU)
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
        if callable(call) and name != "softmax":
            difference = (call().float() - out.float()).abs().max().item()
            assert difference < 6e-2, f"{case.name}: {difference} from {name}"
    calls = {"attnc": lambda: op(q, k, v, **inputs)} | {name: call for name, call in peers.items() if callable(call)}
    facts = {"error": error, "first_call_seconds": first, "extra_bytes": max(0, extra), "missing": missing(peers)}
    return facts | timed(calls, rounds, flops(case, shape, inputs))


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest relative difference of gradients."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((x.float() - y.float()).norm() / y.float().norm()) for x, y in pairs)


def check_gradients(case: Case, shape: Shape) -> float:
    """How far the gradients of a small call are from the reference in float32."""
    small = Shape(1, 2, 1 if shape.G < shape.H else 2, 4096 if "space" in case.spec else 600, shape.D)
    narrow = [x.requires_grad_() for x in tensors(small, torch.bfloat16, GPU)]
    wide = [x.detach().float().requires_grad_() for x in narrow]
    inputs: dict[str, Any] = case.inputs(small, GPU)
    op = attnc.loads(case.spec)
    out, exact = op(*narrow, **inputs), op.reference(*wide, **inputs)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, narrow, cotangent)
    error = distance(found, torch.autograd.grad(exact, wide, cotangent.float()))
    assert error < BOUND, f"{case.name}: gradients off by {error}"
    return error


def backward(case: Case, shape: Shape, rounds: int) -> dict[str, Any]:
    """Gradients of q, k and v: checked against the reference and the peers, then timed beside them."""
    error = check_gradients(case, shape)
    leaves = q, k, v = tensors(shape, torch.bfloat16, GPU)
    for leaf in leaves:
        leaf.requires_grad_()
    inputs: dict[str, Any] = case.inputs(shape, GPU)
    op = attnc.loads(case.spec)
    peers = contenders(case, shape, q, k, v, inputs)
    calls = {"attnc": lambda: op(q, k, v, **inputs)} | {name: call for name, call in peers.items() if callable(call)}
    pulls = {name: gradients(call, leaves) for name, call in calls.items()}
    torch.use_deterministic_algorithms(True)
    pulls["ordered"] = ordered(gradients(calls["attnc"], leaves))
    torch.use_deterministic_algorithms(False)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ours = pulls["attnc"]()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    assert all(gradient.isfinite().all() for gradient in ours), f"{case.name}: a gradient is not finite"
    again = pulls["ordered"](), pulls["ordered"]()
    assert all(map(torch.equal, *again)), f"{case.name}: other bits at the second run"
    for name, pull in pulls.items():
        if name != "softmax":
            error = max(error, distance(ours, pull()))
            assert error < BOUND, f"{case.name}: {error} from {name}"
    facts = {"error": error, "extra_bytes": max(0, extra), "missing": missing(peers)}
    return facts | timed(pulls, rounds, 2.5 * flops(case, shape, inputs))


def missing(peers: Mapping[str, Any]) -> dict[str, str]:
    return {name: why for name, why in peers.items() if not callable(why)}


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int, work: float) -> dict[str, Any]:
    """Times, rates and ratios of calls that do ``work`` floating point operations."""
    milliseconds = measure(calls, rounds)
    medians = {name: statistics.median(values) for name, values in milliseconds.items()}
    return {
        "milliseconds": {name: {"median": medians[name], "all": values} for name, values in milliseconds.items()},
        "tflops": {name: work / median / 1e9 for name, median in medians.items()},
        "ratio": {name: medians[name] / medians["attnc"] for name in medians if name != "attnc"},
    }


def run(one: Measurement, rounds: int) -> dict[str, Any]:
    """One row; why there is none, where something fails."""
    row: dict[str, Any] = {
        "case": one.case.name,
        "direction": one.direction,
        "dtype": "bfloat16",
        "shape": {name: getattr(one.shape, name) for name in ("B", "H", "G", "N", "D")},
    }
    torch.compiler.reset()
    try:
        return row | (forward if one.direction == "forward" else backward)(one.case, one.shape, rounds)
    except Exception as error:  # the other rows are worth having
        return row | {"failed": f"{type(error).__name__}: {error}"[:500]}


def compile_ahead(wanted: Sequence[Measurement], jobs: int, console: Console) -> None:
    """Fill the caches on disk, from which the process that measures takes its kernels."""
    tasks: dict[tuple[str, int, bool, bool], tuple[str, Shape, bool]] = {}
    for one in wanted:
        is_backward, has_flex = one.direction == "backward", one.shape.N in FLEX_LENGTHS
        tasks.setdefault((one.case.name, one.shape.D, is_backward, has_flex), (one.case.name, one.shape, is_backward))
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=8) as pool:
        for done in as_completed([pool.submit(prepare, *task) for task in tasks.values()]):
            console.print(done.exception() or done.result())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--direction", action="append", choices=["forward", "backward"], help="only this one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="measure no more rows after this time")
    parser.add_argument("--quick", action="store_true", help="short sequences, 3 rounds, nothing is written")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="that compile at once")
    parser.add_argument("--name", default="gpu", help="of the files in results/")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "no GPU here\n")
    begun = time.perf_counter()
    console = Console(width=160)
    longest = 4096 if given.quick else 1 << 20
    wanted = list(measurements(given.case, given.direction or ["forward", "backward"], longest))
    compile_ahead(wanted, given.jobs, console)
    console.print(f"compiled after {time.perf_counter() - begun:.0f} s")
    rounds = 3 if given.quick else given.rounds
    rows = []
    for one in wanted:
        if time.perf_counter() - begun > given.seconds:
            break
        rows.append(row := run(one, rounds))
        rates = {name: round(rate) for name, rate in row.get("tflops", {}).items()}
        console.print(row["case"], row["direction"], *row["shape"].values(), row.get("failed") or rates)
        if not given.quick:
            save(given.name, GPU, {"rounds": rounds, "cold_l2": True}, rows)
    if rows and not given.quick:
        plot(given.name, rows)
        first = latency("cuda", "bfloat16")
        console.print(f"load to first result: {first['text']}")
        save(given.name, GPU, {"rounds": rounds, "cold_l2": True, "first_result": first}, rows)


if __name__ == "__main__":
    main()
