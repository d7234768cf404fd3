"""What tuning finds on this machine: tuned beside default, searches beside a whole space, seeds beside a cold start.

One run writes three files into the folder ``--out``, anew after every figure: ``records.jsonl`` (final measurements,
for ``attnc_tuned/``), ``tuning.json`` and ``tuning.md``. It begins nothing new when ``--seconds`` are nearly over, and
what fails is a line that says so. The parts, in order: ``table`` (softmax, sigmoid, ALiBi with a window, documents;
forward and backward, the middle size first), ``survey`` (spaces measured whole), ``specs`` (forwards of other specs).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import record
import survey as surveys
import torch
from tuning_report import Results

from attnc.autotune import session
from attnc.autotune.key import key_of
from attnc.autotune.pool import COMMAND, Pool
from attnc.autotune.problem import Problem
from attnc.autotune.record import name_of
from attnc.autotune.search import feasible
from attnc.autotune.store import Store
from attnc.autotune.tuner import Budget, Tuner
from attnc.autotune.winner import winner
from attnc.backends.protocol import Choice, Config, Space
from attnc.cli.tune import Wanted, problems

SPECS = Path(__file__).resolve().parent.parent / "specs"
WINDOWED = """attention alibi_window {
    input slope: real[H]
    mask  causal and i - j < 1024
    score dot(q, k) * scale - slope[h] * (i - j)
}
"""
CASES = ("causal.attn", "sigmoid.attn", "alibi_window.attn", "documents.attn:causal_document")
OTHERS = (
    "full.attn", "alibi.attn", "mistral.attn", "softmax1.attn", "rope.attn", "gpt_oss.attn:local",
    "gpt_oss.attn:global", "gemma2.attn:local", "streaming_llm.attn", "qk_norm.attn", "t5.attn:decoder", "retnet.attn",
)  # fmt: skip
SMALL = {"vectors": (1, 2, 4), "block": (6, 8, 12, 14), "groups": (1, 2, 4), "keys": (64, 96)}
"""The part of a CPU's space that is measured whole."""


Cell: TypeAlias = tuple[str, int, int, str]
"""A spec, a head width, a number of keys, and which kernel: ``forward``, ``saving`` or ``backward``."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is run where.

    Attributes:
        shapes: by number of keys, batch and heads; the first is tuned cold and for all specs, the others with seeds.
        at_once: problems that are tuned at the same time; measuring is one at a time in any case.
        trials: of a cold search and of one with seeds, for each kernel.
        surveyed: specs, head width and numbers of keys of the spaces that are measured whole.
    """

    target: str
    dtype: str
    shapes: dict[int, tuple[int, int]]
    at_once: int
    trials: tuple[int, int]
    rounds: int
    surveyed: tuple[tuple[str, int, int], ...]


MACHINES = {
    "cuda": Machine(
        "cuda", "bf16", {4096: (2, 16), 32768: (1, 16), 1024: (2, 16), 16384: (1, 16)}, 5, (16, 6), 7,
        (("causal.attn", 64, 4096), ("sigmoid.attn", 64, 4096), ("causal.attn", 64, 16384)),
    ),
    "cpu": Machine(
        "cpu", "f32", {1024: (1, 8), 4096: (1, 8), 32768: (1, 1)}, 1, (4, 3), 5,
        (("causal.attn", 64, 1024), ("sigmoid.attn", 64, 1024), ("causal.attn", 64, 256)),
    ),
}  # fmt: skip


def problem_for(machine: Machine, folder: Path, spec: str, width: int, keys: int, kind: str) -> Problem:
    """The kernel of a spec at a size; ``kind`` is ``forward``, ``saving`` (the forward of training) or ``backward``."""
    batch, heads = machine.shapes.get(keys, (1, 8))
    path = folder / spec if (folder / spec).exists() else SPECS / spec
    shape = f"B={batch},H={heads},N={keys},D={width}"
    gradients = () if kind == "forward" else ("q", "k", "v")
    found = problems(Wanted(str(path), {}, machine.target, None, [shape], [machine.dtype], gradients, False))
    if kind == "saving" and len(found) < 3:
        raise LookupError("training has no forward of its own")
    return found[{"forward": 0, "saving": 1, "backward": -1}[kind]]


