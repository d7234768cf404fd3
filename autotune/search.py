"""Which config to try next: an Optuna study. It is scratch; what was observed is in the store."""

from __future__ import annotations

import itertools
import math
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from attnc.autotune.record import name_of
from attnc.backends.protocol import Choice, Config, Space
from attnc.errors import ArgumentError, TargetError

STARTUP = 12
"""Trials at random before a model is made of them; fewer where there are few in all."""
PATIENCE = 300
"""Suggestions in a row that bring nothing new, after which the space counts as searched."""
FAMILIAR = 8
"""The same, after which configs are drawn at random: a sampler may like a place of which everything was tried."""
DRAWS = 1000
"""How many are drawn at random for one that is new and may work."""
ATTEMPTS = 5
LARGE = 4096
"""Points of a space that is never searched exhaustively, whatever the budget."""


class _Exhaustive(optuna.samplers.BruteForceSampler):  # type: ignore[misc]
    """Leaves it to whoever asks when to stop."""

    def after_trial(self, study: optuna.Study, trial: Any, state: TrialState, values: Any) -> None:
        return


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A config to try; ``number`` is that of its trial."""

    config: Config
    number: int


class Search:
    """Asks a study for configs that are new and may work.

    Args:
        space: what can be chosen.
        name: of the study; processes with the same storage and name share their work.
        storage: a URL of a database, the path of a journal, or ``None`` for memory.
        budget: how many trials there may be; decides whether the space is searched exhaustively.
        seed: of the sampler.
    """

    def __init__(self, space: Space, name: str, storage: str | None, budget: int | None, seed: int | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self._distributions = {choice.name: _distribution(choice) for choice in space.choices}
        self._total = math.prod(len(choice.settings) for choice in space.choices)
        self.exhaustive = budget is not None and self._total <= LARGE and sum(1 for _ in feasible(space)) <= budget
        startup = STARTUP if budget is None else max(4, min(STARTUP, budget // 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: optuna.samplers.BaseSampler = (
                _Exhaustive(seed=seed)
                if self.exhaustive
                else optuna.samplers.TPESampler(
                    multivariate=True, constant_liar=True, seed=seed, n_startup_trials=startup
                )
            )
            self.study = optuna.create_study(
                storage=_storage(storage), study_name=name, sampler=sampler, direction="minimize", load_if_exists=True
            )
        self._told: dict[str, float | None] = {}
        self._names: dict[int, str] = {}
        self._random = random.Random(seed)

    def enqueue(self, config: Config) -> None:
        """Try ``config`` before others, unless it was tried."""
        if config and self.space.problem(config) is None:
            self.study.enqueue_trial(self._params(config), skip_if_exists=True)

    def tell_known(self, config: Config, ratio: float | None) -> None:
        """What was observed before this study: the ratio to the default, or ``None`` for a failure."""
        self._told[name_of(config)] = ratio
        if config and self.space.problem(config) is None and not self._seen(config):
            state = TrialState.COMPLETE if ratio is not None else TrialState.PRUNED
            self.study.add_trial(
                optuna.trial.create_trial(
                    params=self._params(config), distributions=self._distributions, value=ratio, state=state
                )
            )

    def ask(self) -> Suggestion | None:
        """A config that was not tried; ``None`` if none turns up."""
        for attempt in range(PATIENCE):
            if self.exhaustive and self._searched():
                break
            if attempt >= FAMILIAR and not self.exhaustive:
                self._enqueue_any()
            trial = self.study.ask(self._distributions)
            config = self._config(trial.params)
            name = self._name(trial.number, trial.params)
            if name not in self._told and self.space.problem(config) is None and not self._finished(name, trial.number):
                self._told[name] = None
                return Suggestion(config, trial.number)
            self._replay(trial, name)
        return None

    def _enqueue_any(self) -> None:
        """Have a config at random tried next that may work and that this process has not tried."""
        for _ in range(DRAWS):
            config = self.space.settled({x.name: self._random.choice(x.settings) for x in self.space.choices})
            if self.space.problem(config) is None and name_of(config) not in self._told:
                self.enqueue(config)
                return

    def tell(self, suggestion: Suggestion, ratio: float | None) -> None:
        """The time of a suggestion over that of the default; ``None`` if it failed."""
        self._told[name_of(suggestion.config)] = ratio
        if ratio is None:
            self.study.tell(suggestion.number, state=TrialState.PRUNED)
        else:
            self.study.tell(suggestion.number, ratio)

    def _replay(self, trial: optuna.Trial, name: str) -> None:
        """Answer a suggestion that cannot work, or was tried, without trying it."""
        ratio = self._told.get(name)
        for other in self._trials(TrialState.COMPLETE):
            if self._name(other.number, other.params) == name:
                ratio = other.value
        if ratio is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, ratio)

    def _finished(self, name: str, number: int) -> bool:
        """Whether this or another process has tried the config called ``name``, or is at it."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        before = (trial for trial in self._trials(*states) if trial.number < number)
        return any(self._name(trial.number, trial.params) == name for trial in before)

    def _searched(self) -> bool:
        """Whether every point of the space was suggested."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return len({tuple(sorted(trial.params.items())) for trial in self._trials(*states)}) == self._total

    def _seen(self, config: Config) -> bool:
        params = self._params(config)
        return any(trial.params == params for trial in self._trials(TrialState.COMPLETE, TrialState.PRUNED))

    def _trials(self, *states: TrialState) -> list[Any]:
        found: list[Any] = self.study.get_trials(deepcopy=False, states=states)
        return found

    def _params(self, config: Config) -> dict[str, Any]:
        """A config as Optuna has it: numbers as places in their order, so that near ones are near."""
        found: dict[str, Any] = {}
        for choice in self.space.choices:
            ordered = isinstance(self._distributions[choice.name], IntDistribution)
            setting = config[choice.name]
            found[choice.name] = choice.settings.index(setting) if ordered else setting
        return found

    def _config(self, params: dict[str, Any]) -> Config:
        found = {}
        for choice in self.space.choices:
            value = params[choice.name]
            found[choice.name] = choice.settings[value] if _is_ordered(choice) else value
        return self.space.settled(found)

    def _name(self, number: int, params: dict[str, Any]) -> str:
        """The config of a trial, by name; empty while another process has not said all of it."""
        if number not in self._names:
            if params.keys() != self._distributions.keys():
                return ""
            self._names[number] = name_of(self._config(params))
        return self._names[number]


def feasible(space: Space) -> Iterator[Config]:
    """Every config of a space that may work, the default not counted."""
    names = [choice.name for choice in space.choices]
    for settings in itertools.product(*(choice.settings for choice in space.choices)):
        config = dict(zip(names, settings, strict=True))
        if space.problem(config) is None:
            yield config


def _is_ordered(choice: Choice) -> bool:
    return all(isinstance(setting, int) for setting in choice.settings)


def _distribution(choice: Choice) -> BaseDistribution:
    return (
        IntDistribution(0, len(choice.settings) - 1)
        if _is_ordered(choice)
        else CategoricalDistribution(choice.settings)
    )


def _storage(where: str | None) -> Any:
    """A database by its URL, else a journal in a file that processes of one host share.

    Raises:
        ArgumentError: it is SQLite.
        TargetError: the database cannot be used.
    """
    if where is None:
        return None
    if "://" not in where:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(where))
    if where.startswith("sqlite"):
        raise ArgumentError("storage", "SQLite loses trials of parallel workers: use a path, PostgreSQL or MySQL")
    for attempt in itertools.count(1):
        try:
            return optuna.storages.RDBStorage(where)
        except Exception as error:
            # Of two processes that make the tables of an empty database at the same moment, one fails.
            if attempt == ATTEMPTS or ("UniqueViolation" not in str(error) and "already exists" not in str(error)):
                reason = str(error).split("\n")[0][:200]
                raise TargetError(f"the study's database cannot be used: {reason}", missing=True) from None
            time.sleep(0.5 * attempt)
    raise AssertionError("it worked, or failed for good")
