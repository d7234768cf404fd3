"""Routes and branches as operators on the CPU: kernels and derived gradients against the reference."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_routing_specs import CASES, SPECS, Case, make
from torch import Tensor
from typer.testing import CliRunner

import attnc
from attnc.cli.main import app
from attnc.library import SlowGradientWarning
from attnc.routing.choice import Words

pytest.importorskip("tvm")
FAST = {0, 6}
each_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{case.name}-{at}", marks=[] if at in FAST else [pytest.mark.slow])
        for at, case in enumerate(CASES)
    ],
)
Tolerance = Callable[[torch.dtype], dict[str, Any]]


def narrow(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


@each_case
def test_kernels_compute_the_reference(case: Case, generator: torch.Generator, tolerance: Tolerance) -> None:
    """Forward and backward, with no step left to the reference."""
    made = make(case, generator)
    real = [*made.tokens, *(x for x in made.inputs.values() if x.is_floating_point())]
    wide, half = ([convert(x).requires_grad_() for x in real] for convert in (torch.clone, torch.Tensor.float))
    names = [name for name, x in made.inputs.items() if x.is_floating_point()]
    expected = made.op.reference(*wide[:3], **{**made.arguments, **dict(zip(names, wide[3:], strict=True))})
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowGradientWarning)
        found = made.op(*half[:3], **{**made.arguments, **dict(zip(names, half[3:], strict=True))})
        torch.testing.assert_close(found, expected.float(), **tolerance(torch.float32))
        cotangent = torch.randn(found.shape, generator=generator)
        grads = torch.autograd.grad(found, half, cotangent, allow_unused=True)
    for grad, due in zip(
        grads, torch.autograd.grad(expected, wide, cotangent.double(), allow_unused=True), strict=True
    ):
        if due is None or not due.any():
            assert grad is None or not grad.any()
        else:
            assert grad is not None
            torch.testing.assert_close(grad, due.float(), rtol=1e-4, atol=1e-4)


BRANCHES = """
attention split {
    input slope: real[H]
    branch near { mask causal and i - j < 5 }
    branch far  { mask causal and i - j >= 5 score dot(q, k) * scale - slope[h] * (i - j) }
    output merge(near, far)
}
attention beside {
    param times: real = 2.0
    branch seen { mask causal }
    branch some { mask j < i - 30 normalize relu(score) }
    output times * seen + some * rsqrt(N) + 1
}
"""


@pytest.mark.parametrize("name", ["split", "beside"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_branches(name: str, dtype: torch.dtype, generator: torch.Generator, tolerance: Tolerance) -> None:
    op = attnc.loads(BRANCHES, name)
    q, k, v = (torch.randn(2, heads, n, 16, generator=generator).to(dtype) for heads, n in ((4, 33), (2, 41), (2, 41)))
    given = {"slope": torch.rand(4, generator=generator)} if name == "split" else {"times": 0.5}
    wide = {x: y.double() if isinstance(y, Tensor) else y for x, y in given.items()}
    expected = op.reference(q.double(), k.double(), v.double(), **wide)
    found = op(q, k, v, **given)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected.to(dtype), **tolerance(dtype))


def test_log_sum_exp_of_routes_and_merges(generator: torch.Generator, tolerance: Tolerance) -> None:
    q, k, v = (torch.randn(1, 2, n, 16, generator=generator) for n in (9, 20, 20))
    route = attnc.loads("attention a { route keys(block=4) per query { rank dot(q, mean(k)) select top(2) } }")
    for op, given in ((route, {}), (attnc.loads(BRANCHES, "split"), {"slope": torch.rand(2, generator=generator)})):
        found = op(q, k, v, return_lse=True, **given)
        torch.testing.assert_close(found, op.reference(q, k, v, return_lse=True, **given), **tolerance(torch.float32))
    with pytest.raises(attnc.ArgumentError, match="merge"):
        attnc.loads(BRANCHES, "beside")(q, k, v, return_lse=True)


def test_sizes_compile_nothing_new(generator: torch.Generator) -> None:
    op = attnc.loads("attention a { mask causal route keys(block=4) per query { rank dot(q, mean(k)) select top(2) } }")
    counts = []
    for m, n in ((9, 20), (1, 3), (0, 5), (3, 0), (40, 7)):
        q, k = (torch.randn(1, 2, size, 16, generator=generator) for size in (m, n))
        torch.testing.assert_close(op(q, k, k), op.reference(q, k, k), rtol=1e-5, atol=1e-5)
        counts.append(attnc.jit.build_count())
    assert len({*counts[1:]}) == 1


def test_explain_says_who_chooses() -> None:
    op = attnc.loads(
        "attention a { mask causal route keys(block=4) per query { rank dot(q, mean(k)) select top(2) always self } }"
    )
    text = op.explain(16)
    assert "each query chooses among blocks of 4 keys" in text
    assert "so a future block is none" in text
    assert "counted with them: its own block" in text
    assert "a: 1 pass over the keys" in text


@pytest.mark.parametrize("name", ["nsa", "star"])
def test_bundles(name: str, generator: torch.Generator, tmp_path: Any) -> None:
    """A bundle runs what the spec does, choices in torch, and compiles nothing."""
    case = next(case for case in CASES if case.name == name)
    made = make(case, generator)
    constants = {key: int(value) for key, value in case.constants.items()}
    d, e = made.env.D, made.env.E
    op = attnc.compile(SPECS / f"{name}.attn", "cpu", tmp_path / "out", constants=constants, head_dims=[(d, e)],
                       dtypes=["f32"])  # fmt: skip
    built = attnc.jit.build_count()
    q, k, v = (x.float() for x in made.tokens)
    given = {key: x.float() if x.is_floating_point() else x for key, x in made.inputs.items()}
    for loaded in (op, attnc.load(tmp_path / "out")):
        found = loaded(q, k, v, **given)
        torch.testing.assert_close(found, made.op.reference(q, k, v, **given), rtol=1e-4, atol=1e-5)
    assert attnc.jit.build_count() == built
    with pytest.raises(attnc.BundleError, match="no kernel"):
        op(q.bfloat16(), k.bfloat16(), v.bfloat16(), **given)


REGROUPED = """
attention causal  { mask causal route keys(block=16) per query { rank dot(q, mean(k)) select top(3) always self } }
attention whole   { route keys(block=20) per query { rank dot(q, mean(k)) select mass(0.6, least=2) } }
attention rotated { query rope(q, i) key rope(k, j) mask causal
                    route keys(block=16) per query { rank dot(q, mean(k)) select top(3) always self } }