def tune_one(results: Results, made: Tuner, machine: Machine, folder: Path, cell: Cell, cold: bool) -> None:
    """Tune a kernel, measure the winner once more against the default, and keep a row."""
    what, kind = " ".join(map(str, cell)), cell[3]
    begun = time.monotonic()
    try:
        problem = problem_for(machine, folder, *cell)
        sizes, spec = problem.sizes, problem.program.name
        what = f"{spec} {kind} D={problem.widths[0]} N={sizes['N']}"
        done = session.tune(made, problem, Budget(trials=machine.trials[not cold]), cold=cold)
        if done is None:
            return
        request = problem.request()
        config = winner(results.store.records(key_of(request).digest), request.space()) or {}
        again = (
            surveys.ratios(made, problem, [config], 3 * machine.rounds, results.left).get(name_of(config))
            if config
            else 1.0
        )
        faster = 1 / done.best if config else 1.0
        row = {
            "what": what, "spec": spec, "kind": kind, "D": problem.widths[0], "sizes": dict(sizes), "cold": cold,
            "default_us": round(done.default_us or 0.0, 1), "speedup": round(faster, 4),
            "again": again and round(1 / again, 4), "config": name_of(config), "trials": done.trials,
            "rejected": done.rejected, "failed": done.failed, "compile_core_s": round(done.compiling, 1),
            "measure_s": round(done.measuring, 1), "wall_s": round(time.monotonic() - begun, 1),
        }  # fmt: skip
        results.add(row)
    except Exception as error:  # a figure less, and on
        results.fail(what, error)


def cells_of(machine: Machine) -> list[Cell]:
    """The table of the four cases, the most telling first."""
    return [
        (spec, width, n, kind)
        for n in machine.shapes
        for kind in ("forward", "backward")
        for width in (64, 128)
        for spec in CASES
        if not (machine.target == "cpu" and n > 8192 and (kind == "backward" or spec in CASES[:2]))
    ]


def tune_all(
    results: Results, made: Tuner, machine: Machine, folder: Path, cells: deque[Cell], cold: bool, reserve: float
) -> None:
    """Tune cells, several at once, as long as there is time for one more; those that are left stay in ``cells``."""
    longest = 25.0 if machine.target == "cuda" else 15.0

    def work() -> None:
        while cells and results.left(reserve) > longest:
            try:
                cell = cells.popleft()
            except IndexError:  # another thread took the last one
                return
            tune_one(results, made, machine, folder, cell, cold)

    with ThreadPoolExecutor(machine.at_once) as threads:
        for one in [threads.submit(work) for _ in range(machine.at_once)]:
            one.result()


def space_of(machine: Machine, problem: Problem) -> Space:
    """The space that is measured whole: on a CPU a part of it, because there compiling takes what measuring leaves."""
    whole = problem.request().space()
    if machine.target != "cpu":
        return whole
    choices = tuple(Choice(x.name, tuple(s for s in x.settings if s in SMALL[x.name])) for x in whole.choices)
    inside = {x.name: s if (s := whole.default[x.name]) in x.settings else x.settings[-1] for x in choices}
    return replace(whole, choices=choices, default=inside)


class Compiling:
    """Spaces being compiled in processes of their own, from now on, beside whatever else happens."""

    def __init__(self, results: Results, machine: Machine, folder: Path, pool: Pool, jobs: int) -> None:
        self.results, self.pool = results, pool
        self.threads = ThreadPoolExecutor(jobs)
        self.surveys: list[surveys.Survey] = []
        self.waiting: list[list[Any]] = []
        seen: dict[str, list[Any]] = {}
        for spec, width, keys in machine.surveyed:
            problem = problem_for(machine, folder, spec, width, keys, "forward")
            survey = surveys.Survey(problem, space_of(machine, problem))
            if f"{spec} {width}" not in seen:  # the same kernels serve all sizes
                seen[f"{spec} {width}"] = [
                    (config, self.threads.submit(self._compile, survey, config)) for config in feasible(survey.space)
                ]
            self.surveys.append(survey)
            self.waiting.append(seen[f"{spec} {width}"])

    def _compile(self, survey: surveys.Survey, config: Config) -> bool:
        job = {"problem": survey.problem.to_json(), "do": "compile", "config": dict(config)}
        answer = self.pool.ask(job, 90.0)
        survey.compiling += answer.get("seconds", 0.0)
        return answer["status"] == "ok" and not answer["rejected"]

    def compiled(self, number: int, until: Callable[[], float]) -> tuple[list[Config], bool]:
        """What was compiled and not rejected, and whether it was everything."""
        found = []
        for config, future in self.waiting[number]:
            try:
                if future.result(timeout=max(0.0, until())):
                    found.append(config)
            except TimeoutError:
                return found, False
        return found, True

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.pool.close()


