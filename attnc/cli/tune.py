"""``attnc tune``: search for the best configs of a spec on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from attnc.autotune.data import complete_sizes
from attnc.autotune.given import problem_of, read_call
from attnc.autotune.key import key_of
from attnc.autotune.lookup import find
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation
from attnc.autotune.store import Store
from attnc.backends.protocol import Workload
from attnc.bundle import default_inputs
from attnc.cli.compile import numbers_of, spec_of
from attnc.cli.console import Exit, err, fail, out, print_table
from attnc.errors import ArgumentError, TargetError
from attnc.jit import Checked, recall_spec
from attnc.spec import Constants
from attnc.targets import backend_for, parse_target

if TYPE_CHECKING:
    from attnc.autotune.run import Progress as State

USUAL = {"cpu": ["f32"], "cuda": ["bf16"], "hip": ["bf16"]}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of ``attnc tune`` that say what to tune."""

    spec: str
    constants: Constants
    target: str
    backend: str | None
    shapes: Sequence[str]
    dtypes: Sequence[str]
    gradients: Sequence[str]
    lse: bool
    deterministic: bool = False
    tensors: Path | None = None


def problems(wanted: Wanted) -> list[Problem]:
    """Every kernel to tune.

    Raises:
        ArgumentError: a shape cannot be read.
        TargetError: a kernel does not exist, or not for this machine.
    """
    checked = recall_spec(spec_of(wanted.spec, wanted.constants))
    target = parse_target(wanted.target)
    backend = backend_for(target, wanted.backend)
    calls = []
    for text in wanted.shapes or [""]:
        sizes, widths = sizes_of(text, checked)
        for dtype in wanted.dtypes or USUAL[target.kind]:
            workload = Workload(dtype, default_inputs(checked.program.inputs, dtype), wanted.lse)
            calls.append(Problem(checked, backend.name, target, "forward", (), widths, workload, sizes))
    if wanted.tensors is not None:
        if wanted.shapes or wanted.dtypes:
            raise ArgumentError("tensors", "--tensors says sizes and element types: leave --shapes and --dtype out")
        calls = [problem_of(read_call(wanted.tensors, checked.program), calls[0], wanted.tensors)]
    names = tuple(wanted.gradients)
    return [kernel for call in calls for kernel in (call, *(_of_training(call, names, wanted) if names else ()))]


def _of_training(call: Problem, names: tuple[str, ...], wanted: Wanted) -> Iterator[Problem]:
    """The kernels of a training step that its forward is not."""
    if call.training_saves(names):
        yield replace(call, wants=names)
    either = replace(call.workload, unordered=not wanted.deterministic)
    yield replace(call, direction="backward", wants=names, workload=either)


def sizes_of(text: str, checked: Checked) -> tuple[dict[str, int], tuple[int, int]]:
    """``B=1,H=8,N=4096,D=128`` as sizes and head widths; what is left out follows, or is usual."""
    return complete_sizes(numbers_of(text), checked.program)


def run(
    wanted: Wanted,
    store: Store,
    budget: str,
    storage: str | None,
    again: bool,
    missing: bool,
    cold: bool,
    jobs: int,
    page: Path | None,
) -> None:
    """Tune, show how it goes, and say what was found. Ctrl-C ends it and keeps what was measured.

    Raises:
        TargetError: Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise TargetError("`attnc tune` needs the package `optuna`: pip install 'attnc[tune]'", missing=True)
    from attnc.autotune.run import Failed
    from attnc.autotune.session import budget_of, tune, tuner
    from attnc.autotune.tuner import Budget

    try:
        spent = budget_of(budget)
    except ValueError as error:
        fail(str(error), Exit.USAGE)
    tasks = problems(wanted)
    rows: list[tuple[Problem, State | None, str]] = []
    interrupted = False
    seen: dict[str, State] = {}
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task("", state="", total=None)

        def watch(state: State) -> None:
            seen[title(state.problem)] = state
            bars.update(bar, completed=state.trials, state=_line(state))

        with tuner(store, watch, jobs or None) as made:
            for number, problem in enumerate(tasks, 1):
                bars.update(bar, description=f"{number}/{len(tasks)} {title(problem)}", total=spent.trials, completed=0)
                try:
                    left = Budget(seconds=0.0) if missing and _has(store, problem) else spent
                    rows.append((problem, tune(made, problem, left, storage, again and not missing, cold), ""))
                except (Failed, TargetError) as error:
                    rows.append((problem, None, str(error)))
                except KeyboardInterrupt:
                    rows.append((problem, seen.get(title(problem)), ""))
                    interrupted = True
                    break
    print_table(_table(rows))
    for problem, _, problem_text in rows:
        if problem_text:
            err.print(f"{title(problem)}: {problem_text}", markup=False)
    out.print(f"in {store.root}", markup=False)
    if page is not None:
        plot(wanted, store, page)
    if interrupted:
        fail("interrupted; what was measured is kept", Exit.INTERRUPTED)
    if any(text for *_, text in rows):
        fail("not everything could be tuned", Exit.TARGET)


def plot(wanted: Wanted, store: Store, path: Path) -> None:
    """Write a page about what a store holds of these kernels."""
    from attnc.autotune.plot import Tuned, page

    def known(problem: Problem) -> list[Observation]:
        return [x for x in store.records(key_of(problem.request()).digest) if isinstance(x, Observation)]

    path.write_text(page(Tuned(title(x), known(x)) for x in problems(wanted)), encoding="utf-8")
    out.print(f"wrote {path}", markup=False)


def require(wanted: Wanted) -> None:
    """Fail unless everything was tuned."""
    absent = []
    for problem in problems(wanted):
        request = problem.request()
        if find(request, key_of(request)) is None:
            absent.append(title(problem))
    if absent:
        fail(f"nothing tuned for {'; '.join(absent)}: run the same without --require-hit", Exit.TARGET)
    out.print("everything is tuned")


def title(problem: Problem) -> str:
    """A problem in a line."""
    d, e = problem.widths
    sizes = problem.sizes
    shape = "x".join(str(sizes[name]) for name in "BHGMN")
    saving = " that saves" if problem.wants and problem.direction == "forward" else ""
    return f"{problem.program.name} {problem.direction}{saving} {problem.workload.dtype} {shape} D{d}" + (
        f":{e}" if e != d else ""
    )


def _has(store: Store, problem: Problem) -> bool:
    from attnc.autotune.session import is_tuned, observations

    return is_tuned(observations(store, key_of(problem.request())))


def _line(state: State) -> str:
    best = f"best {1 / state.best:.2f}x the default" if state.default_us else ""
    return f"{state.trials} tried, {state.rejected} rejected, {state.failed} failed, {best} {state.doing}"


def _table(rows: Sequence[tuple[Problem, State | None, str]]) -> Table:
    table = Table(
        "what", "default µs", "speed-up", "config", "trials", "rejected", "failed", "compile s", "measure s", box=None
    )
    for problem, state, text in rows:
        if state is None:
            table.add_row(title(problem), "", "", text[:40] or "tuned before", "0")
            continue
        counts = map(str, (state.trials, state.rejected, state.failed))
        spent = f"{state.compiling:.1f}", f"{state.measuring:.1f}"
        faster = f"{1 / state.best:.3f}"
        table.add_row(
            title(problem), f"{state.default_us or 0:.1f}", faster, " ".join(_settings(state)), *counts, *spent
        )
    return table


def _settings(state: State) -> Iterator[str]:
    if not state.best_config:
        yield "default"
    for name, setting in state.best_config.items():
        yield f"{name}={setting}"
