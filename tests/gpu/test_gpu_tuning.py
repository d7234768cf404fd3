"""Tuning on a GPU: searched, checked, kept, applied, and put into bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import attnc
from attnc.autotune import lookup, places, session
from attnc.autotune.key import key_of
from attnc.autotune.problem import Problem
from attnc.autotune.record import Observation
from attnc.autotune.tuner import Budget
from attnc.backends.protocol import Config
from attnc.bundle import Bundle
from attnc.cli import app
from attnc.cli.tune import Wanted, problems

pytestmark = pytest.mark.gpu

TEXT = "attention one { input doc: int[B, N]  mask causal and doc[b, i] == doc[b, j] }"
SHAPE = "B=1,H=4,N=1500,D=64"


@pytest.fixture(autouse=True)
def _own_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.attn").write_text(TEXT)


def kernels() -> list[Problem]:
    return problems(Wanted("one.attn", {}, "cuda", None, [SHAPE], ["bf16"], ["q", "k", "v"], False))


def known(problem: Problem) -> list[Observation]:
    return session.observations(places.user_store(), key_of(problem.request()))


@pytest.mark.slow
def test_tuning_from_the_command_to_the_call() -> None:
    command = ["tune", "one.attn", "-t", "cuda", "-s", SHAPE, "--budget", "4", "--grad"]
    done = CliRunner().invoke(app, command, terminal_width=200)
    assert done.exit_code == 0, done.output
    for problem in kernels():
        final = [one for one in known(problem) if one.stage == "final"]
        assert {"name", "driver", "power_limit"} <= final[0].environment.keys()
        assert any(not one.config for one in final), "the default is a finalist"
        assert not [one for one in known(problem) if one.status in ("crash", "wrong")], "and whose fault is that?"
    assert "tuned before" in CliRunner().invoke(app, command, terminal_width=200).output

    q, k, v = (torch.randn(1, 4, 1500, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    doc = (torch.arange(1500, device="cuda") // 400).view(1, -1)
    op = attnc.load("one.attn")
    out = op(q, k, v, doc=doc)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = op.reference(*wide, doc=doc)
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    d_out = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), d_out)
    for mine, right in zip(found, torch.autograd.grad(expected, wide, d_out.float()), strict=True):
        torch.testing.assert_close(mine.float(), right, rtol=5e-2, atol=5e-2)


@pytest.mark.slow
def test_candidates_are_right_and_a_bundle_takes_the_best() -> None:
    problem = kernels()[0]
    with session.tuner(places.user_store()) as made:
        done = session.tune(made, problem, Budget(trials=6), cold=True)
    assert done is not None
    assert done.compiling > 0
    assert done.measuring > 0
    config: Config = lookup.cached(problem.request())
    assert dict(config) == dict(done.best_config) or done.best > 0.99
    sizes = {"B": 1, "H": 4, "N": 1500, "D": 64}
    op = attnc.compile("one.attn", "cuda", "out", dtypes=["bf16"], head_dims=[64], shapes=[sizes])
    assert bool(Bundle(Path("out")).tuned) == bool(config)
    q, k, v = (torch.randn(1, 4, 1500, 64, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
    doc = (torch.arange(1500, device="cuda") // 400).view(1, -1)
    expected = op.reference(q.float(), k.float(), v.float(), doc=doc)
    torch.testing.assert_close(op(q, k, v, doc=doc).float(), expected, rtol=2e-2, atol=2e-2)
