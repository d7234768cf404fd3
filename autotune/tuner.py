"""Tuning one problem: the default first, then what the search suggests, then the best against the default in turns.

Every outcome is in the store the moment it is known, so an interrupted run has lost nothing but its last trial.
"""

from __future__ import annotations

import datetime
import os
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from attnc.autotune.hardware import environment, name_of
from attnc.autotune.key import Key, key_of
from attnc.autotune.pool import COMMAND, Pool, Worker, exclusively
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation
from attnc.autotune.record import name_of as record_name
from attnc.autotune.search import Search, Suggestion
from attnc.autotune.store import Store
from attnc.backends.protocol import Config

FINALISTS = 3
"""Configs that meet the default at the end."""
BUSY = 0.5
"""Load of a core from which on a measurement does not count as exclusive."""
COMPILING, MEASURING = 120.0, 60.0
"""Seconds after which a job counts as hung."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one problem may take: trials, or seconds of searching."""

    trials: int | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Progress:
    """What a run has done so far; handed to whoever watches after each step."""

    problem: Problem
    key: Key
    trials: int = 0
    rejected: int = 0
    failed: int = 0
    best: float = 1.0
    best_config: Config = field(default_factory=dict)
    default_us: float | None = None
    compiling: float = 0.0
    measuring: float = 0.0
    doing: str = ""


Watch = Callable[[Progress], None]


class Failed(RuntimeError):
    """The default itself cannot be compiled, or is wrong: there is nothing to compare with."""


class Tuner:
    """Tunes problems one after another, with the same worker processes.

    Args:
        store: where observations go.
        compilers: how many processes compile at once.
        command: how a worker is started, if not the usual way.
        watch: called after each step.
        timeouts: seconds for compiling and for measuring one config.
        seed: of data and of the search.
    """

    def __init__(
        self,
        store: Store,
        scratch: str,
        compilers: int | None = None,
        command: Sequence[str] = COMMAND,
        watch: Watch = lambda progress: None,
        timeouts: tuple[float, float] = (COMPILING, MEASURING),
        seed: int | None = None,
    ) -> None:
        self.store = store
        self.run_id = secrets.token_hex(8)
        self.watch = watch
        self.timeouts = timeouts
        self.seed = secrets.randbits(31) if seed is None else seed
        self.compilers = compilers or max(1, min(16, os.cpu_count() or 1))
        more = {"ATTNC_CACHE_DIR": scratch}
        self.pool = Pool(self.compilers, command, more)
        self.bench = Worker(command, more)

    def close(self) -> None:
        """End all workers."""
        self.pool.close()
        self.bench.close()

    def tune(self, problem: Problem, search: Search, budget: Budget, known: Sequence[Observation] = ()) -> Progress:
        """Search until the budget is spent or nothing is left, and measure the best.

        ``known`` are observations of this key; failures among them are not tried again.

        Raises:
            Failed: the default does not work.
            KeyboardInterrupt: after the best so far were measured against the default.
        """
        progress = Progress(problem, key_of(problem.request()))
        run = _Run(self, problem, progress)
        run.begin()
        screened: dict[str, tuple[Config, float]] = {}
        for one in known:
            ratio = one.relative_to_default if one.status == "ok" else None
            search.tell_known(one.config, ratio)
            if ratio is not None and one.config:
                screened[record_name(one.config)] = one.config, ratio
        search.tell_known(search.space.default, 1.0)
        interrupted = False
        try:
            for config, ratio in run.search(search, budget):
                screened[record_name(config)] = config, ratio
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
        run = _Run(self, problem, progress)
        run.begin()
        run.finish([config] if config and run.try_once(config) is not None else [])
        return progress


