"""A page about tuning results that needs nothing else: history, importance of each choice, tuned beside default."""

from __future__ import annotations

import html
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnc.autotune.record import Observation, name_of
from attnc.autotune.winner import ranking

WIDTH, HEIGHT, LEFT = 720, 180, 60
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2em auto; color: #222 }
svg { width: 100%; height: auto } text { font: 12px system-ui, sans-serif; fill: #444 }
.dot { fill: #9bb8d3 } .best { stroke: #c0392b; fill: none; stroke-width: 2 } .bar { fill: #4878a8 }
.line { stroke: #bbb } table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; text-align: left }
"""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The observations of one key, with a title."""

    title: str
    observations: Sequence[Observation]


def page(results: Iterable[Tuned]) -> str:
    """The page as HTML, without scripts and without links."""
    results = list(results)
    parts = [_overview(results)]
    for one in results:
        parts.append(f"<h2>{html.escape(one.title)}</h2>{_history(one)}{_importance(one)}")
    return f'<!doctype html><meta charset="utf-8"><title>attnc tune</title><style>{STYLE}</style>' + "".join(parts)


def importance(observations: Iterable[Observation]) -> dict[str, float]:
    """Of each choice, the share of the variance of log time that its setting alone explains (correlation ratio)."""
    timed = [(x.config, math.log(x.relative_to_default)) for x in observations if x.config and x.relative_to_default]
    if len(timed) < 2:
        return {}
    mean = statistics.fmean(y for _, y in timed)
    total = sum((y - mean) ** 2 for _, y in timed)
    shares = {}
    for name in timed[0][0]:
        groups = defaultdict(list)
        for config, y in timed:
            groups[config.get(name)].append(y)
        between = sum(len(ys) * (statistics.fmean(ys) - mean) ** 2 for ys in groups.values())
        shares[name] = between / total if total else 0.0
    return dict(sorted(shares.items(), key=lambda share: -share[1]))


def _overview(results: Sequence[Tuned]) -> str:
    rows = []
    for one in results:
        final = [x for x in one.observations if x.stage == "final" and x.status == "ok"]
        default = [statistics.median(x.times_us) for x in final if not x.config]
        ranked = ranking(list(one.observations))
        if not default or not ranked:
            continue
        config, ratio = ranked[0]
        faster = f"{1 / ratio:.3f}"
        cells = one.title, f"{default[-1]:.1f}", f"{default[-1] * ratio:.1f}", faster, name_of(config) or "the default"
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("what", "default µs", "tuned µs", "speed-up", "config"))
    return f"<h1>Tuned beside default</h1><table><tr>{head}</tr>{''.join(rows)}</table>"


def _history(one: Tuned) -> str:
    """The ratio to the default of every trial, and the best so far."""
    screened = [x for x in one.observations if x.stage == "screen" and x.config]
    timed = sorted(((x.created, x.relative_to_default) for x in screened if x.relative_to_default), key=lambda x: x[0])
    if not timed:
        return "<p>Nothing was measured.</p>"
    ratios = [ratio for _, ratio in timed]
    low, high = min(*ratios, 1.0) * 0.95, min(max(*ratios, 1.0), 3.0) * 1.05
    step = (WIDTH - LEFT - 10) / max(1, len(ratios) - 1)

    def y(ratio: float) -> float:
        return HEIGHT - (min(ratio, high) - low) / (high - low) * HEIGHT

    points = [(f"{LEFT + at * step:.1f}", y(ratio), y(min(ratios[: at + 1]))) for at, ratio in enumerate(ratios)]
    dots = "".join(f'<circle class="dot" r="3" cx="{x}" cy="{here:.1f}"/>' for x, here, _ in points)
    best = " ".join(f"{x},{least:.1f}" for x, _, least in points)
    default = f'<line class="line" x1="{LEFT}" x2="{WIDTH}" y1="{y(1):.1f}" y2="{y(1):.1f}"/>'
    labels = f'<text x="0" y="{y(1) + 4:.1f}">default</text>'
    labels += f'<text x="0" y="{y(min(ratios)):.1f}">{min(ratios):.2f}</text>'
    failed = sum(x.status != "ok" for x in screened)
    return _svg(HEIGHT + 10, f'{default}{dots}<polyline class="best" points="{best}"/>{labels}') + (
        f"<p>{len(ratios)} trials timed, {failed} rejected or failed; time over that of the default.</p>"
    )


def _importance(one: Tuned) -> str:
    shares = importance(one.observations)
    bars = "".join(
        f'<text x="0" y="{20 * at + 14}">{html.escape(name)}</text>'
        f'<rect class="bar" x="160" y="{20 * at + 3}" height="14" width="{share * (WIDTH - 220):.1f}"/>'
        f'<text x="{165 + share * (WIDTH - 220):.1f}" y="{20 * at + 14}">{share:.0%}</text>'
        for at, (name, share) in enumerate(shares.items())
    )
    return f"<p>Variance that each choice explains by itself:</p>{_svg(20 * len(shares) + 5, bars)}" if shares else ""


def _svg(height: int, inside: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">{inside}</svg>'