def survey(
    results: Results, made: Tuner, machine: Machine, compiling: Compiling, reserve: float
) -> dict[str, surveys.Survey]:
    """Measure whole spaces; those that there was time for, by name."""
    done: dict[str, surveys.Survey] = {}
    for number, one in enumerate(compiling.surveys):
        name = f"{one.problem.program.name} D={one.problem.widths[0]} N={one.problem.sizes['N']}"
        try:
            found, whole = compiling.compiled(number, lambda: results.left(reserve + 20))
            for config, _ in compiling.waiting[number]:
                one.first.setdefault(name_of(config), None)
            if not found or not surveys.measure(one, made, found, lambda: results.left(reserve), machine.rounds):
                results.say(f"survey of {name}: not enough time ({len(found)} compiled)")
                continue
            done[name] = one
            results.surveys[name] = {"first": one.first, "second": one.second}
            results.write()
            results.say(f"survey of {name}: {len(found)} configs measured in {one.measuring:.0f} s, best {one.best()}")
            if not whole:
                results.failures.append(f"survey of {name}: not everything was compiled in time")
        except Exception as error:
            results.fail(f"survey of {name}", error)
    return done


def replay(results: Results, done: dict[str, surveys.Survey]) -> None:
    """Searches on what was measured: nothing but arithmetic, so it comes last."""
    for name, one in done.items():
        try:
            others = {f"seeds of {other}": x for other, x in done.items() if other != name}
            results.surveys[name] = surveys.summary(one, others)
            results.write()
            results.say(f"{name}: a tenth of the trials finds {results.surveys[name]['a_tenth']}")
        except Exception as error:
            results.fail(f"replays of {name}", error)


def run(target: str, out: Path, seconds: float, jobs: int, only: Sequence[str], command: Sequence[str]) -> Results:
    """Everything, in order of importance, as far as the time goes."""
    machine = MACHINES[target]
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attnc-tuning-") as temporary:
        folder = Path(temporary)
        (folder / "alibi_window.attn").write_text(WINDOWED)
        device = torch.device(target)
        results = Results(out, Store(folder / "store"), record.environment(device), begun + seconds, begun=begun)
        beside = max(1, jobs // 2) if target != "cpu" and "survey" in only else 0
        made = Tuner(
            results.store,
            str(folder),
            max(1, jobs - beside),
            command,
            timeouts=(90.0, 45.0 if target == "cpu" else 20.0),
            seed=1,
        )
        pool = Pool(beside, command, {"ATTNC_CACHE_DIR": str(folder)}) if beside else made.pool
        try:
            compiling = (
                Compiling(results, machine, folder, pool, beside or jobs) if "survey" in only and beside else None
            )
            first = next(iter(machine.shapes))
            done: dict[str, surveys.Survey] = {}
            alone, last = len(only) == 1, 0.1 * seconds if "survey" in only else 0.0
            cells = cells_of(machine) if "table" in only else []
            cold, warm = (deque(x for x in cells if (x[2] == first) == begins) for begins in (True, False))
            tune_all(results, made, machine, folder, cold, True, last if alone else 0.5 * seconds)
            if "survey" in only:
                compiling = compiling or Compiling(results, machine, folder, pool, jobs)
                done = survey(results, made, machine, compiling, last if alone else 0.25 * seconds)
                compiling.close()
            tune_all(results, made, machine, folder, cold, True, last)
            tune_all(results, made, machine, folder, warm, False, last)
            if "specs" in only:
                rest: deque[Cell] = deque((x, w, first, "saving") for w in (64, 128) for x in CASES)
                rest.extend((x, w, first, "forward") for w in (64, 128) for x in OTHERS)
                tune_all(results, made, machine, folder, rest, False, last)
            replay(results, done)
        finally:
            made.close()
            pool.close()
            results.write()
    results.say(f"{len(results.rows)} rows, {len(results.failures)} failures, in {out}")
    return results


def main() -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=sorted(MACHINES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for three files")
    parser.add_argument("--seconds", type=float, default=330.0)
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) - (2 if (os.cpu_count() or 2) > 2 else 0))
    )
    parser.add_argument("--only", nargs="+", choices=("table", "survey", "specs"), default=["table", "survey", "specs"])
    given = parser.parse_args()
    run(given.target, given.out, given.seconds, given.jobs, given.only, COMMAND)


if __name__ == "__main__":
    main()
