"""benchmarks/tuning.py without a GPU: real searches and stores, simulated kernels."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simulated_worker

from attnc.autotune import hardware, key
from attnc.autotune import run as running
from attnc.autotune.bundle import read_bundle
from attnc.autotune.problem import Problem
from attnc.autotune.winner import ranking
from attnc.backends.protocol import Space

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    import tuning

    for module in (hardware, key):
        monkeypatch.setattr(module, "hardware_of", lambda target: simulated_worker.H100)
    monkeypatch.setattr(running, "environment", lambda target: {"name": "simulated"})
    facts = {"device": {"name": "simulated"}, "date": "now", "packages": {}}
    monkeypatch.setattr(tuning.record, "environment", lambda device: facts)
    yield tuning
    sys.modules.pop("tuning", None)


def small_space(machine: Any, problem: Problem) -> Space:
    """Few enough configs that a test can measure all of them."""
    whole = problem.request().space()
    choices = tuple(
        replace(x, settings=x.settings[1:3] if x.name in ("warps", "stages") else x.settings) for x in whole.choices
    )
    return replace(whole, choices=choices, default={**whole.default, "stages": 3})


@pytest.mark.slow
def test_a_run_on_a_gpu(tuning: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "CASES", ("alibi_window.attn",))
    monkeypatch.setattr(tuning, "OTHERS", ("full.attn", "no_such_spec.attn"))
    machine = replace(tuning.MACHINES["cuda"], shapes={4096: (2, 16), 1024: (2, 16)}, trials=(8, 4), at_once=2)
    monkeypatch.setattr(tuning, "space_of", small_space)
    machine = replace(machine, surveyed=(("causal.attn", 64, 4096), ("causal.attn", 64, 16384)))
    monkeypatch.setitem(tuning.MACHINES, "cuda", machine)
    out = tmp_path / "out"
    results = tuning.run("cuda", out, 400.0, 4, ("table", "survey", "specs"), simulated_worker.command())
    assert sorted(path.name for path in out.iterdir()) == ["records.jsonl", "tuning.json", "tuning.md"]
    found = json.loads((out / "tuning.json").read_text())
    assert found["rows"] == results.rows
    kinds = [(row["spec"], row["kind"], row["D"], row["sizes"]["N"]) for row in results.rows]
    assert len(set(kinds)) == len(kinds)
    assert {kind for _, kind, *_ in kinds} == {"forward", "backward", "saving"}
    assert {("alibi_window", "backward", 128, 1024), ("full", "forward", 64, 4096)} <= set(kinds)
    assert all(row["speedup"] >= 1.0 for row in results.rows)
    assert [text for text in results.failures if "no_such_spec" not in text] == []
    one = found["surveys"]["causal D=64 N=4096"]
    assert one["configs"] > 30
    assert one["rejected_or_failed"] > 3
    assert one["a_tenth"]["median"] > 0.9
    assert len(one["first"]) == one["configs"]
    assert set(one["transfer"]["8"]) == {"cold", "seeds of causal D=64 N=16384"}
    seeded = one["transfer"]["4"]["seeds of causal D=64 N=16384"]["median"]
    assert seeded >= one["transfer"]["4"]["cold"]["median"] - 0.02
    records = read_bundle(out / "records.jsonl")
    assert ranking(records)  # type: ignore[arg-type]
    text = (out / "tuning.md").read_text()
    assert "alibi_window backward D=128 N=1024" in text
    assert "nothing (a tenth of the space)" in text


@pytest.mark.slow
def test_a_run_that_is_out_of_time_leaves_what_it_has(tuning: Any, tmp_path: Path) -> None:
    results = tuning.run("cuda", tmp_path / "out", 0.0, 2, ("table", "survey"), simulated_worker.command())
    assert results.rows == []
    assert json.loads((tmp_path / "out" / "tuning.json").read_text())["surveys"] == {}
    assert read_bundle(tmp_path / "out" / "records.jsonl") == []
