"""Tuning one problem: the default first, then what the search suggests, then the best against the default in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from attnc.autotune.key import key_of
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation, name_of
from attnc.autotune.run import Progress, Run, Workers
from attnc.autotune.search import Search, Suggestion
from attnc.backends.protocol import Config

FINALISTS = 3
"""Configs that meet the default at the end."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one problem may take: trials, or seconds of searching."""

    trials: int | None = None
    seconds: float | None = None


class Tuner(Workers):
    """Tunes problems, with the same worker processes; several at a time from several threads."""

    def tune(self, problem: Problem, search: Search, budget: Budget, known: Sequence[Observation] = ()) -> Progress:
        """Search until the budget is spent or nothing is left, and measure the best.

        ``known`` are observations of this key; failures among them are not tried again.

        Raises:
            Failed: the default does not work.
            KeyboardInterrupt: after the best so far were measured against the default.
        """
        progress = Progress(problem, key_of(problem.request()))
        run = Run(self, problem, progress)
        run.begin()
        screened: dict[str, tuple[Config, float]] = {}
        for one in known:
            ratio = one.relative_to_default if one.status == "ok" else None
            search.tell_known(one.config, ratio)
            if ratio is not None and one.config:
                screened[name_of(one.config)] = one.config, ratio
        search.tell_known(search.space.default, 1.0)
        interrupted = False
        try:
            for config, ratio in searched(run, search, budget):
                screened[name_of(config)] = config, ratio
        except KeyboardInterrupt:
            interrupted = True
        best = sorted((x for x in screened.values() if x[1] < 1.1), key=lambda x: x[1])[:FINALISTS]
        run.finish([config for config, _ in best])
        if interrupted:
            raise KeyboardInterrupt
        return progress

    def measure_again(self, problem: Problem, config: Config) -> Progress:
        """Check a config, and measure it against the default once more.

        Raises:
            Failed: the default does not work.
        """
        progress = Progress(problem, key_of(problem.request()))
        run = Run(self, problem, progress)
        run.begin()
        run.finish([config] if config and run.try_once(config) is not None else [])
        return progress


def searched(run: Run, search: Search, budget: Budget) -> Iterator[tuple[Config, float]]:
    """Try what the search suggests; configs that work, with their first ratio to the default."""
    ends = time.monotonic() + budget.seconds if budget.seconds is not None else None
    alone = run.problem.target.kind == "cpu"  # compiling beside it would disturb what is timed
    count = run.workers.compilers
    if budget.trials is not None:  # what is suggested before others are known knows less
        count = min(count, max(2, budget.trials // 4))
    with ThreadPoolExecutor(count) as threads:
        waiting: list[tuple[Suggestion, Future[dict[str, Any]]]] = []
        left = math.inf if budget.trials is None else budget.trials

        def refill() -> None:
            nonlocal left
            while len(waiting) < count:
                if ends is not None and time.monotonic() > ends:
                    return
                if left == 0:
                    return
                suggestion = search.ask()
                if suggestion is None:
                    return
                left -= 1
                waiting.append((suggestion, threads.submit(run.compiled, suggestion.config)))

        try:
            refill()
            while waiting:
                wait([future for _, future in waiting], return_when=ALL_COMPLETED if alone else FIRST_COMPLETED)
                suggestion, future = waiting.pop(next(at for at, (_, one) in enumerate(waiting) if one.done()))
                if not alone:
                    refill()
                ratio = run.tried(suggestion.config, future.result())
                search.tell(suggestion, ratio)
                if ratio is not None:
                    yield suggestion.config, ratio
                if not (alone and waiting):
                    refill()
        finally:
            for _, future in waiting:
                future.cancel()
