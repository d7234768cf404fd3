"""`attnc compile` with what was tuned: kernels for buckets of sizes, found again when the bundle runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_backend import FakeBackend, FakeKernel, installed
from tuning_cases import observation
from typer.testing import CliRunner

import attnc
from attnc.autotune import bucket, places
from attnc.autotune.hardware import name_of
from attnc.autotune.key import Key, key_of
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation
from attnc.backends.protocol import Target, Workload
from attnc.bundle import Bundle
from attnc.cli import app
from attnc.grammar.source import Source
from attnc.jit import recall_spec
from attnc.spec import Spec

TEXT = "attention one { mask causal }"
FAST, FASTER = {"tile": 64, "way": "down"}, {"tile": 32, "way": "up"}
GENERAL = "f32-d8-e8"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.attn").write_text(TEXT)
    with installed(monkeypatch, tmp_path / "cache") as made:
        yield made


def key_at(n: int, **hardware: Any) -> Key:
    checked = recall_spec(Spec(Source("one.attn", TEXT)))
    sizes = {"B": 1, "H": 2, "G": 2, "M": n, "N": n}
    made = Problem(checked, "fake", Target("cpu"), "forward", (), (8, 8), Workload("f32", (), False), sizes)
    key = key_of(made.request())
    return Key.of({**key.parts, "hardware": {**key.parts["hardware"], **hardware}})


def tuned(key: Key, config: Mapping[str, Any]) -> list[Observation]:
    return [observation(key), observation(key, dict(config), relative_to_default=0.5)]


def loaded(backend: FakeBackend, op: attnc.Op, *lengths: int) -> list[str]:
    """Which kernels of a bundle are loaded for calls of these lengths; each is checked."""
    names = []
    load = type(backend).load

    def recording(folder: Path, manifest: Mapping[str, Any]) -> FakeKernel:
        names.append(folder.name)
        return load(backend, folder, manifest)

    backend.load = recording  # type: ignore[method-assign]
    for n in lengths:
        q, k, v = (torch.randn(1, 2, n, 8) for _ in "qkv")
        torch.testing.assert_close(op(q, k, v), op.reference(q, k, v))
    return names


def build(**more: Any) -> attnc.Op:
    return attnc.compile("one.attn", "cpu", "out", dtypes=["f32"], head_dims=[8], **more)


def test_without_shapes_a_bundle_is_untuned(backend: FakeBackend) -> None:
    places.user_store().merge(tuned(key_at(100), FAST))
    op = build()
    assert backend.configs == [{}]
    assert loaded(backend, op, 100, 300) == [GENERAL]


def test_a_bundle_holds_what_was_tuned_for_its_shapes(backend: FakeBackend) -> None:
    for n, config in ((100, FAST), (300, FAST), (3000, FASTER)):
        places.user_store().merge(tuned(key_at(n), config))
    shapes = [{"H": 2, "N": n} for n in (100, 300, 3000, 20_000)]
    op = build(shapes=shapes)
    assert backend.configs == [{}, FAST, FASTER]  # two buckets share a kernel; of the last nothing is known
    found = loaded(backend, op, 100, 65, 256, 257, 1024, 2000, 5)
    assert found == [f"{GENERAL}-h1m4n4r1", f"{GENERAL}-h1m6n6r1", GENERAL]


def test_a_shape_may_be_of_one_width(backend: FakeBackend) -> None:
    places.user_store().merge(tuned(key_at(100), FAST))
    sizes = {"H": 2, "N": 100}
    attnc.compile("one.attn", "cpu", "out", dtypes=["f32"], head_dims=[8, 16], shapes=[{**sizes, "D": 8}])
    assert backend.configs == [{}, {}, FAST]
    with pytest.raises(attnc.ArgumentError, match="no kernel of the bundle has the head widths"):
        build(shapes=[{**sizes, "D": 64}])
    with pytest.raises(attnc.ArgumentError, match="Q=3"):
        build(shapes=[{"Q": 3}])


def test_results_of_other_hardware_are_taken_where_it_is_named(backend: FakeBackend) -> None:
    there = key_at(100, cores=128)
    places.user_store().merge(tuned(there, FAST))
    name = name_of(dict(there.parts["hardware"]))
    build(shapes=[{"H": 2, "N": 100}])
    assert backend.configs == [{}]
    build(shapes=[{"H": 2, "N": 100}], hardware=name)
    assert FAST in backend.configs
    with pytest.raises(attnc.ArgumentError, match="nothing is tuned for `abacus`"):
        build(shapes=[{"H": 2, "N": 100}], hardware="abacus")
    with pytest.raises(attnc.ArgumentError, match="for `shapes`"):
        build(hardware=name)


def test_another_version_of_buckets_leaves_the_general_kernel(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.user_store().merge(tuned(key_at(100), FAST))
    build(shapes=[{"H": 2, "N": 100}])
    assert Bundle(Path("out")).tuned
    monkeypatch.setattr(bucket, "VERSION", 2)
    assert not Bundle(Path("out")).tuned


def test_bundles_of_the_first_format_are_read(backend: FakeBackend) -> None:
    build()
    manifest = Path("out/manifest.json")
    found = json.loads(manifest.read_text())
    del found["bucket_version"]
    for entry in found["kernels"]:
        del entry["buckets"]
    manifest.write_text(json.dumps(found | {"format": 1}))
    assert loaded(backend, attnc.load("out"), 100) == [GENERAL]


def test_the_command_says_for_how_much_it_is_tuned(backend: FakeBackend) -> None:
    places.user_store().merge(tuned(key_at(100), FAST))
    options = ["-t", "cpu", "--dtype", "f32", "--head-dim", "8", "-o", "out"]
    done = CliRunner().invoke(app, ["compile", "one.attn", *options, "-s", "H=2,N=100", "-s", "H=2,N=300"])
    assert done.exit_code == 0, done.output
    assert "tuned for 1 buckets of sizes" in done.output
    assert CliRunner().invoke(app, ["compile", "one.attn", *options, "-s", "N=many"]).exit_code == 2
