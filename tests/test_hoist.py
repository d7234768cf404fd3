"""What is computed once a token, and where the passes read it from."""

from __future__ import annotations

from dataclasses import replace

from strategies import D, I, J, K, Q, V, both, l2norm, program, reading, rmsnorm, rotated, rowsum, scaled, softmax

from attnc.analyse.lower import lower_program_to_plan
from attnc.ir.build import apply, dot, index, literal, matvec, read, size
from attnc.ir.nodes import Input, Kind, Node
from attnc.ir.printer import expression
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.plan import Plan

GAIN = Input("gain", Kind.REAL, (size("H"), D))
EMBEDDING = Input("embedding", Kind.REAL, (size("N"), D))


def lower(program: Program) -> Plan:
    return lower_program_to_plan(specialize(program, 8, 8))


def of_score(score: Node, *inputs: Input, value: Node = V) -> Plan:
    return lower(program(score, None, softmax(score), value, extra=inputs))


def maps(plan: Plan) -> dict[str, str]:
    """The token maps, as ``name[dims]: expression``."""
    return {
        f"{t.result.name}[{', '.join(map(expression, t.result.dims))}]": expression(t.expression) for t in plan.tokens
    }


def score_of(plan: Plan) -> str:
    return expression(plan.passes[0].statistics[0].term)


def test_raw_tokens_need_no_map() -> None:
    assert of_score(scaled(Q, K)).tokens == ()


def test_rope_of_both_sides() -> None:
    plan = of_score(dot(rotated(Q, I), rotated(K, J)))
    assert maps(plan) == {
        "q_map0[B, H, M, 8]": "rope(q, real(i), 10000.0, 8)",
        "k_map0[B, G, N, 8]": "rope(k, real(j), 10000.0, 8)",
    }
    assert score_of(plan) == "dot(q_map0[b, h, row, :], k_map0[b, g, j, :])"
    assert [(t.side, t.per) for t in plan.tokens] == [("query", "H"), ("key", "G")]


def test_a_norm_without_gain_is_a_number_a_token() -> None:
    plan = of_score(dot(l2norm(Q), l2norm(K)))
    assert maps(plan) == {
        "q_map0[B, H, M]": "rsqrt(max(dot(q, q), 1e-24))",
        "k_map0[B, G, N]": "rsqrt(max(dot(k, k), 1e-24))",
    }
    assert score_of(plan) == "dot(q, k) * q_map0[b, h, row] * k_map0[b, g, j]"


def test_a_norm_with_gain_is_a_vector_a_token() -> None:
    gain = read(GAIN, (index("h"), None))
    plan = of_score(dot(Q, apply("mul", rmsnorm(K, D), gain)), GAIN)
    (only,) = plan.tokens
    assert only.per == "H"
    assert score_of(plan) == "dot(q, k_map0[b, h, j, :])"


def test_a_temperature_of_the_query_stays_a_factor() -> None:
    plan = of_score(dot(apply("mul", Q, reading("warmth")), K))
    assert plan.tokens == ()
    assert score_of(plan) == "dot(q, k) * warmth[b, h, row]"


def test_a_temperature_of_the_value_goes_into_the_term() -> None:
    plan = of_score(scaled(Q, K), value=apply("mul", V, reading("weigh")))
    assert plan.tokens == ()
    (accumulator,) = plan.passes[0].accumulators
    assert accumulator.value is specialize(program(), 8, 8).body.value
    assert expression(accumulator.term).endswith("* weigh[b, g, j]")


def test_query_stands_before_key() -> None:
    assert score_of(of_score(dot(K, Q))) == "dot(q, k)"


def test_scalars_of_one_side_are_taken_whole() -> None:
    distance = apply("sub", dot(Q, K), both("mul", apply("add", dot(Q, Q), dot(K, K)), 0.5))
    plan = of_score(distance)
    assert set(maps(plan).values()) == {"dot(q, q)", "dot(k, k)"}


def test_a_dot_product_with_a_table_reads_a_map() -> None:
    plan = of_score(dot(Q, read(EMBEDDING, (J, None))), EMBEDDING)
    assert maps(plan) == {"k_map0[B, G, N, 8]": "embedding[j, :]"}
    assert score_of(plan) == "dot(q, k_map0[b, g, j, :])"


def test_prologue_of_the_value() -> None:
    plan = of_score(scaled(Q, K), value=rotated(V, J))
    (accumulator,) = plan.passes[0].accumulators
    assert expression(accumulator.value) == "k_map0[b, g, j, :]"


def test_a_mask_reads_norms_from_maps() -> None:
    plan = lower(program(mask=both("gt", dot(K, K), 1.0)))
    assert expression(plan.mask) == "k_map0[b, g, j] > 1.0"


def test_the_epilogue_has_lanes_only() -> None:
    projection = read(Input("w", Kind.REAL, (size("H"), D, size("E"))), (index("h"), None, None))
    base = program()
    gate = apply("sigmoid", matvec(Q, projection))
    output = apply("add", apply("mul", gate, base.body.output), Q)
    body = replace(base.body, output=output)
    plan = lower(replace(base, inputs=(projection.input,), body=body))
    assert maps(plan) == {
        "q_map0[B, H, M, 8]": "sigmoid(matmul(q, w[h, :, :]))",
        "q_map1[B, H, M, 8]": "q",
    }
    assert expression(plan.output) == "q_map0[b, h, row, :] * ($a0[:8] / $l0) + q_map1[b, h, row, :]"


def test_an_open_gate_is_read_as_it_is() -> None:
    plan = lower(program(gate=apply("sigmoid", reading("gate"))))
    assert plan.tokens == ()


def test_names_do_not_clash_with_inputs() -> None:
    taken = Input("q_map0", Kind.REAL, (size("H"),))
    score = apply("mul", dot(rotated(Q, I), K), read(taken, (index("h"),)))
    plan = of_score(score, taken)
    assert [t.result.name for t in plan.tokens] == ["q_map1"]


def test_one_map_for_equal_expressions() -> None:
    score = apply("add", dot(rotated(Q, I), K), rowsum(dot(rotated(Q, I), K)))
    assert len(of_score(score).tokens) == 1
    assert len(of_score(apply("mul", score, literal(2.0))).tokens) == 1
