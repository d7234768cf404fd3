"""Attention on this machine's CPU: attnc, torch's SDPA and compiled FlexAttention, taking turns on the same cores.

Writes ``results/cpu.json`` and ``results/cpu.md`` after every row, so that a run that was cut short leaves what it
found. Rows come most telling first; those that the time given by ``--minutes`` has no room for are named as such.
Absolute times say little beyond this machine. ``--quick`` uses small sizes, to see that everything runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import CASES, Case, Inputs, Shape, check, flex_call, flops, sdpa_call, tensors
from fresh import latency, memory
from goals import name_of, report
from peak import peaks, reading
from record import RESULTS, environment
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor

import attnc

CPU = torch.device("cpu")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
WINDOW = 256
KEYS = (512, 2048, 8192)
WIDTHS = (64, 128)
FEWEST, MOST = 3, 41
"""Rounds of a row."""

Calls = dict[str, Callable[[], Any]]


def _band(shape: Shape, inputs: Inputs) -> int:
    w = min(WINDOW, shape.N)
    return w * (w + 1) // 2 + (shape.N - w) * w


ALL = {case.name: case for case in CASES} | {
    f"window {WINDOW}": Case(
        f"window {WINDOW}",
        f"attention window {{ mask causal and i - j < {WINDOW} }}",
        _band,
        mask_mod=lambda inputs: lambda b, h, i, j: (i >= j) & (i - j < WINDOW),
    ),
    "cog": Case("cog", "attention cog { normalize cog(score) }", lambda shape, inputs: shape.N**2, flex=False),
}
BASE = {"alibi": "causal", "softcap": "causal", "documents": "causal", "sigmoid": "full", "cog": "full"} | {
    f"window {WINDOW}": "full"
}
"""Beside which softmax of ours a case runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One row to come."""

    kind: str
    case: str
    dtype: str
    N: int
    D: int
    threads: int
    flex: bool = False

    def __str__(self) -> str:
        return f"{self.case} {self.kind} {self.dtype} N={self.N} D={self.D}, {self.threads} threads"


def plans(keys: tuple[int, ...], threads: int) -> Iterator[Plan]:
    """All rows, most telling first."""
    by_size = sorted(itertools.product(keys, WIDTHS), key=lambda x: (x[0] != 2048, x[0] != 8192))
    long = max(keys)
    for d in WIDTHS:
        yield Plan("forward", f"window {WINDOW}", "f32", long, d, threads, flex=True)
    for n, d in by_size:
        for case in ("full", "causal"):
            yield Plan("forward", case, "f32", n, d, threads)
        for case in ("alibi", "softcap", "sigmoid", "cog"):
            yield Plan("forward", case, "f32", n, d, threads)
        for dtype in DTYPES:
            yield Plan("decode", "decode", dtype, n, d, threads)
        for case in ("full", "causal"):
            yield Plan("backward", case, "f32", n, d, threads)
    for n, d in by_size:
        for case, kind in itertools.product(("full", "causal"), ("forward", "backward")):
            yield Plan(kind, case, "bf16", n, d, threads)
    for d in WIDTHS:
        for case in ("full", "causal", f"window {WINDOW}"):
            yield Plan("forward", case, "f32", 2048 if 2048 in keys else long, d, 1)
    for case in ("alibi", "softcap", "documents"):
        yield Plan("forward", case, "f32", 2048 if 2048 in keys else long, 64, threads, flex=True)


def measure(calls: Calls, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call in each round; the calls take turns, in an order that alternates."""
    first = time.perf_counter()
    for call in calls.values():
        call()
        call()
    each = (time.perf_counter() - first) / 2
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(FEWEST, min(MOST, int(seconds / max(each, 1e-6))))):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            begun = time.perf_counter()
            calls[name]()
            found[name].append(time.perf_counter() - begun)
    return found


