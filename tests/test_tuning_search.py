"""The search and its workers: what is slow, wrong or dangerous never wins and never ends a run."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_backend

from attnc import targets
from attnc.autotune import session
from attnc.autotune.key import key_of
from attnc.autotune.pool import Pool, Worker, exclusively
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation, name_of
from attnc.autotune.run import Failed, Progress, Run
from attnc.autotune.search import Search, feasible
from attnc.autotune.store import Store
from attnc.autotune.tuner import Budget, Tuner
from attnc.autotune.winner import winner
from attnc.backends.protocol import Choice, Config, Space, Target, Workload
from attnc.errors import ArgumentError, TargetError
from attnc.grammar.source import Source
from attnc.jit import recall_spec
from attnc.spec import Spec

SIZES = {"B": 1, "H": 1, "G": 1, "M": 110, "N": 120}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(targets.BACKENDS, "toy", toy_backend.ToyBackend)
    monkeypatch.setattr(targets, "_made", {})
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))


def problem(text: str = "mask causal") -> Problem:
    checked = recall_spec(Spec(Source("<test>", f"attention toy {{ {text} }}")))
    return Problem(checked, "toy", Target("cpu"), "forward", (), (16, 16), Workload("f32", (), False), SIZES)


@pytest.fixture
def tuner(toy: None, tmp_path: Path) -> Iterator[Tuner]:
    made = Tuner(
        Store(tmp_path / "store"),
        str(tmp_path / "scratch"),
        2,
        toy_backend.worker_command(),
        timeouts=(8.0, 8.0),
        seed=1,
    )
    yield made
    made.close()


def observed(tuner: Tuner, what: Problem) -> list[Observation]:
    return session.observations(tuner.store, key_of(what.request()))


@pytest.mark.slow
def test_nothing_slow_wrong_or_dangerous_wins(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    what = problem()
    found = session.tune(tuner, what, Budget(trials=100))
    assert found is not None
    assert found.best_config["way"] == "good"
    assert found.best < 0.9
    statuses = {(one.config.get("way"), one.status) for one in observed(tuner, what)}
    expected = {
        "wrong": "wrong",
        "wrong_later": "wrong",
        "outside": "wrong",
        "hang": "timeout",
        "crash": "crash",
        "refused": "compile_error",
        "broken": "compile_error",
        "hang_early": "timeout",
    }
    assert {pair for pair in statuses if pair[0] in expected} == set(expected.items())
    space = what.request().space()
    assert winner(observed(tuner, what), space) == found.best_config
    assert {one.config.get("size") for one in observed(tuner, what)} <= {None, 1, 2}  # not what paper excludes
    assert any(not one.config and one.stage == "final" for one in observed(tuner, what))

    # A second run over a warm store does no trial; the budget is spent, exhaustively.
    before = observed(tuner, what)
    for budget in (Budget(trials=100), Budget(trials=5), Budget(seconds=60)):
        assert session.tune(tuner, what, budget) is None
    assert observed(tuner, what) == before

    # Another spec begins with what was best here.
    monkeypatch.setenv("TOY_WAYS", "usual slow good")
    other = problem("mask i == j")
    assert session.tune(tuner, other, Budget(trials=1)) is not None
    tried = [one.config for one in observed(tuner, other) if one.config and one.stage == "screen"]
    assert [config["way"] for config in tried] == ["good"]


class Answers:
    """A process that measures: given times, in order, and then none."""

    def __init__(self, *times: list[float]) -> None:
        self.times = list(times)

    def ask(self, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        found = [[x] * 3 for x in self.times.pop(0)]
        assert len(found) == len(job["configs"])
        return {"status": "ok", "times": found, "clocks": {}}

    def close(self) -> None:
        pass


def test_what_leads_by_luck_does_not_win(tuner: Tuner) -> None:
    """The leader is measured again, and if it falls behind, the next one."""
    what = problem()
    lucky, good, slow = ({"way": way, "size": 1} for way in ("fast", "good", "slow"))
    tuner.bench = Answers([10.0, 7.0, 8.0, 12.0], [10.0, 13.0], [10.0, 8.4])  # type: ignore[assignment]
    run = Run(tuner, what, Progress(what, key_of(what.request())))
    run.finish([lucky, good, slow])
    assert run.progress.best_config == good
    assert run.progress.best == pytest.approx(0.82)
    assert winner(observed(tuner, what)) == good
    tuner.bench = Answers([10.0, 8.0], [10.0, 14.0])  # type: ignore[assignment]
    other = problem("mask i == j")
    run = Run(tuner, other, Progress(other, key_of(other.request())))
    run.finish([lucky])
    assert (run.progress.best_config, run.progress.best) == ({}, 1.0)
    assert winner(observed(tuner, other)) == {}


@pytest.mark.slow
def test_a_default_that_fails_is_said(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DEFAULT", "wrong")
    tuner.pool, tuner.bench = Pool(1, toy_backend.worker_command()), Worker(toy_backend.worker_command())
    with pytest.raises(Failed, match="fails: wrong"):
        session.tune(tuner, problem(), Budget(trials=1))
    assert not observed(tuner, problem())


def test_interruption_keeps_what_was_measured(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_WAYS", "usual slow good")

    def watch(progress: Progress) -> None:
        if progress.trials == 2 and progress.doing == "":
            raise KeyboardInterrupt

    tuner.watch = watch
    with pytest.raises(KeyboardInterrupt):
        session.tune(tuner, problem(), Budget(trials=100), cold=True)
    kept = observed(tuner, problem())
    assert sum(one.stage == "screen" for one in kept) == 2
    assert any(one.stage == "final" and not one.config for one in kept)


def numbers(*names: str) -> Space:
    return Space(
        tuple(Choice(name, tuple(2**x for x in range(6))) for name in names),
        dict.fromkeys(names, 1),
        lambda config: "too large" if config[names[0]] == 32 else None,
    )


def test_small_spaces_are_searched_whole() -> None:
    space = numbers("a", "b")
    search = Search(space, "t", None, 30, 0)
    asked = []
    while suggestion := search.ask():
        asked.append(suggestion.config)
        search.tell(suggestion, None if len(asked) % 3 else 1.0)
    assert sorted(map(str, asked)) == sorted(map(str, feasible(space)))


def test_configs_that_make_the_same_kernel_are_tried_once() -> None:
    def settled(config: Config) -> Config:
        return {**config, "b": 1} if config["a"] == 1 else config

    space = replace(numbers("a", "b"), excluded=lambda config: None, settled=settled)
    assert space.problem({"a": 1, "b": 4}) == "it says the same as {'a': 1, 'b': 1}"
    for budget in (36, 20):  # the whole space, a part of it
        search = Search(space, "t", None, budget, 0)
        asked = []
        while len(asked) < budget and (suggestion := search.ask()):
            asked.append(suggestion.config)
            search.tell(suggestion, float(suggestion.config["a"]))
        assert all(space.problem(config) is None for config in asked)
        assert len({str(config) for config in asked}) == len(asked) == (31 if budget == 36 else 20)


def test_a_sampler_that_likes_a_place_does_not_end_the_search() -> None:
    """Of a region of which everything was tried no time is wasted; the rest is drawn from at random."""
    space = numbers("a", "b", "c")
    search = Search(space, "t", None, None, 0)
    for count in range(100):
        suggestion = search.ask()
        assert suggestion is not None, count
        near = suggestion.config == {"a": 1, "b": 1, "c": suggestion.config["c"]}
        search.tell(suggestion, 0.1 if near else 1.0)


def test_large_spaces_are_searched_where_it_pays() -> None:
    space = numbers("a", "b", "c", "d")

    def ratio(config: object) -> float:
        return 0.5 + sum((value.bit_length() - 4) ** 2 for value in config.values()) / 40  # type: ignore[attr-defined]

    search = Search(space, "t", None, 80, 0)
    seen = []
    for _ in range(80):
        suggestion = search.ask()
        assert suggestion is not None
        assert space.problem(suggestion.config) is None
        assert suggestion.config not in seen
        seen.append(suggestion.config)
        search.tell(suggestion, ratio(suggestion.config))
    everything = sorted(map(ratio, feasible(space)))
    assert min(map(ratio, seen)) <= everything[len(everything) // 100]


def test_known_configs_are_not_tried_again_and_seeds_come_first() -> None:
    space = numbers("a", "b")
    search = Search(space, "t", None, None, 0)
    search.tell_known({"a": 4, "b": 4}, 0.9)
    search.tell_known({"a": 8, "b": 4}, None)
    search.enqueue({"a": 2, "b": 2})
    search.enqueue({"a": 32, "b": 2})  # excluded
    asked = []
    for _ in range(20):
        suggestion = search.ask()
        assert suggestion is not None
        asked.append(suggestion.config)
        search.tell(suggestion, 1.0)
    assert asked[0] == {"a": 2, "b": 2}
    assert {"a": 4, "b": 4} not in asked
    assert {"a": 8, "b": 4} not in asked


SHARE = """
import sys, time
from attnc.autotune.search import Search
from test_tuning_search import numbers
search = Search(numbers("a", "b"), "shared", sys.argv[1], 30, int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
while suggestion := search.ask():
    print(sorted(suggestion.config.items()), flush=True)
    if len(sys.argv) > 3:
        break  # dies in the middle of a trial
    time.sleep(0.1)
    search.tell(suggestion, 1.0)
"""


def share(storage: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", SHARE, storage, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def asked(running: Sequence[subprocess.Popen[str]]) -> list[list[str]]:
    """What processes tried that began at the same moment."""
    for one in running:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    return [one.communicate(timeout=300)[0].splitlines() for one in running]


def check_sharing(storage: str) -> None:
    """Three processes; one dies with a trial in its hands, the others do all the rest, each once."""
    (lost,) = asked([share(storage, "0", "die")])
    first, second = asked([share(storage, "1"), share(storage, "2")])
    everything = sorted(str(sorted(config.items())) for config in feasible(numbers("a", "b")))
    assert sorted(set(first + second + lost)) == everything
    assert len(first) + len(second) <= len(everything) + 2  # both may begin one at the same moment
    assert len(first) > 3
    assert len(second) > 3


TUNE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import toy_backend
from attnc import targets
from attnc.autotune import session
from attnc.autotune.store import Store
from attnc.autotune.tuner import Budget, Tuner
from test_tuning_search import problem
targets.BACKENDS["toy"] = toy_backend.ToyBackend
where = Path(sys.argv[2])
made = Tuner(Store(where / "store"), str(where / "scratch"), 1, toy_backend.worker_command(), timeouts=(30.0, 30.0))
print("ready", flush=True)
sys.stdin.readline()
session.tune(made, problem(), Budget(trials=100), sys.argv[1], cold=True)
made.close()
"""


def check_tuners(storage: str, folder: Path) -> None:
    """Two tuners on one study: together they try everything, hardly anything twice, and each knows a winner."""
    environment = {
        **os.environ,
        "TOY_WAYS": "usual good slow a b c d e",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "ATTNC_CACHE_DIR": str(folder / "cache"),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TUNE, storage, str(folder / name), str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in ("one", "two")
    ]
    asked(running)
    assert [one.returncode for one in running] == [0, 0]
    stores = [Store(folder / name / "store") for name in ("one", "two")]
    tried = [
        [name_of(x.config) for x in store.all() if isinstance(x, Observation) and x.config and x.stage == "screen"]
        for store in stores
    ]
    space = toy_backend.ToyBackend().space(None, None, None, {})  # type: ignore[arg-type]
    assert set(tried[0] + tried[1]) == {name_of(config) for config in feasible(space)} - {name_of(space.default)}
    assert len(tried[0]) + len(tried[1]) <= len(set(tried[0] + tried[1])) + 2  # both may begin one at one moment
    assert min(map(len, tried)) >= 2
    assert all(winner(store.all(), space) for store in stores)
    both = Store(folder / "both")
    assert [both.merge(store.all()) for store in stores][1] > 0
    assert winner(both.all(), space)["way"] not in ("usual", "slow")  # type: ignore[index]


@pytest.mark.slow
def test_processes_share_a_journal(tmp_path: Path) -> None:
    check_sharing(str(tmp_path / "journal"))


@pytest.mark.slow
def test_tuners_share_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_WAYS", "usual good slow a b c d e")
    check_tuners(str(tmp_path / "journal"), tmp_path)


def test_a_study_that_cannot_be_is_told() -> None:
    with pytest.raises(ArgumentError, match="SQLite"):
        Search(numbers("a"), "t", "sqlite:///x.db", None, 0)
    for url in ("postgresql+psycopg://nobody@127.0.0.1:9/none", "nothing://x"):
        with pytest.raises(TargetError, match="database cannot be used"):
            Search(numbers("a"), "t", url, None, 0)


def test_one_process_measures_on_a_device() -> None:
    program = """
import sys, time
from attnc.autotune.pool import exclusively
with exclusively("test"):
    print(time.monotonic(), flush=True)
    time.sleep(0.3)
    print(time.monotonic(), flush=True)
"""
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    spans = sorted(tuple(map(float, one.communicate(timeout=120)[0].split())) for one in running)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    with exclusively("test"):
        pass


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    program = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    if "hang" in line:
        time.sleep(99)
    print('{"status": "ok"}', flush=True)
"""
    worker = Worker((sys.executable, "-c", program))
    assert worker.ask({"do": "x"}, 20.0)["status"] == "ok"
    begun = time.monotonic()
    assert worker.ask({"do": "hang"}, 0.5)["status"] == "timeout"
    assert time.monotonic() - begun < 10
    assert worker.ask({"do": "x"}, 20.0)["status"] == "ok"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(KeyboardInterrupt):
        worker.ask({"do": "hang"}, 20.0)
    signal.signal(signal.SIGALRM, old)
    assert worker.ask({"do": "x"}, 20.0) == {"status": "ok"}  # not the answer to what was interrupted
    worker.close()
    dying = Worker((sys.executable, "-c", "import os; os.abort()"))
    assert dying.ask({}, 20.0) == {"status": "crash", "message": "the process ended with signal SIGABRT"}
    speaking = Worker((sys.executable, "-c", "raise SystemExit('no such thing')"))
    assert speaking.ask({}, 20.0)["message"] == "the process ended with code 1: no such thing"


def test_a_worker_imports_nothing_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attnc").mkdir()
    (tmp_path / "attnc" / "__init__.py").write_text("raise SystemExit('another attnc')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    worker = Worker()
    assert worker.ask({"no": "job"}, 60.0)["message"] == "the process ended with code 1: KeyError: 'problem'"
    worker.close()
