"""A space measured whole, and searches replayed on what was measured: as many as one likes, without a device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attnc.autotune.hardware import name_of as hardware_name
from attnc.autotune.key import key_of
from attnc.autotune.pool import exclusively
from attnc.autotune.problem import Problem
from attnc.autotune.record import name_of
from attnc.autotune.search import Search, Suggestion
from attnc.autotune.tuner import FINALISTS, Tuner
from attnc.autotune.winner import TIE
from attnc.backends.protocol import Config, Space

CHUNK = 16
"""Configs that are measured in one job, in turns with the default."""
AHEAD = 2
"""Suggestions that are compiled while others are measured: they know nothing of those."""
CLOSE = 1.25
"""Configs within this of the fastest are measured again, by which they are judged."""


@dataclass(slots=True)
class Survey:
    """What every config of a space takes, relative to the default; ``None`` where it was rejected or failed.

    ``first`` is what a search sees; ``second``, of the faster ones, was measured afterwards, so that judging by it does
    not favour what was lucky in the first.
    """

    problem: Problem
    space: Space
    first: dict[str, float | None] = field(default_factory=dict)
    second: dict[str, float] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)
    compiling: float = 0.0
    measuring: float = 0.0

    def best(self) -> str:
        return min(self.second, key=lambda name: self.second[name])


def measured(made: Tuner, problem: Problem, configs: Sequence[Config], rounds: int, seconds: float) -> dict[str, Any]:
    """The answer of the process that measures to a job, the default being the first of ``configs``."""
    job = {"problem": problem.to_json(), "do": "measure", "configs": [dict(x) for x in configs], "rounds": rounds}
    with exclusively(hardware_name(dict(key_of(problem.request()).parts["hardware"]))):
        return made.bench.ask({**job, "seconds": seconds}, made.timeouts[1] + seconds)


def ratios(
    made: Tuner, problem: Problem, configs: Sequence[Config], rounds: int, left: Callable[[], float]
) -> dict[str, float | None]:
    """Each config's time over that of the default, in one run; a job that fails is cut in two, while time is left."""
    if not configs or left() < 0:
        return {}
    answer = measured(made, problem, [{}, *configs], rounds, 10.0)
    if answer["status"] == "ok":
        default, *times = answer["times"]
        paired = [statistics.median(a / b for a, b in zip(each, default, strict=True)) for each in times]
        return {name_of(config): ratio for config, ratio in zip(configs, paired, strict=True)}
    wrong = int(answer.get("config", 0))
    if wrong or len(configs) == 1:
        rest = [config for at, config in enumerate(configs, 1) if at != max(1, wrong)]
        return {name_of(configs[max(1, wrong) - 1]): None} | ratios(made, problem, rest, rounds, left)
    half = len(configs) // 2
    found = ratios(made, problem, configs[:half], rounds, left)
    return found | ratios(made, problem, configs[half:], rounds, left)


def measure(survey: Survey, made: Tuner, compiled: Sequence[Config], left: Callable[[], float], rounds: int) -> bool:
    """Fill a survey with configs that were compiled; whether there was time for all of it."""
    begun = time.monotonic()
    survey.configs = {name_of(config): config for config in compiled}
    for config in compiled:
        survey.first.setdefault(name_of(config), None)
    survey.first[name_of(survey.space.default)] = 1.0
    for at in range(0, len(compiled), CHUNK):
        if left() < 0:
            return False
        survey.first |= ratios(made, survey.problem, compiled[at : at + CHUNK], rounds, left)
    if left() < 0:
        return False
    known = {name: ratio for name, ratio in survey.first.items() if ratio is not None}
    limit = CLOSE * min(known.values())
    again = [survey.configs[name] for name, ratio in known.items() if ratio <= limit and name in survey.configs]
    for at in range(0, len(again), CHUNK):
        if left() < 0:
            return False
        found = ratios(made, survey.problem, again[at : at + CHUNK], 2 * rounds, left)
        survey.second |= {name: ratio for name, ratio in found.items() if ratio is not None}
    survey.second[name_of(survey.space.default)] = 1.0
    survey.measuring = time.monotonic() - begun
    return True


def replay(survey: Survey, trials: int, seeds: Sequence[Config], number: int) -> float:
    """Search with ``trials`` on what was measured; the time of the best over that of what was found."""
    search = Search(survey.space, f"replay {number}", None, trials, number)
    search.tell_known(survey.space.default, 1.0)
    for config in seeds:
        search.enqueue(config)
    seen: dict[str, float] = {}
    waiting: list[Suggestion] = []
    for turn in range(trials + AHEAD):
        if turn < trials and (suggestion := search.ask()) is not None:
            waiting.append(suggestion)
        if waiting and turn >= AHEAD:
            told = waiting.pop(0)
            name = name_of(told.config)
            ratio = survey.first.get(name)
            search.tell(told, ratio)
            if ratio is not None:
                seen[name] = ratio
    finalists = sorted((name for name in seen if seen[name] < 1.1), key=lambda name: seen[name])[:FINALISTS]
    best = survey.second[survey.best()]
    found = min((survey.second.get(name, CLOSE * best) for name in finalists), default=1.0)
    return best / (found if found < 1 - TIE else 1.0)


def replays(survey: Survey, trials: int, seeds: Sequence[Config], runs: int = 12) -> dict[str, float]:
    """Over several replays: the median, the tenth part from below, and the least."""
    found = sorted(replay(survey, trials, seeds, number) for number in range(runs))
    low = found[max(0, math.ceil(runs / 10) - 1)]
    return {"trials": trials, "median": round(statistics.median(found), 4), "p10": round(low, 4), "least": found[0]}


def top(survey: Survey, count: int = 4) -> list[Config]:
    """The configs that a search of something near would begin with."""
    names = sorted((name for name in survey.second if name in survey.configs), key=lambda name: survey.second[name])
    return [survey.configs[name] for name in names[:count]]


def summary(survey: Survey, others: Mapping[str, Survey]) -> dict[str, Any]:
    """How a search with a tenth of the trials does, and what seeds from other surveys change at equal budgets."""
    whole = len(survey.first)
    tenth = max(4, round(whole / 10))
    worked = sum(ratio is not None for ratio in survey.first.values())
    found: dict[str, Any] = {
        "configs": whole,
        "rejected_or_failed": whole - worked,
        "best": survey.best(),
        "best_over_default": round(1 / survey.second[survey.best()], 4),
        "compile_core_s": round(survey.compiling, 1),
        "measure_s": round(survey.measuring, 1),
        "first": survey.first,
        "second": survey.second,
        "a_tenth": replays(survey, tenth, ()),
        "transfer": {},
    }
    for trials in (4, 8, 16):
        cold = replays(survey, trials, ())
        seeded = {name: replays(survey, trials, top(other)) for name, other in others.items()}
        found["transfer"][str(trials)] = {"cold": cold, **seeded}
    return found