def forward(plan: Plan, seconds: float) -> dict[str, Any]:
    """A forward: checked first, then timed beside the peers and our own softmax."""
    case, shape = ALL[plan.case], Shape(1, 8, 8, plan.N, plan.D)
    q, k, v = tensors(shape, DTYPES[plan.dtype], CPU)
    inputs: dict[str, Any] = case.inputs(shape, CPU)
    op = attnc.loads(case.spec)
    error = check(case, op, op(q, k, v, **inputs), q, k, v, inputs)
    calls: Calls = {"attnc": lambda: op(q, k, v, **inputs)}
    missing = {}
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        calls["sdpa"] = sdpa
    if base := BASE.get(plan.case):
        softmax = attnc.loads(ALL[base].spec)
        calls["softmax"] = lambda: softmax(q, k, v)
    if plan.flex:
        try:
            torch.compiler.reset()
            calls["flex"] = flex_call(case, shape, inputs, q, k, v)
            calls["flex"]()
        except Exception as error_of_peer:  # a peer that cannot is a result, not a failure of ours
            calls.pop("flex", None)
            missing["flex"] = str(error_of_peer).strip().splitlines()[0][:200]
    found = row(plan, measure(calls, seconds))
    if base:  # per visible pair
        found["ratio"]["softmax"] *= case.visible(shape, inputs) / ALL[base].visible(shape, {})
    rate = flops(case, shape, inputs) / found["seconds"]["attnc"]["median"] / 1e9
    return {**found, "error": error, "gflops": rate, "missing": missing}


