"""What the CPU kernels are to reach, and a report of what they reached: ``results/cpu.md``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """``value(row)`` of every row that has one is at least ``least``, or at most ``most``."""

    text: str
    value: Callable[[Row], float | None]
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def beside(peer: str, *cases: str, dtype: str = "f32", keys: int = 0) -> Callable[[Row], float | None]:
    """The ratio to a peer of the rows of some cases."""

    def value(row: Row) -> float | None:
        if row["case"] not in cases or row["dtype"] != dtype or (keys and row["shape"]["N"] != keys):
            return None
        found: float | None = row["ratio"].get(peer)
        return found

    return value


def of(name: str) -> Callable[[Row], float | None]:
    """A figure of the rows that have it."""
    return lambda row: row.get(name)


SOFTMAX = ("full", "causal", "full backward", "causal backward")

GOALS = (
    Goal("softmax, full and causal, forward and backward, float32: SDPA's time over ours", beside("sdpa", *SOFTMAX), 1),
    Goal("the same in bfloat16", beside("sdpa", *SOFTMAX, dtype="bf16"), 1),
    Goal(
        "window of 256 of 8192 keys: of our dense rate on the visible pairs",
        beside("softmax", "window 256", keys=8192),
        0.7,
    ),
    Goal("window of 256 of 8192 keys: FlexAttention's time over ours", beside("flex", "window 256", keys=8192), 1),
    Goal(
        "ALiBi, softcap, sigmoid, cog: of our softmax's rate on the same pairs",
        beside("softmax", "alibi", "softcap", "sigmoid", "cog"),
        0.8,
    ),
    Goal("decoding: of the bandwidth of reading memory", of("of_read"), 0.8),
    Goal(
        "memory beyond inputs and output at 16384 keys, of that of one row vector each of q and v",
        of("of_rows"),
        most=1,
    ),
    Goal("seconds from `loads` to the first result, nothing cached", of("cold_seconds"), most=3.0),
    Goal("seconds from `loads` to the first result, from the cache on disk", of("warm_seconds"), most=0.2),
)


def name_of(row: Row) -> str:
    """A row in a few words."""
    if "shape" not in row:
        return str(row["case"])
    return f"{row['case']} N={row['shape']['N']} D={row['shape']['D']} {row['threads']}t"


def judged(goal: Goal, rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The rows that a goal speaks of, and their values."""
    found = ((row, goal.value(row)) for row in rows if "dtype" in row or "shape" not in row)
    return [(row, value) for row, value in found if value is not None]


def _goal(goal: Goal, rows: Sequence[Row]) -> str:
    found = judged(goal, rows)
    bound = f">= {goal.least:g}" if goal.least is not None else f"<= {goal.most:g}"
    if not found:
        return f"| {goal.text} | {bound} | not measured | | |"
    values = sorted(value for _, value in found)
    missed = [(row, value) for row, value in found if not goal.met(value)]
    worst = ", ".join(f"{name_of(row)}: {value:.2f}" for row, value in sorted(missed, key=lambda x: x[1])[:8])
    middle = values[len(values) // 2]
    verdict = "met" if not missed else f"missed by {len(missed)} of {len(found)}"
    return f"| {goal.text} | {bound} | {verdict} | {values[0]:.2f} to {values[-1]:.2f}, median {middle:.2f} | {worst} |"


def _row(row: Row) -> str:
    ratio = row["ratio"]
    times = [f"{ratio[peer]:.2f}" if peer in ratio else "-" for peer in ("sdpa", "flex", "softmax")]
    part = row.get("of_fma", row.get("of_read"))
    return (
        f"| {row['case']} | {row['threads']} | {row['dtype']} | {row['shape']['N']} | {row['shape']['D']} "
        f"| {1e3 * row['seconds']['attnc']['median']:.2f} | {part:.2f} | {' | '.join(times)} |"
    )


def report(environment: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """All of it as Markdown."""
    device, peaks = environment["device"], settings["peak"]
    lines = [
        "# CPU kernels",
        "",
        f"{device['name']}, {device['cores']} cores, {device['vectors']}; {environment['date']}, "
        f"commit {environment['commit']}, torch {environment['packages']['torch']}. "
        f"Load before: {', '.join(f'{x:.1f}' for x in settings['load'])}.",
        "",
        "Written by `make bench`. Calls took turns in one process; medians. Ratios are the peer's time over ours: "
        "above 1, ours is faster. Beside our softmax: our rate on the visible pairs over its rate in the same rounds.",
        "",
        *(
            f"- {threads} thread(s): {peak['fma']:.0f} GFLOP/s of multiply-adds, {peak['matmul']:.0f} in torch's "
            f"product of 2048, {peak['read']:.1f} GB/s read"
            for threads, peak in peaks.items()
        ),
        "",
        "| goal | bound | | range | missed by |",
        "|---|---|---|---|---|",
        *(_goal(goal, rows) for goal in GOALS),
        "",
        "| case | threads | dtype | N | D | ms | of peak | SDPA | Flex | our softmax |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(row) for row in rows if "shape" in row),
        "",
        *(f"- {row['case']}: {row['text']}" for row in rows if "text" in row),
        *(f"- not measured: {text}" for text in settings["skipped"]),
        *(f"- {name_of(row)}: no {peer}: {why}" for row in rows for peer, why in row.get("missing", {}).items()),
    ]
    return "\n".join(lines) + "\n"
