"""Walks of a backward for Hopper: their terms in two parts, hidden dot products, and what the compilers say of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import triton_backward_cases
from triton_backward_cases import backward_of, make, workload_of
from triton_cases import Case

from attnc.analyse.gradient.backward import Walk
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.adjoint import prepare
from attnc.backends.triton.configs import SCATTER, SHARED_MEMORY
from attnc.backends.triton.hopper.backward_configs import WalkConfig, fused_refusal, refusal, walk_candidates
from attnc.backends.triton.hopper.backward_terms import Split, cotangents, find_shared, split_walk
from attnc.backends.triton.hopper.hiding import hidden_dot
from attnc.backends.triton.lower_backward import lanes_of, lower_backward_to_recipe
from attnc.backends.triton.report import fault_in
from attnc.backends.triton.slots import Over
from attnc.backends.triton.space import space_of, tiles_of
from attnc.ir.nodes import Kind
from attnc.ir.printer import expression
from attnc.ir.traverse import postorder

SM90 = Target("cuda", "sm_90")


def case_of(name: str, D: int = 64, E: int | None = None) -> Case:
    return triton_backward_cases.find(name).at(D=D, E=E or D)


def split_of(name: str, over: Over) -> Split:
    prepared = prepare(backward_of(make(case_of(name), "bf16", 0)))
    (walk,) = (step for step in prepared.steps if isinstance(step, Walk) and step.over == over)
    return split_walk(walk, prepared.mask, cotangents(prepared.steps))


def refused(name: str, over: Over, dtype: str = "bf16", D: int = 64, target: Target = SM90) -> str:
    data = make(case_of(name, D), dtype, 0)
    return refusal(over, prepare(backward_of(data)), workload_of(data), target, lanes_of(backward_of(data)))


def unfused(name: str, D: int = 64) -> str:
    prepared = prepare(backward_of(make(case_of(name, D), "bf16", 0)))
    return fused_refusal(prepared, cotangents(prepared.steps))


@pytest.mark.parametrize("name", ["causal", "softcap", "sigmoid", "alibi", "documents", "window"])
def test_what_waits_for_the_cotangent_is_one_factor_times_what_was_kept(name: str) -> None:
    split = split_of(name, "rows")
    (dot,) = split.late_dots
    assert "d_out" in expression(dot)
    assert split.vanishes
    assert (split.early, len(split.late)) == (1, 2 if name == "alibi" else 1)  # with the gradient of the slope
    assert len(split.tiles) == (2 if name in ("softcap", "sigmoid") else 1)


def test_a_sign_is_seen_from_the_weight_that_has_it() -> None:
    for over in ("keys", "rows"):
        split = split_of("cog", over)  # type: ignore[arg-type]
        assert len(split.tiles) == 1
        assert expression(split.late[0]).count("sign(exp(") == 1


def test_affine_weights_take_one_exponential() -> None:
    """The constant share of the weights and the softmax's are one sum over the rows."""
    split = split_of("affine", "rows")
    assert len(split.sums) == 2
    assert {expression(tile).count("exp(") for tile in split.tiles} == {1}
    assert len({node for tile in split.tiles for node in postorder(tile) if getattr(node, "op", "") == "exp"}) == 1


@pytest.mark.parametrize("name", ["relu2", "cog", "tapa", "row weights"])
@pytest.mark.parametrize("over", ["keys", "rows"])
def test_what_is_kept_are_reals(name: str, over: Over) -> None:
    assert all(tile.kind is Kind.REAL for tile in split_of(name, over).tiles)


def test_walks_over_keys_and_rows_share_the_term() -> None:
    for name in ("causal", "softcap", "cog", "alibi"):
        prepared = prepare(backward_of(make(case_of(name), "bf16", 0)))
        late = cotangents(prepared.steps)
        keys, rows = (
            next(step for step in prepared.steps if isinstance(step, Walk) and step.over == over)
            for over in ("keys", "rows")
        )
        assert find_shared(keys.sums[0], split_walk(rows, prepared.mask, late), late) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("causal", -1e18),
        ("alibi", -1e18),
        ("sigmoid", -1e18),
        ("softcap", None),  # tanh(-1e18) is -1
        ("cog", None),  # abs(-1e18) is large
        ("bias", None),  # read by pair: anything
        ("powers and roots", None),  # may be no number where a pair is not visible
    ],
)
def test_dot_products_are_hidden_where_weights_vanish_with_them(name: str, value: float | None) -> None:
    split = split_of(name, "rows")
    assert hidden_dot(split.early_dots, split.tiles, {"slope", "bias"}) == value


