"""The spaces that backends list: they hold the default, and what they hold compiles."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace

import pytest
import torch

from attnc import targets
from attnc.autotune.check import check
from attnc.autotune.problem import Problem
from attnc.autotune.search import feasible
from attnc.backends.protocol import Target, Workload
from attnc.grammar.source import Source
from attnc.jit import recall_spec
from attnc.spec import Spec

SOFTMAX = "mask causal"
SIGMOID = "normalize sigmoid(score - log(N))"
DOCUMENTS = "input doc: int[B, N]  mask causal and doc[b, i] == doc[b, j]"


def problem(body: str, target: str, dtype: str, width: int, direction: str = "forward") -> Problem:
    checked = recall_spec(Spec(Source("<test>", f"attention x {{ {body} }}")))
    wants = ("q", "k", "v") if direction == "backward" else ()
    kind, _, arch = target.partition(":")
    workload = Workload(dtype, ("i64",) * len(checked.program.inputs), False)
    sizes = {"B": 1, "H": 2, "G": 1, "M": 200, "N": 200}
    backend = "tvm" if kind == "cpu" else "triton"
    return Problem(checked, backend, Target(kind, arch), direction, wants, (width, width), workload, sizes)  # type: ignore[arg-type]


GPUS = ["cuda:sm_80", "cuda:sm_90", "cuda:sm_100", "hip:gfx942"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("width", [64, 128, 80])
@pytest.mark.parametrize("target", ["cpu", *GPUS])
def test_the_default_is_a_config_and_paper_leaves_some(target: str, width: int, direction: str) -> None:
    if target != "cpu":
        pytest.importorskip("triton")
    for dtype in ("bf16", "f32"):
        for body in (SOFTMAX, SIGMOID, DOCUMENTS):
            space = problem(body, target, dtype, width, direction).request().space()
            assert space.problem({}) is None
            assert set(space.default) == {choice.name for choice in space.choices}
            assert space.problem({**space.default, "more": 1}) is not None
            assert space.problem(dict.fromkeys(space.default, -1)) is not None
            for choice in space.choices:
                assert list(choice.settings) == sorted(choice.settings) or isinstance(choice.settings[0], str)
            if len(space.choices) <= 6:
                assert sum(1 for _ in feasible(space)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_configs_of_the_cpu_are_right(direction: str, seed: int) -> None:
    pytest.importorskip("tvm")
    what = problem(DOCUMENTS, "cpu", "f32", 40, direction)
    configs = list(feasible(what.request().space()))
    for config in random.Random(seed).sample(configs, 4):
        assert check(what, config, seed)["wrong"] == "", config


@pytest.mark.slow
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    from attnc.backends.tvm.kernel import CpuKernel

    run = CpuKernel.run

    def wrong(self: CpuKernel, *arguments: object, **more: object) -> None:
        run(self, *arguments, **more)  # type: ignore[arg-type]
        out = arguments[6]
        assert isinstance(out, torch.Tensor)
        out[..., -1, -1, -1] += 1e-2

    monkeypatch.setattr(CpuKernel, "run", wrong)
    assert "off by" in check(problem(SOFTMAX, "cpu", "f32", 16), {}, 1)["wrong"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_configs_of_a_gpu_compile_and_are_reported(direction: str, seed: int) -> None:
    what = problem(SOFTMAX, "cuda:sm_90", "bf16", 64, direction)
    backend = targets.backend_for(what.target, what.backend)
    request = what.request()
    space = request.space()
    small = [x for x in feasible(space) if x.get("block_m", 64) == 64] if direction == "forward" else [space.default]
    config = random.Random(seed).choice(small)
    build = backend.build if direction == "forward" else backend.build_backward
    kernel = build(request.subject(), request.workload, request.target, config)  # type: ignore[operator]
    rejected = backend.rejection(kernel, what.target)
    assert rejected is None or "spills" in rejected or "shared" in rejected
    if direction == "forward":
        large = {**space.default, "family": "portable", "block_m": 256, "block_n": 256, "warps": 8, "stages": 1}
        assert space.problem({**large, "queries": 1}) is not None


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("body", [SOFTMAX, DOCUMENTS])
def test_one_config_stands_for_all_that_make_the_same_kernel(body: str, direction: str, seed: int) -> None:
    what = problem(body, "cuda:sm_90", "bf16", 64, direction)
    if direction == "backward":
        what = replace(what, workload=replace(what.workload, unordered=True))
    space = what.request().space()
    assert space.settled(space.default) == space.default
    generator, found = random.Random(seed), []
    for _ in range(2000):
        config = space.settled({x.name: generator.choice(x.settings) for x in space.choices})
        assert space.settled(config) == config
        if space.problem(config) is None:
            found.append(config)
    assert len(found) > 100
    if direction == "backward":
        fused = [config for config in found if config["fused"]]
        assert 20 < len(fused) < len(found) - 20  # both are within reach
        assert len({str(config["keys_block_n"]) for config in fused}) == 1
        portable = [config for config in found if config["rows_family"] == "stream"]
        assert not any(config["rows_hide"] or config["fused"] for config in portable)
