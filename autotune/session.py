"""A tuning run over many problems: what is known already, where a search begins, and the run that a call may start."""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from attnc import cache
from attnc.autotune.key import Key, key_of
from attnc.autotune.lookup import cached, find
from attnc.autotune.nearby import nearby
from attnc.autotune.places import everything, user_store
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation, name_of
from attnc.autotune.request import Request
from attnc.autotune.run import Failed, Progress, Watch
from attnc.autotune.search import LARGE, Search, feasible
from attnc.autotune.store import Store
from attnc.autotune.tuner import Budget, Tuner
from attnc.backends.protocol import Config, Space
from attnc.errors import TargetError

SEEDS = 4
"""Configs of other keys that are tried first."""
_log = logging.getLogger("attnc")
_busy = threading.Lock()


def observations(store: Store, key: Key) -> list[Observation]:
    """What a store holds of a key, pins left out."""
    return [one for one in store.records(key.digest) if isinstance(one, Observation)]


def is_tuned(known: Iterable[Observation]) -> bool:
    """Whether a run over a key came to its end."""
    return any(one.stage == "final" and one.status == "ok" for one in known)


def is_searched(space: Space, known: Iterable[Observation]) -> bool:
    """Whether every config of a small space was tried."""
    if math.prod(len(choice.settings) for choice in space.choices) > LARGE:
        return False
    tried = {name_of(one.config) for one in known} | {name_of(space.default)}
    return all(name_of(config) in tried for config in feasible(space))


def remaining(budget: Budget, known: Sequence[Observation], again: bool) -> Budget:
    """What is left of a budget: trials that are stored count, and seconds were all spent by a run that ended."""
    if again or not known:
        return budget
    if budget.trials is not None:
        tried = {name_of(one.config) for one in known if one.config and one.stage == "screen"}
        return Budget(trials=max(0, budget.trials - len(tried)))
    return Budget(seconds=0.0) if is_tuned(known) else budget


@contextmanager
def tuner(store: Store, watch: Watch = lambda progress: None, compilers: int | None = None) -> Iterator[Tuner]:
    """A tuner with scratch memory on disk, which is gone afterwards."""
    cache.folder().mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".tuning-", dir=cache.folder())
    made = Tuner(store, scratch, compilers, watch=watch)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(scratch, ignore_errors=True)


def tune(
    made: Tuner, problem: Problem, budget: Budget, storage: str | None = None, again: bool = False, cold: bool = False
) -> Progress | None:
    """Tune one problem, unless what is stored has used the budget up.

    Args:
        made: the workers.
        problem: what to tune.
        budget: trials or seconds.
        storage: a URL or path that processes share; each key is a study in it.
        again: spend the budget on top of what is stored.
        cold: begin without seeds.

    Returns:
        What was done; ``None`` if nothing had to be.
    """
    request = problem.request()
    key, space = key_of(request), request.space()
    known = observations(made.store, key)
    left = remaining(budget, known, again)
    finished = left.trials == 0 or left.seconds == 0.0 or is_searched(space, known)
    if not space.choices or (is_tuned(known) and finished):
        return None
    search = Search(space, f"attnc-{key.digest}", storage, left.trials, made.seed)
    if not cold:
        for config, _ in itertools.islice(nearby(key, space, everything(made.store)), SEEDS):
            search.enqueue(config)
    return made.tune(problem, search, left, known)


def rerun(made: Tuner, problem: Problem) -> Progress | None:
    """Check and measure the winner of a problem once more; ``None`` if there is none."""
    request = problem.request()
    found = find(request, key_of(request), [made.store.root])
    return made.measure_again(problem, found[1]) if found else None


def tune_now(request: Request) -> Config:
    """A chooser that tunes what is not tuned, for ``ATTNC_TUNE_BUDGET`` (a number of trials, or ``30s``), in the call.

    What goes wrong in tuning is a warning; the call goes on with the default.
    """
    if not request.sizes:
        return {}
    with _busy:
        try:
            if find(request, key_of(request)) is None:
                with tuner(user_store()) as made:
                    tune(made, Problem.of(request), budget_of(os.environ.get("ATTNC_TUNE_BUDGET", "30s")))
        except (Failed, TargetError, OSError, ValueError) as error:
            _log.warning("attnc could not tune `%s`: %s", request.program.name, error)
    return cached(request)


def budget_of(text: str) -> Budget:
    """``60s`` or ``200``.

    Raises:
        ValueError: it is neither.
    """
    number = text.removesuffix("s")
    if not number.isdigit() or int(number) == 0:
        raise ValueError(f"a budget is a number of trials (200) or of seconds (60s), found `{text}`")
    return Budget(seconds=float(number)) if text.endswith("s") else Budget(trials=int(number))
