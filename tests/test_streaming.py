"""The plans themselves: which passes, statistics, accumulators and rescales a weight needs, and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from textwrap import dedent

import pytest
from strategies import (
    NORMALIZATIONS,
    I,
    J,
    K,
    Q,
    both,
    program,
    reading,
    relu,
    rowmax,
    rowsum,
    scaled,
    softmax,
    tapa,
)

from attnc.analyse.lower import lower_program_to_plan
from attnc.ir.build import apply, dot, literal
from attnc.ir.nodes import Node
from attnc.ir.specialize import specialize
from attnc.plan import NotLowerable, Plan

S = scaled(Q, K)
COUNT = rowsum(literal(1.0))


def mean(x: Node) -> Node:
    return apply("div", rowsum(x), COUNT)


def lower(weight: Node, score: Node = S) -> Plan:
    return lower_program_to_plan(specialize(program(score, None, weight), 64, 64))


def text_of(plan: Plan) -> str:
    """The printed plan without its first two lines (name and mask)."""
    return "".join(str(plan).splitlines(keepends=True)[2:])


def log_sum_exp(s: Node) -> Node:
    return apply("add", rowmax(s), apply("log", rowsum(apply("exp", apply("sub", s, rowmax(s))))))


SOFTMAX = """
    pass 1
        let t0 = dot(q, k) * 0.125
        max m0 = t0
        let t1 = exp(t0 - m0)
        sum l0 = t1  relative to m0
        acc a0 = t1 * v  relative to m0
    output a0 / l0
    lse m0 + log(l0)
