"""From what was tuned to the kernel of a call: `attnc.load(..., tune=...)`, buckets, and where results are found."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_backend import FakeBackend, installed
from tuning_cases import observation

import attnc
from attnc.autotune import lookup, places, session
from attnc.autotune.bundle import write_bundle
from attnc.autotune.hardware import name_of
from attnc.autotune.key import Key, key_of
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation, Pin
from attnc.autotune.store import Store
from attnc.backends.protocol import Target, Workload
from attnc.grammar.source import Source
from attnc.jit import recall_spec
from attnc.spec import Spec

TEXT = "attention one { mask causal }"
FAST = {"tile": 64, "way": "down"}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    with installed(monkeypatch, tmp_path / "cache") as made:
        yield made


def problem(n: int = 100, text: str = TEXT, **changes: Any) -> Problem:
    fields: dict[str, Any] = {"direction": "forward", "wants": (), "workload": Workload("f32", (), False)}
    fields |= changes
    checked = recall_spec(Spec(Source("<test>", text)))
    sizes = {"B": 1, "H": 2, "G": 2, "M": n, "N": n}
    return Problem(
        checked, "fake", Target("cpu"), fields["direction"], fields["wants"], (8, 8), fields["workload"], sizes
    )


def records(of: Problem | Key, config: Mapping[str, Any] = FAST, ratio: float = 0.5) -> list[Observation]:
    key = key_of(of.request()) if isinstance(of, Problem) else of
    return [observation(key), observation(key, dict(config), relative_to_default=ratio)]


def qkv(n: int = 100, **options: Any) -> list[torch.Tensor]:
    return [torch.randn(1, 2, n, 8, **options) for _ in range(3)]


def test_tuned_configs_are_applied(backend: FakeBackend) -> None:
    places.user_store().merge(records(problem()))
    op = attnc.loads(TEXT)
    q, k, v = qkv()
    torch.testing.assert_close(op(q, k, v), op.reference(q, k, v))
    assert backend.configs == [FAST]
    attnc.loads(TEXT, tune="off")(q, k, v)
    assert backend.configs == [FAST, {}]


def test_what_was_decided_once_asks_no_backend_again(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces import compilers, which a kernel from the cache does without."""
    places.user_store().merge(records(problem()))
    assert lookup.cached(problem().request()) == FAST

    def refuse(*_: object) -> None:
        raise AssertionError("asked for its space")

    monkeypatch.setattr(FakeBackend, "space", refuse)
    assert lookup.cached(problem().request()) == FAST
    places.user_store().merge(records(problem(), {"tile": 16, "way": "down"}, 0.4))
    assert lookup.cached(problem().request()) == {}, "other records are decided anew, which this backend cannot"


def test_sizes_within_a_bucket_compile_nothing(backend: FakeBackend) -> None:
    places.user_store().merge(records(problem(100)))
    op = attnc.loads(TEXT)
    for n in (100, 65, 128, 255, 256):
        op(*qkv(n))
    assert backend.configs == [FAST]
    for n in (64, 257, 20, 3, 1000):  # other buckets, none of them tuned: all run the default
        op(*qkv(n))
    assert backend.configs == [FAST, {}]


def test_training_has_configs_of_its_own(backend: FakeBackend) -> None:
    workload = Workload("f32", (), False, unordered=True)
    backward = problem(direction="backward", wants=("q", "k", "v"), workload=workload)
    places.user_store().merge(records(backward))
    asked = []
    build = backend.build_backward

    def recording(*arguments: Any) -> Any:
        asked.append(arguments[3])
        return build(*arguments)

    backend.build_backward = recording  # type: ignore[method-assign, assignment]
    attnc.loads(TEXT)(*qkv(requires_grad=True)).sum().backward()
    assert asked == [FAST]
    assert backend.configs == [{}]