class _Run:
    """One problem in the hands of the workers of a tuner."""

    def __init__(self, tuner: Tuner, problem: Problem, progress: Progress) -> None:
        self.tuner, self.problem, self.progress = tuner, problem, progress
        self.job = {"problem": problem.to_json()}
        self.device = name_of(dict(progress.key.parts["hardware"]))
        # On a GPU the lock sees to it; a CPU is shared with whatever else runs.
        self.exclusive = problem.target.kind != "cpu" or _load() < BUSY
        about = {"spec": problem.program.name[:80], "sizes": dict(problem.sizes)}
        self.environment = environment(problem.target) | about

    def begin(self) -> None:
        """Compile, check and time the default."""
        self._show("the default")
        with ThreadPoolExecutor(1) as thread:  # the process that measures begins while the default compiles
            ready = thread.submit(self.tuner.bench.ask, {**self.job, "do": "prepare"}, self.tuner.timeouts[1])
            answer = self._compiled({})
            ready.result()
        if answer["status"] == "ok":
            answer = self._measured([{}], rounds=3)
        if answer["status"] != "ok":
            raise Failed(f"the default of `{self.problem.program.name}` fails: {answer['status']}: {answer['message']}")
        self.progress.default_us = statistics.median(answer["times"][0])

    def search(self, search: Search, budget: Budget) -> Iterator[tuple[Config, float]]:
        """Try what the search suggests; configs that work, with their first ratio to the default."""
        ends = time.monotonic() + budget.seconds if budget.seconds is not None else None
        progress = self.progress
        count = self.tuner.compilers
        with ThreadPoolExecutor(count) as threads:
            waiting: list[tuple[Suggestion, Future[dict[str, Any]]]] = []

            def refill() -> None:
                while len(waiting) < count:
                    if ends is not None and time.monotonic() > ends:
                        return
                    if budget.trials is not None and progress.trials + len(waiting) >= budget.trials:
                        return
                    suggestion = search.ask()
                    if suggestion is None:
                        return
                    waiting.append((suggestion, threads.submit(self._compiled, suggestion.config)))

            try:
                refill()
                while waiting:
                    suggestion, future = waiting.pop(0)
                    if self.problem.target.kind == "cpu":  # compiling beside it would disturb what is timed
                        for _, other in waiting:
                            other.exception()
                    else:
                        refill()
                    ratio = self._tried(suggestion.config, future.result())
                    search.tell(suggestion, ratio)
                    if ratio is not None:
                        yield suggestion.config, ratio
                    if not waiting or self.problem.target.kind != "cpu":
                        refill()
            finally:
                for _, future in waiting:
                    future.cancel()

    def finish(self, configs: Sequence[Config]) -> None:
        """Measure the best and the default in turns, and keep that."""
        finalists: list[Config] = [{}, *configs]
        while True:
            self._show("finalists")
            answer = self._measured(finalists, rounds=15, final=True)
            if answer["status"] == "ok":
                break
            if len(finalists) == 1:
                raise Failed(f"the default fails: {answer['message']}")
            if answer.get("config"):
                self._keep(finalists.pop(answer["config"]), answer["status"], "final")
            else:
                finalists.pop()  # one of them, we do not know which; the slowest has the least to lose
        default, *_ = answer["times"]
        self.progress.best, self.progress.best_config = 1.0, {}
        for config, times in zip(finalists, answer["times"], strict=True):
            ratio = statistics.median(a / b for a, b in zip(times, default, strict=True)) if config else 1.0
            self._keep(config, "ok", "final", times=times, ratio=ratio, clocks=answer["clocks"])
            if ratio < self.progress.best:
                self.progress.best, self.progress.best_config = ratio, config
        self._show("done")

    def try_once(self, config: Config) -> float | None:
        """Compile, check and time one config."""
        return self._tried(config, self._compiled(config))

    def _tried(self, config: Config, answer: dict[str, Any]) -> float | None:
        """Check and time what was compiled; its ratio to the default, or ``None`` if it failed."""
        progress = self.progress
        progress.trials += 1
        progress.compiling += answer.get("seconds", 0.0)
        self._show("measuring")
        if answer["status"] == "ok" and answer["rejected"]:
            progress.rejected += 1
            self._keep(config, "compile_error", "screen", check={"rejected": answer["rejected"][:300]})
            return None
        if answer["status"] == "ok":
            answer = self._measured([{}, config], rounds=5)
        if answer["status"] != "ok":
            progress.failed += 1
            self._keep(config, answer["status"], "screen", check={"message": answer.get("message", "")[:300]})
            return None
        default, times = answer["times"]
        ratio = float(statistics.median(times) / statistics.median(default))
        self._keep(config, "ok", "screen", times=times, ratio=ratio, check=answer["check"])
        if ratio < progress.best:
            progress.best, progress.best_config = ratio, config
        self._show("")
        return ratio

    def _compiled(self, config: Config) -> dict[str, Any]:
        return self.tuner.pool.ask({**self.job, "do": "compile", "config": dict(config)}, self.tuner.timeouts[0])

    def _measured(self, configs: Sequence[Config], rounds: int, final: bool = False) -> dict[str, Any]:
        """Check the last config, then time all in turns; the answer to the first job that fails."""
        begun = time.monotonic()
        timeout = self.tuner.timeouts[1]
        with exclusively(self.device):
            check = {**self.job, "do": "check", "config": dict(configs[-1]), "seed": self.tuner.seed}
            answer = {"status": "ok", "check": {}} if final else self.tuner.bench.ask(check, timeout)
            if answer["status"] == "ok":
                timed = {**self.job, "do": "measure", "configs": list(map(dict, configs)), "rounds": rounds}
                timed["seconds"] = 8.0 if final else 1.0
                answer = {**answer, **self.tuner.bench.ask(timed, timeout * (len(configs) if final else 1))}
        self.progress.measuring += time.monotonic() - begun
        return answer

    def _keep(
        self,
        config: Config,
        status: str,
        stage: str,
        times: Sequence[float] = (),
        ratio: float | None = None,
        check: dict[str, Any] | None = None,
        clocks: dict[str, float] | None = None,
    ) -> None:
        from attnc import __version__

        self.tuner.store.put(
            Observation(
                self.progress.key,
                dict(config),
                status,
                stage,
                self.tuner.run_id,
                __version__,
                datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                tuple(float(f"{x:.4g}") for x in times),
                ratio and float(f"{ratio:.4g}"),
                check or {},
                clocks or {},
                self.exclusive,
                self.environment,
            )
        )

    def _show(self, doing: str) -> None:
        self.progress.doing = doing
        self.tuner.watch(self.progress)


def _load() -> float:
    """Processes that want a core, on average over a minute, for each core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)
