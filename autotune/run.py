"""One problem in the hands of worker processes: each config compiled, checked, timed, and kept.

Every outcome is in the store the moment it is known, so an interrupted run has lost nothing but its last trial.
"""

from __future__ import annotations

import datetime
import os
import secrets
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from attnc.autotune.given import digest_of
from attnc.autotune.hardware import environment, name_of
from attnc.autotune.key import Key
from attnc.autotune.pool import COMMAND, Pool, Worker, exclusively
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation
from attnc.autotune.record import name_of as record_name
from attnc.autotune.store import Store
from attnc.autotune.winner import TIE
from attnc.backends.protocol import Config

BUSY = 0.5
"""Load of a core from which on a measurement does not count as exclusive."""
COMPILING, MEASURING = 120.0, 60.0
"""Seconds after which a job counts as hung."""


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


class Workers:
    """Processes that compile, one that measures, and where what they find goes. Threads may share them.

    Args:
        store: where observations go.
        scratch: a folder for what is compiled.
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


class Run:
    """One problem, tried config by config."""

    def __init__(self, workers: Workers, problem: Problem, progress: Progress) -> None:
        self.workers, self.problem, self.progress = workers, problem, progress
        self.job = {"problem": problem.to_json()}
        self.device = name_of(dict(progress.key.parts["hardware"]))
        # On a GPU the lock sees to it; a CPU is shared with whatever else runs.
        self.exclusive = problem.target.kind != "cpu" or _load() < BUSY
        about = {"spec": problem.program.name[:80], "sizes": dict(problem.sizes)}
        given = {"tensors": digest_of(problem.tensors)} if problem.tensors else {}
        self.environment = environment(problem.target) | about | given

    def begin(self) -> None:
        """Compile, check and time the default."""
        self._show("the default")
        with ThreadPoolExecutor(1) as thread:  # the process that measures begins while the default compiles
            ready = thread.submit(self.workers.bench.ask, {**self.job, "do": "prepare"}, self.workers.timeouts[1])
            answer = self.compiled({})
            ready.result()
        if answer["status"] == "ok":
            answer = self._measured([{}], rounds=3)
        if answer["status"] != "ok":
            raise Failed(f"the default of `{self.problem.program.name}` fails: {answer['status']}: {answer['message']}")
        self.progress.default_us = statistics.median(answer["times"][0])

    def finish(self, configs: Sequence[Config]) -> None:
        """Measure the best and the default in turns, and keep that; whichever leads does so twice.

        Of several that are measured once the least is partly luck. What leads is measured again, in a run of its own,
        until the one that leads by the median of its ratios has been.
        """
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
        ratios = {record_name(config): [ratio] for config, ratio in self._final(finalists, answer)}
        named = {record_name(config): config for config in finalists}
        while (leader := _leader(ratios)) and len(ratios[leader]) < 2:
            answer = self._measured([{}, named[leader]], rounds=15, final=True)
            if answer["status"] == "ok":
                ratios[leader] += [ratio for config, ratio in self._final([{}, named[leader]], answer) if config]
            else:
                self._keep(named[leader], answer["status"], "final")
                del ratios[leader]
        self.progress.best, self.progress.best_config = statistics.median(ratios[leader]), named[leader]
        self._show("done")

    def _final(self, configs: Sequence[Config], answer: dict[str, Any]) -> list[tuple[Config, float]]:
        """Keep what configs took in turns, the first being the default; each with its ratio to that."""
        default, *_ = answer["times"]
        found = []
        for config, times in zip(configs, answer["times"], strict=True):
            ratio = statistics.median(a / b for a, b in zip(times, default, strict=True)) if config else 1.0
            self._keep(config, "ok", "final", times=times, ratio=ratio, clocks=answer["clocks"])
            found.append((config, ratio))
        return found

    def try_once(self, config: Config) -> float | None:
        """Compile, check and time one config."""
        return self.tried(config, self.compiled(config))

    def tried(self, config: Config, answer: dict[str, Any]) -> float | None:
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

    def compiled(self, config: Config) -> dict[str, Any]:
        """The answer of the next free process to a config."""
        return self.workers.pool.ask({**self.job, "do": "compile", "config": dict(config)}, self.workers.timeouts[0])

    def _measured(self, configs: Sequence[Config], rounds: int, final: bool = False) -> dict[str, Any]:
        """Check the last config, then time all in turns; the answer to the first job that fails."""
        begun = time.monotonic()
        timeout = self.workers.timeouts[1]
        with exclusively(self.device):
            check = {**self.job, "do": "check", "config": dict(configs[-1]), "seed": self.workers.seed}
            answer = {"status": "ok", "check": {}} if final else self.workers.bench.ask(check, timeout)
            if answer["status"] == "ok":
                timed = {**self.job, "do": "measure", "configs": list(map(dict, configs)), "rounds": rounds}
                timed |= {"seconds": 8.0 if final else 1.0, "clocks": final}
                answer = {**answer, **self.workers.bench.ask(timed, timeout * (len(configs) if final else 1))}
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

        self.workers.store.put(
            Observation(
                self.progress.key,
                dict(config),
                status,
                stage,
                self.workers.run_id,
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
        self.workers.watch(self.progress)


def _leader(ratios: Mapping[str, Sequence[float]]) -> str:
    """The name of the config that :func:`~attnc.autotune.winner.winner` would name; empty for the default."""
    medians = {name: statistics.median(found) for name, found in ratios.items()}
    return min(name for name, median in medians.items() if median <= min(medians.values()) * (1 + TIE))


def _load() -> float:
    """Processes that want a core, on average over a minute, for each core."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)