def backward(plan: Plan, seconds: float) -> dict[str, Any]:
    """The gradients of q, k and v beside those of SDPA; operations are counted as five products."""
    case, shape = ALL[plan.case], Shape(1, 8, 8, plan.N, plan.D)
    q, k, v = (x.requires_grad_() for x in tensors(shape, DTYPES[plan.dtype], CPU))
    inputs: dict[str, Any] = case.inputs(shape, CPU)
    results = {"attnc": attnc.loads(case.spec)(q, k, v, **inputs)}
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        results["sdpa"] = sdpa()
    cotangent = torch.randn_like(results["attnc"])

    def gradients(result: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(result, (q, k, v), cotangent, retain_graph=True)

    calls: Calls = {name: gradients(result) for name, result in results.items()}
    ours, theirs = calls["attnc"](), calls["sdpa"]()
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    assert error < (1e-4 if plan.dtype == "f32" else 5e-2), f"{plan}: gradients differ by {error} of the largest"
    found = row(plan, measure(calls, seconds))
    rate = 2.5 * flops(case, shape, inputs) / found["seconds"]["attnc"]["median"] / 1e9
    return {**found, "error": error, "gflops": rate, "missing": {}}


def decode(plan: Plan, seconds: float) -> dict[str, Any]:
    """One query a head over all keys: what counts is how fast keys and values are read."""
    q, k, v = tensors(Shape(1, 8, 8, plan.N, plan.D), DTYPES[plan.dtype], CPU)
    q = q[:, :, :1].contiguous()
    op = attnc.loads("attention full {}")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    error = float((op(q, k, v).double() - op.reference(q.double(), k.double(), v.double())).abs().max())
    assert error < (1e-4 if plan.dtype == "f32" else 3e-2), f"{plan}: error {error}"
    read, size = reading()
    found = row(plan, measure({"attnc": lambda: op(q, k, v), "sdpa": lambda: sdpa(q, k, v), "read": read}, seconds / 2))
    rate = (k.nbytes + v.nbytes) / found["seconds"]["attnc"]["median"]
    best = size / found["seconds"]["read"]["median"]
    return {**found, "error": error, "gbytes": rate / 1e9, "of_read": rate / best, "missing": {}}


def row(plan: Plan, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What every row of the results has."""
    medians = {peer: statistics.median(values) for peer, values in seconds.items()}
    return {
        "case": f"{plan.case} backward" if plan.kind == "backward" else plan.case,
        "threads": torch.get_num_threads(),
        "dtype": plan.dtype,
        "shape": {"B": 1, "H": 8, "G": 8, "N": plan.N, "D": plan.D},
        "seconds": {peer: {"median": medians[peer], "all": values} for peer, values in seconds.items()},
        "ratio": {peer: medians[peer] / medians["attnc"] for peer in medians if peer not in ("attnc", "read")},
    }


KINDS = {"forward": forward, "backward": backward, "decode": decode}


@dataclass
class Results:
    """What was found so far; written down at every change."""

    settings: dict[str, Any]
    kept: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=lambda: environment(CPU))

    def add(self, found: dict[str, Any]) -> None:
        self.rows.append(found)
        self.write()

    def write(self) -> None:
        if self.kept:
            RESULTS.mkdir(exist_ok=True)
            content = {"environment": self.facts, "settings": self.settings, "rows": self.rows}
            (RESULTS / "cpu.json").write_text(json.dumps(content, indent=1) + "\n")
            (RESULTS / "cpu.md").write_text(self.report())

    def report(self) -> str:
        return report(self.facts, self.settings, self.rows)


def run(results: Results, wanted: list[Plan], seconds: float, end: float, console: Console) -> None:
    """One row after the other, until the time is over."""
    for plan in wanted:
        if time.perf_counter() > end:
            results.settings["skipped"].append(f"{plan}, for want of time")
            continue
        torch.set_num_threads(plan.threads)
        try:
            found = KINDS[plan.kind](plan, seconds)
        except Exception as error:  # the other rows are still worth having
            results.settings["skipped"].append(f"{plan}: {type(error).__name__}: {str(error)[:300]}")
            console.print(f"[red]{plan}: {error}")
            results.write()
            continue
        if "gflops" in found:
            found["of_fma"] = found["gflops"] / results.settings["peak"][plan.threads]["fma"]
        results.add(found)
        ratios = ", ".join(f"{peer} {ratio:.2f}" for peer, ratio in found["ratio"].items())
        part = found.get("of_fma", found.get("of_read"))
        milliseconds = 1e3 * found["seconds"]["attnc"]["median"]
        console.print(f"{name_of(found)} {plan.dtype}: {milliseconds:.2f} ms, {part:.2f} of peak; {ratios}")


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--minutes", type=float, default=11.0, help="after which no new row is begun")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long a row is measured")
    parser.add_argument("--case", action="append", choices=[*ALL, "decode"], help="only these; writes nothing")
    parser.add_argument("--keys", type=int, action="append", help=f"how many keys, instead of {KEYS}")
    parser.add_argument("--no-flex", action="store_true", help="without FlexAttention, which takes long to compile")
    given = parser.parse_args()
    end = time.perf_counter() + 60 * given.minutes
    console = Console(width=160)
    threads = torch.get_num_threads()
    keys = (128,) if given.quick else tuple(given.keys or KEYS)
    wanted = [plan for plan in plans(keys, threads) if not given.case or plan.case in given.case]
    if given.no_flex:
        wanted = [plan for plan in wanted if not plan.flex or plan.case == f"window {WINDOW}"]
        wanted = [Plan(plan.kind, plan.case, plan.dtype, plan.N, plan.D, plan.threads) for plan in wanted]
    load = os.getloadavg()  # of what else runs here
    settings: dict[str, Any] = {"seconds": given.seconds, "load": load, "peak": {}, "skipped": []}
    results = Results(settings, kept=not (given.quick or given.case))
    for count in dict.fromkeys((1, threads)):
        torch.set_num_threads(count)
        settings["peak"][count] = peaks()
    console.print(settings["peak"])
    if not given.case:
        results.add(latency())
        results.add(memory(1024 if given.quick else 16384))
        console.print(*(one["text"] for one in results.rows), sep="\n")
    run(results, wanted, 0.01 if given.quick else given.seconds, end, console)
    console.print(Markdown(results.report()))


if __name__ == "__main__":
    main()