attention biased  { input x: real[H] mask causal score dot(q, k) * scale + x[h] * j
                    route keys(block=16) per query { rank dot(q, mean(k)) select top(3) always self } }
attention few     { mask causal route keys(block=16) per query { rank dot(q, mean(k)) select above(2) also self } }
"""


def regrouped(name: str, regroups: bool | None = True) -> attnc.Op:
    op = attnc.loads(REGROUPED, name)
    op.composite.regroups = regroups
    return op


def test_what_can_be_regrouped() -> None:
    can = {
        name: regrouped(name).composite.regrouped[""] is not None for name in re.findall(r"attention (\w+)", REGROUPED)
    }
    assert can == {"causal": True, "whole": True, "rotated": False, "biased": False, "few": True}


@pytest.mark.parametrize(("name", "groups"), [("causal", 2), ("causal", 4), ("whole", 2), ("few", 1)])
def test_regrouped_queries(name: str, groups: int, generator: torch.Generator, tolerance: Tolerance) -> None:
    """Tiles of one block each, merged: the result and the gradients of the definition."""
    shapes = ((2, 4, 137, 16), (2, groups, 153, 16), (2, groups, 153, 8))
    wide = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    narrowed = [x.detach().float().requires_grad_() for x in wide]
    op = regrouped(name)
    expected, found = op.reference(*wide), op(*narrowed)
    torch.testing.assert_close(found, expected.float(), **tolerance(torch.float32))
    cotangent = torch.randn(found.shape, generator=generator)
    grads = torch.autograd.grad(found, narrowed, cotangent)
    for grad, due in zip(grads, torch.autograd.grad(expected, wide, cotangent.double()), strict=True):
        torch.testing.assert_close(grad, due.float(), rtol=1e-4, atol=1e-4)
    again = torch.autograd.grad(op(*narrowed), narrowed, cotangent)
    torch.testing.assert_close(again, grads, rtol=0, atol=0)


def test_regrouped_in_half_precision_and_where_nothing_is_chosen(
    generator: torch.Generator, tolerance: Tolerance
) -> None:
    q, k, v = (torch.randn(1, 2, n, 16, generator=generator).bfloat16() for n in (40, 50, 50))
    op = regrouped("causal")
    torch.testing.assert_close(op(q, k, v), op.reference(q, k, v), **tolerance(torch.bfloat16))
    nobody = attnc.loads(
        "attention a { route keys(block=16) per query { rank dot(q, mean(k)) select above(1000000.0) } }"
    )
    nobody.composite.regroups = True
    assert not nobody(q, k, v).any()
    short = regrouped("causal")
    torch.testing.assert_close(short(q[:, :, -1:], k, v), op.reference(q, k, v)[:, :, -1:], **tolerance(torch.bfloat16))


def test_regrouping_where_it_pays(generator: torch.Generator) -> None:
    op = regrouped("causal", None)
    part = op.composite.regrouped[""]
    assert part is not None
    q = torch.randn(1, 1, 64, 16, generator=generator)
    call, (choice,) = op.composite.chosen(q, q, q)[""]
    assert not part.pays(choice, call)
    words = torch.zeros(1, 1, 64, 2**18 // 512, dtype=torch.int32)
    words[..., :128] = 1
    longer = replace(call, sizes={**call.sizes, "N": 2**18})
    assert part.pays(replace(choice, held=Words(words)), longer)
    words[..., ::3] = -1
    assert not part.pays(replace(choice, held=Words(words)), replace(call, sizes={**call.sizes, "N": 2**15}))


def test_what_was_chosen_is_drawn(generator: torch.Generator, tmp_path: Any) -> None:
    op = attnc.load(SPECS / "moba.attn", "moba", constants={"BLOCK": 16, "TOP": 2})
    q, k, v = (torch.randn(1, 2, 64, 16, generator=generator) for _ in range(3))
    text = op.draw_routes(q, k, v, h=1)
    pairs = int((op.reference(q, k, torch.eye(64).expand(1, 2, 64, 64)) > 0).sum())
    assert f"kept {pairs:,} of {2 * 64 * 65 // 2:,} visible pairs" in text
    assert "route 1: row 0 took 1 blocks of 16: 0" in text
    assert "batch row 0, head 1" in text
    torch.save({"q": q, "k": k, "v": v}, tmp_path / "qkv.pt")
    drawn = CliRunner().invoke(app, ["draw", f"{SPECS / 'moba.attn'}:moba", "-D", "BLOCK=16", "-D", "TOP=2",
                                     "--tensors", str(tmp_path / "qkv.pt"), "--head", "0:1"])  # fmt: skip
    assert drawn.exit_code == 0, drawn.output
    assert f"kept {pairs:,} of" in drawn.output
    mask = CliRunner().invoke(app, ["draw", str(SPECS.parent / "causal.attn"), "--size", "256", "256"])
    assert "16 tiles of 64x64" in mask.output
    assert CliRunner().invoke(app, ["draw", str(SPECS.parent / "causal.attn")]).exit_code == 2
    with pytest.raises(attnc.ArgumentError, match="no routes"):
        attnc.load(SPECS.parent / "causal.attn").draw_routes(q, k, v)


COMPILED = ["moba:moba", "nsa", "dsa:hisa", "star", "mosa", "hyper", "seer:prefill"]
at_once = [pytest.param(name, marks=[] if name in ("nsa", "dsa:hisa") else [pytest.mark.slow]) for name in COMPILED]


@pytest.mark.parametrize("name", at_once)
def test_compiled_as_one_graph(name: str, generator: torch.Generator) -> None:
    """Forward and backward without a break, and the results of eager mode."""
    case = next(case for case in CASES if case.name == name)
    made = make(case, generator)
    names = [name for name, x in made.inputs.items() if x.is_floating_point()]
    real = [x.float() for x in (*made.tokens, *(made.inputs[name] for name in names))]
    cotangent = torch.randn(real[0].shape[:3] + made.tokens[2].shape[3:], generator=generator)
    results = []
    for call in (made.op, torch.compile(made.op, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in real]
        out = call(*leaves[:3], **{**made.arguments, **dict(zip(names, leaves[3:], strict=True))})
        results.append((out, *torch.autograd.grad(out, leaves, cotangent, allow_unused=True)))
    for eager, compiled in zip(*results, strict=True):
        if eager is None:
            assert compiled is None or not compiled.any()
        else:
            torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_exported(generator: torch.Generator, tmp_path: Any) -> None:
    op = attnc.loads("attention a { mask causal route keys(block=4) per query { rank dot(q, mean(k)) select top(2) } }")

    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return op(q, k, v, return_lse=True)

    given = tuple(torch.randn(1, 2, n, 16, generator=generator) for n in (9, 20, 20))
    exported = torch.export.export(Model(), given)
    torch.testing.assert_close(exported.module()(*given), op(*given, return_lse=True), rtol=1e-5, atol=1e-5)


KEPT = """
attention rows     { input r: real[B, H, N] mask causal keep queries top(5) by r[b, h, i] output r[b, h, i] * o }
attention both     { input r: real[B, H, N] param t: real = 0.5 mask causal and i - j < 9
                     score dot(q, k) * scale - t * (i - j) + 0.01 * N
                     keep queries top(max(2, N // 4)) by r[b, h, i]
                     route keys(block=1) per head { rank r[b, h, j] select top(N // 3) } }
attention ranked   { input r: real[B, H, N] mask causal keep queries top(7) by r[b, h, i]
                     route keys(block=4) per query { rank dot(q, mean(k)) select top(2) } }
"""


@pytest.mark.parametrize(("name", "kept"), [("rows", True), ("both", True), ("ranked", False)])
@pytest.mark.parametrize("groups", [2, 4])
def test_kept_queries(name: str, kept: bool, groups: int, generator: torch.Generator, tolerance: Tolerance) -> None:
    """A small dense problem: the result, the log-sum-exp and the gradients of the definition."""
    op = attnc.loads(KEPT, name)
    shapes = ((2, 4, 23, 16), (2, groups, 29, 16), (2, groups, 29, 8), (2, 4, 29))
    wide = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    narrowed = [x.detach().float().requires_grad_() for x in wide]
    expected, rows = op.reference(*wide[:3], r=wide[3], return_lse=True)
    found, sums = op(*narrowed[:3], r=narrowed[3], return_lse=True)
    assert op.composite.used == {"": "kept" if kept else "masked"}
    torch.testing.assert_close(found, expected.float(), **tolerance(torch.float32))
    torch.testing.assert_close(sums, rows.float(), **tolerance(torch.float32))
    cotangent = torch.randn(found.shape, generator=generator)
    of = slice(None) if name == "rows" else slice(3)
    grads = torch.autograd.grad(found, narrowed[of], cotangent)
    for grad, due in zip(grads, torch.autograd.grad(expected, wide[of], cotangent.double()), strict=True):
        torch.testing.assert_close(grad, due.float(), rtol=1e-4, atol=1e-4)
    without = op(*(x.detach() for x in narrowed[:3]), r=narrowed[3].detach())
    torch.testing.assert_close(without, found.detach(), **tolerance(torch.float32))


def test_explain_says_what_chooses_and_gathers() -> None:
    dsa = attnc.load(SPECS / "dsa.attn", "dsa").explain(128)
    assert "chosen by kernels on GPUs" in dsa
    assert "the keys of each query are gathered by number" in dsa
    odd = attnc.load(SPECS / "dsa.attn", "dsa", constants={"WIDTH": 5}).explain(128)
    assert "chosen in torch: vectors whose width is no power of two from 16 to 512" in odd
    assert "a small dense attention" in attnc.load(SPECS / "mosa.attn").explain(128)