def test_what_exponents_are_shifted_by_is_finite_in_rows_that_see_nothing() -> None:
    """There ``m + log(l)`` is ``-inf``, which would make ``exp(-1e18 - -inf)`` infinite, or ``0 * inf`` no number."""
    data = make(case_of("causal", 128), "bf16", 0)
    hopper = {"keys": WalkConfig(128, 128, 4, 2), "rows": WalkConfig(64, 128, 4, 2), "pairs": SCATTER}
    for configs in (hopper, dict.fromkeys(("keys", "rows", "pairs"), SCATTER)):
        lowered = lower_backward_to_recipe(backward_of(data), workload_of(data), configs, "")
        (shift,) = (text for text in lowered.functions if "def map_0_map0_value" in text)
        assert ("tl.where(saved_l0_at > 0.0" in shift) == (configs is hopper)


def test_reasons_not_to_take_a_walk() -> None:
    assert refused("causal", "rows") == ""
    assert refused("causal", "rows", "f16") == ""
    assert refused("causal", "rows", "f32") == "elements of type f32"
    assert refused("causal", "rows", target=Target("cuda", "sm_100")) == "the target is cuda:sm_100"
    assert refused("causal", "rows", D=20) == "lanes of q do not lie on 16 bytes"
    assert refused("relu2", "rows", "f16") == "weights may exceed what float16 holds"


def test_reasons_not_to_fuse() -> None:
    assert unfused("causal") == ""
    assert unfused("alibi") == ""
    assert unfused("tapa") == "more than one vector is summed over the keys"
    assert unfused("causal", 96) == "vectors of 96 lanes"


def test_wide_heads_get_a_kernel_for_each_sum() -> None:
    prepared = prepare(backward_of(make(case_of("causal", 256), "bf16", 0)))
    assert all(config.apart for config in walk_candidates("rows", prepared))
    assert not any(config.apart for config in walk_candidates("keys", prepared))


@pytest.mark.parametrize("unordered", [False, True])
def test_the_tuner_may_choose_family_and_fusion(unordered: bool) -> None:
    data = make(case_of("causal", 128), "bf16", 0)
    workload = replace(workload_of(data), unordered=unordered)
    space = space_of(backward_of(data), workload, SM90, data.case.all_sizes)
    assert space.problem(space.default) is None
    assert space.default.get("fused") == (1 if unordered else None)
    rows = tiles_of(space.default)["rows"]
    assert isinstance(rows, WalkConfig)
    assert (rows.fused, rows.block_m, rows.block_n) == (unordered, 64, 128)
    assert space.problem({**space.default, "rows_block_n": 64}) is not None
    plain = {**space.default, "rows_family": "stream", **({"fused": 0} if unordered else {})}
    assert not isinstance(tiles_of(plain)["rows"], WalkConfig)


@cache
def compiled(name: str, dtype: str, D: int, E: int, unordered: bool):  # type: ignore[no-untyped-def]
    from attnc.backends.triton.compiling_backward import compile_backward

    data = make(case_of(name, D, E), dtype, 0)
    workload: Workload = replace(workload_of(data), unordered=unordered)
    return compile_backward(backward_of(data), workload, SM90)


COMPILED = (
    ("causal", "bf16", 128, 128, False),
    ("causal", "f16", 64, 64, False),
    ("causal", "bf16", 128, 128, True),
    ("softmax", "bf16", 64, 64, True),
    ("documents", "bf16", 128, 128, False),
    ("causal", "bf16", 192, 128, False),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: "-".join(map(str, case)))
def test_kernels_use_wgmma_and_hardly_spill(case: tuple[str, str, int, int, bool]) -> None:
    pytest.importorskip("triton")
    made = compiled(*case)
    walks = [
        binary
        for launch, binary in zip(made.lowered.recipe.launches, made.binaries, strict=True)
        if launch.family == "hopper_backward"
    ]
    assert len(walks) == (1 if case[-1] else 2)
    assert not made.refusals
    for binary in walks:
        assert binary.report.kinds == ("wgmma.mma_async",)
        assert fault_in(binary.report, "hopper_backward", SHARED_MEMORY["sm_90"]) is None
