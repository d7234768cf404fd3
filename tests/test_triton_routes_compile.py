"""Kernels that choose and regroup, compiled for Hopper: nothing spills, tensor cores take the products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_triton_numerics import HERE

import attnc
from attnc.analyse.gradient.derive import derive
from attnc.analyse.gradient.groups import sum_groups
from attnc.analyse.lower import stream_program
from attnc.analyse.ranking import ranking_of
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.backends.triton.report import Report
from attnc.ir.specialize import specialize

pytestmark = pytest.mark.slow
SM90 = Target("cuda", "sm_90")
SPECS: Path = HERE.parent / "specs" / "routing"


def check(reports: dict[str, Report], *products: str) -> None:
    spilled = {name: one.spilled for name, one in reports.items() if one.spilled}
    assert not spilled
    for name, one in reports.items():
        if name.startswith(products) and not name.endswith("_merge"):
            assert any("wgmma" in kind for kind in one.kinds), name


@pytest.mark.parametrize("top", [8, 16])
def test_choosing(top: int) -> None:
    op = attnc.load(SPECS / "moba.attn", "flash_moba", TOP=top)
    made = TritonBackend().build_router(ranking_of(specialize(op.program, 128, 128)), Workload("bf16", (), False), SM90)
    check(made.report(), "select")  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", [64, 128])
def test_regrouping(block: int) -> None:
    op = attnc.load(SPECS / "moba.attn", "flash_moba", BLOCK=block)
    (part, _), *_ = op.composite.parts
    assert part.listed is not None
    program = specialize(part.listed, 128, 128)
    backward = sum_groups(derive(stream_program(program, keep_detach=True), False))
    workload = Workload("bf16", ("i32",), False, backward.saved)
    backend = TritonBackend()
    check(backend.build(backward.plan, workload, SM90).report(), "pass")  # type: ignore[attr-defined]
    made = backend.build_backward(backward, replace(workload, unordered=True), SM90)
    check(made.report(), "keys", "rows")  # type: ignore[attr-defined]