"""

PLANS: dict[str, tuple[Callable[[Node], Node], str]] = {
    "softmax": (softmax, SOFTMAX),
    "softmax1": (
        NORMALIZATIONS["softmax1"],
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            let t1 = exp(t0 - max(m0, 0.0))
            sum l0 = t1  relative to max(m0, 0.0)
            acc a0 = t1 * v  relative to max(m0, 0.0)
        let t2 = exp(0.0 - max(m0, 0.0)) + l0
        output a0 / t2
        lse max(m0, 0.0) + log(t2)
        """,
    ),
    "sink": (
        NORMALIZATIONS["sink"],
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            let t1 = max(m0, sink[h])
            let t2 = exp(t0 - t1)
            sum l0 = t2  relative to t1
            acc a0 = t2 * v  relative to t1
        let t3 = exp(sink[h] - t1) + l0
        output a0 / t3
        lse t1 + log(t3)
        """,
    ),
    "sigmoid": (
        NORMALIZATIONS["sigmoid"],
        """
        pass 1
            acc a0 = sigmoid(dot(q, k) * 0.125 - log(real(N))) * v
        output a0
        """,
    ),
    "relu": (
        relu,
        """
        pass 1
            acc a0 = max(dot(q, k) * 0.125, 0.0) * v
        output a0
        """,
    ),
    "relu2": (
        NORMALIZATIONS["relu2"],
        """
        pass 1
            let t0 = max(dot(q, k) * 0.125, 0.0)
            acc a0 = t0 * t0 * v
        output a0
        """,
    ),
    "laplace": (
        NORMALIZATIONS["laplace"],
        """
        pass 1
            acc a0 = (erf((dot(q, k) * 0.125 - 0.7071067811865476) / 0.3989422804014327) + 1.0) * v
        output 0.5 * a0
        """,
    ),
    "cog": (
        NORMALIZATIONS["cog"],
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            let t1 = abs(t0)
            max m0 = t1
            let t2 = exp(t1 - m0)
            sum l0 = t2  relative to m0
            acc a0 = sign(t0) * t2 * v  relative to m0
        output a0 / l0
        lse m0 + log(l0)
        """,
    ),
    "affine": (
        lambda s: apply("add", apply("mul", reading("warmth"), softmax(s)), reading("slope")),
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            let t1 = exp(t0 - m0)
            sum l0 = t1  relative to m0
            acc a0 = t1 * v  relative to m0
            acc a1 = v
        output warmth[b, h, row] * a0 / l0 + slope[h] * a1
        lse m0 + log(l0)
        """,
    ),
    "inline": (
        NORMALIZATIONS["inline"],
        """
        pass 1
            sum l0 = 1.0
            sum l1 = dot(q, k)
            acc a0 = dot(q, k) * v
            acc a1 = v
        output 0.125 * a0 + (1.0 / l0 - 0.125 * l1 / l0) * a1
        """,
    ),
    "decay in the numerator": (
        NORMALIZATIONS["decayed"],
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            let t1 = exp(t0 - m0)
            sum l0 = t1  relative to m0
            acc a0 = t1 * exp(real(abs(i - j)) * -0.125) * v  relative to m0
        output a0 / l0
        lse m0 + log(l0)
        """,
    ),
    "linear": (
        lambda s: s,
        """
        pass 1
            acc a0 = dot(q, k) * v
        output 0.125 * a0
        """,
    ),
    "score over its sum": (
        lambda s: apply("div", s, rowsum(s)),
        """
        pass 1
            sum l0 = dot(q, k)
            acc a0 = dot(q, k) * v
        output a0 / l0
        """,
    ),
    "retention": (
        lambda s: apply("div", s, both("max", apply("detach", apply("abs", rowsum(s))), 1.0)),
        """
        pass 1
            sum l0 = dot(q, k)
            acc a0 = dot(q, k) * v
        output 0.125 * a0 / max(abs(0.125 * l0), 1.0)
        """,
    ),
    "relu of the centred score": (
        lambda s: relu(apply("sub", s, mean(s))),
        """
        pass 1
            sum l0 = dot(q, k)
            sum l1 = 1.0
        pass 2
            acc a0 = max(dot(q, k) * 0.125 - 0.125 * l0 / l1, 0.0) * v
        output a0
        """,
    ),
    "softmax of the normalised score": (
        lambda s: softmax(apply("div", s, apply("sqrt", mean(apply("mul", s, s))))),
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            sum l0 = dot(q, k) * dot(q, k)
            sum l1 = 1.0
        pass 2
            let t1 = sqrt(0.015625 * l0 / l1)
            let t2 = m0 / t1
            let t3 = exp(t0 / t1 - t2)
            sum l2 = t3
            acc a0 = t3 * v
        output a0 / l2
        lse t2 + log(l2)
        """,
    ),
    "softmax of the centred score": (lambda s: softmax(apply("sub", s, mean(s))), SOFTMAX),
    "softmax with a bias of the row": (
        lambda s: softmax(apply("add", s, reading("slope"))),
        SOFTMAX.replace("lse m0 +", "lse m0 + slope[h] +"),
    ),
    "softmax through its log-sum-exp": (lambda s: apply("exp", apply("sub", s, log_sum_exp(s))), SOFTMAX),
    "squared softmax": (
        lambda s: both("pow", softmax(s), 2.0),
        SOFTMAX.replace("t1 * v  relative to m0", "t1 ** 2.0 * v  relative to 2.0 * m0").replace("/ l0", "/ l0 ** 2.0"),
    ),
    "softmax where": (
        lambda s: both("where", both("le", J, I), softmax(s), 0.0),
        SOFTMAX.replace("t1 * v", "(t1 if j <= i else 0.0) * v"),
    ),
    "two exponentials": (
        lambda s: apply("mul", softmax(s), apply("exp", apply("sub", s, rowmax(s)))),
        SOFTMAX.replace("t1 * v  relative to m0", "t1 * t1 * v  relative to 2.0 * m0"),
    ),
    "threshold of a softmax": (
        lambda s: relu(apply("sub", softmax(s), both("div", 1.0, COUNT))),
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            let t1 = exp(t0 - m0)
            sum l0 = t1  relative to m0
            sum l1 = 1.0
        pass 2
            acc a0 = max(t1 / l0 - 1.0 / l1, 0.0) * v
        output a0
        lse m0 + log(l0)
        """,
    ),
    "softmax and a centred score": (
        lambda s: apply("add", softmax(s), relu(apply("sub", s, mean(s)))),
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            sum l0 = dot(q, k)
            sum l1 = 1.0
        pass 2
            let t1 = exp(t0 - m0)
            sum l2 = t1
            acc a0 = t1 * v
            acc a1 = max(t0 - 0.125 * l0 / l1, 0.0) * v
        output a0 / l2 + a1
        lse m0 + log(l2)
        """,
    ),
    "mean of the values": (
        lambda s: both("div", 1.0, COUNT),
        """
        pass 1
            sum l0 = 1.0
            acc a0 = v
        output a0 / l0
        """,
    ),
    "a temperature of unknown sign": (
        lambda s: apply("exp", apply("mul", reading("warmth"), apply("sub", s, rowmax(s)))),
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
        pass 2
            acc a0 = exp(warmth[b, h, row] * (t0 - m0)) * v
        output a0
        """,
    ),
    "a positive temperature": (
        lambda s: apply("exp", apply("mul", apply("exp", reading("warmth")), apply("sub", s, rowmax(s)))),
        """
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            let t1 = exp(warmth[b, h, row])
            acc a0 = exp(t1 * (t0 - m0)) * v  relative to t1 * m0
        output a0
        """,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan(name: str) -> None:
    weigh, expected = PLANS[name]
    assert text_of(lower(weigh(S))) == dedent(expected).lstrip()


def test_variance_is_not_computed_by_cancellation() -> None:
    centred = apply("sub", S, mean(S))
    plan = lower(softmax(apply("div", S, apply("sqrt", both("add", mean(apply("mul", centred, centred)), 1e-6)))))
    assert len(plan.passes) == 3
    assert [statistic.op for statistic in plan.passes[1].statistics] == ["sum"]


def test_a_sum_with_row_factors_that_are_known_stays_whole() -> None:
    plan = lower(both("add", apply("mul", S, reading("slope")), 0.5))
    assert text_of(plan) == "pass 1\n    acc a0 = (dot(q, k) * 0.125 * slope[h] + 0.5) * v\noutput a0\n"


def test_entropy_shares_the_statistics_of_the_weight() -> None:
    whole = program(S, None, softmax(S))
    output = apply("mul", whole.body.output, rowsum(apply("mul", softmax(S), S)))
    plan = lower_program_to_plan(specialize(replace(whole, body=replace(whole.body, output=output)), 64, 64))
    assert text_of(plan) == dedent("""\
        pass 1
            let t0 = dot(q, k) * 0.125
            max m0 = t0
            let t1 = exp(t0 - m0)
            sum l0 = t1  relative to m0
            sum l1 = t1 * dot(q, k)  relative to m0
            acc a0 = t1 * v  relative to m0
        output a0 / l0 * (0.125 * l1 / l0)
        lse m0 + log(l0)
        """)


def test_two_dot_products_in_one_score() -> None:
    plan = lower(softmax(tapa()), tapa())
    (only,) = plan.passes
    assert [s.name for s in only.statistics] == ["m0", "l0"]
    assert plan.tokens == ()
    assert "dot(q[0:32], k[0:32])" in str(plan)
    assert "dot(q[32:64], k[32:64])" in str(plan)


def test_widths_need_not_be_known() -> None:
    plan = lower_program_to_plan(program(S, None, softmax(S)))
    assert plan.family == "stream"
    assert [accumulator.name for accumulator in plan.passes[0].accumulators] == ["a0"]


def test_the_reason_for_another_pass_is_noted() -> None:
    assert lower(relu(apply("sub", S, mean(S)))).notes == (
        "`max(dot(q, k) * 0.125 - 0.125 * l0 / l1, 0.0)` needs the final l0 and l1, so these take a pass of their own",
    )


def test_a_value_that_depends_on_a_row_statistic_is_refused() -> None:
    value = both("add", apply("mul", apply("exp", apply("sub", dot(K, K), rowmax(S))), K), 1.0)
    with pytest.raises(NotLowerable, match="value"):
        lower_program_to_plan(specialize(program(S, None, softmax(S), apply("exp", value)), 64, 64))