def test_the_tuner_and_the_run_time_ask_for_the_same_key(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(lookup, "cached", lambda request: asked.append(key_of(request).digest) or {})
    text = (
        "attention two { input tilt: real[H]  param c: real = 1.0  mask causal  score dot(q, k) * scale + c * tilt[h] }"
    )
    op = attnc.loads(text)
    bias = torch.randn(2, requires_grad=True)
    op(*qkv(requires_grad=True), tilt=bias).sum().backward()
    workload = Workload("f32", ("f32",), False)
    either = replace(workload, unordered=True)
    wants = ("q", "k", "v", "tilt")
    expected = [
        problem(text=text, workload=workload, wants=wants),
        problem(text=text, workload=either, wants=wants, direction="backward"),
    ]
    assert asked == [key_of(one.request()).digest for one in expected]
    renamed = text.replace("two", "too").replace("tilt", "other")
    other = problem(text=renamed, workload=either, wants=("q", "k", "v", "other"), direction="backward")
    assert key_of(other.request()).digest == asked[1]


def test_the_first_place_that_knows_decides(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of = problem()
    key = key_of(of.request())
    file = f"{name_of(dict(key.parts['hardware']))}.jsonl"
    monkeypatch.setattr(places, "packaged", lambda: tmp_path / "packaged")

    def choice() -> tuple[str, Any] | None:
        return lookup.find(of.request(), key)

    assert choice() is None
    configs = [{"tile": tile, "way": way} for tile in (16, 32) for way in ("up", "down")]
    write_bundle(tmp_path / "packaged" / file, records(key, configs[0]))
    assert choice() == ("attnc", configs[0])
    places.user_store().merge(records(key, configs[1]))
    assert choice() == ("user", configs[1])
    write_bundle(tmp_path / "attnc_tuned" / file, records(key, configs[2]))
    assert choice() == ("attnc_tuned", configs[2])
    Store(tmp_path / "mine").merge(records(key, configs[3]))
    monkeypatch.setenv("ATTNC_TUNED", str(tmp_path / "mine"))
    assert choice() == (str(tmp_path / "mine"), configs[3])


def test_what_does_not_fit_is_a_miss_and_never_an_error(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(problem().request())
    store = places.user_store()
    store.merge(records(key, {"tile": 17, "way": "up"}, 0.1))  # outside the space
    store.merge(records(Key.of({**key.parts, "hardware": {"vendor": "other"}})))  # another machine
    op = attnc.loads(TEXT)
    op(*qkv())
    assert backend.configs == [{}]
    for config in ({"tile": 16, "way": "up"}, {"tile": 32, "way": "up"}):
        store.put(Pin(key, config, "", "", ""))
    attnc.loads(TEXT + " # again")(*qkv())  # pins in conflict
    monkeypatch.setattr(lookup, "find", lambda *_: 1 / 0)
    op(*qkv(300))
    assert [one.getMessage()[:30] for one in caplog.records if one.levelno >= logging.WARNING]
    assert backend.configs == [{}]


def test_a_miss_says_which_command_would_tune(backend: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "attnc")
    attnc.loads(TEXT)(*qkv())
    (line,) = [one.getMessage() for one in caplog.records if "attnc tune" in one.getMessage()]
    assert "attnc tune SPEC:one --target cpu --dtype f32 --shapes B=1,H=2,G=2,M=100,N=100,D=8" in line


def test_two_ranks_choose_the_same(backend: FakeBackend, tmp_path: Path) -> None:
    found = [one for tile in (16, 32, 64) for one in records(problem(), {"tile": tile, "way": "up"}, 0.8 + tile / 1e5)]
    choices = []
    for rank, order in enumerate((found, list(reversed(found)))):
        store = Store(tmp_path / f"rank{rank}")
        store.merge(order)
        request = problem().request()
        choices.append(lookup.find(request, key_of(request), [store.root]))
    assert [choice[1] for choice in choices if choice] == [{"tile": 16, "way": "up"}] * 2


def test_neighbours_apply_only_where_that_is_asked_for(backend: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    places.user_store().merge(records(problem(100)))
    attnc.loads(TEXT)(*qkv(300))
    assert backend.configs == [{}]
    attnc.loads(TEXT, tune="compatible")(*qkv(300))
    assert backend.configs == [{}, FAST]
    assert "bucket.keys is 5 here, 4 there" in caplog.text


def test_tune_on_tunes_in_the_call(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def tune(made: Any, of: Problem, *rest: Any) -> None:
        runs.append(of)
        made.store.merge(records(of))

    monkeypatch.setattr(session, "tune", tune)
    op = attnc.loads(TEXT, tune="on")
    op(*qkv())
    op(*qkv(120))
    assert [one.sizes["N"] for one in runs] == [100]
    assert backend.configs == [FAST]


def test_tune_is_one_of_four() -> None:
    with pytest.raises(attnc.ArgumentError, match="did you mean `cached`"):
        attnc.loads(TEXT, tune="cache")
