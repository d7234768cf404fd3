"""What ``explain`` says of a few plans."""

from __future__ import annotations

from strategies import I, J, K, Q, both, program, reading, relu, rotated, rowsum, scaled

from attnc.analyse.lower import lower_program_to_plan
from attnc.analyse.scan import is_separable
from attnc.explain import explain
from attnc.ir.build import apply, dot, literal
from attnc.ir.nodes import Node
from attnc.ir.specialize import specialize

CAUSAL_SOFTMAX = """\
test: 1 pass over the keys (stream)

In the pass
  let t0 = dot(q, k) * 0.125
  m0: the largest t0
  let t1 = exp(t0 - m0)
  l0: the sum of t1; when c = m0 grows, what is summed so far is multiplied by exp(c(old) - c(new))
  a0: the sum of t1 * v, a vector of 32; when c = m0 grows, what is summed so far is multiplied by exp(c(old) - c(new))
  no result depends on m0: a kernel may let it lag behind

For each row, after the last key
  output = a0 / l0
  log-sum-exp = m0 + log(l0)
  a row that sees no key: output 0, log-sum-exp -inf

State of a row
  2 numbers, a vector of 32

Which keys a row walks over
  mask: j <= i
  rows i_lo to i_hi walk over the keys from 0 to before i_hi + 1
  a tile of them and the keys j_lo to j_hi is skipped where i_hi < j_lo
  it needs no mask where i_lo >= j_hi

On NVIDIA Hopper, in 16 bits
  kernels with TMA and warp specialisation, unless the compiler's report is against them

Not possible, and why
  linear time: `exp(dot(q, k) * 0.125 - m0)` is not a function of the query times one of the key times a dot product, \
so it is computed pair by pair
"""


def explained(score: Node, weight: Node | None = None, mask: Node | None = None) -> str:
    return explain(lower_program_to_plan(specialize(program(score, mask, weight), 64, 32)))


def test_causal_softmax() -> None:
    assert explained(scaled(Q, K), mask=both("le", J, I)) == CAUSAL_SOFTMAX


def test_two_passes_with_token_maps_and_a_mask_of_data() -> None:
    score = dot(rotated(Q, I), rotated(K, J))
    mean = apply("div", rowsum(score), rowsum(literal(1.0)))
    text = explained(score, relu(apply("sub", score, mean)), apply("eq", reading("doc"), reading("seg")))
    assert text.startswith("test: 2 passes over the keys (twopass)\n")
    assert "Once a token, before the passes\n  q_map0[B, H, M, 64] = rope(q, real(i), 10000.0, 64)\n" in text
    assert "l1: how many keys are visible" in text
    assert text.count("nothing is rescaled") == 2
    assert "needs the final l0 and l1, so these take a pass of their own" in text
    assert "classified on the device" in text
    assert "no log-sum-exp" in text


def test_linear_attention_says_what_is_missing() -> None:
    assert "a carried state could sum these terms, but there are no kernels for that yet" in explained(
        dot(Q, K), dot(Q, K)
    )


def test_separable_terms() -> None:
    decay = apply("exp", apply("sub", reading("warmth"), reading("weigh")))
    assert is_separable(apply("mul", dot(Q, K), decay))
    assert is_separable(apply("div", apply("neg", dot(Q, K)), reading("weigh")))
    assert not is_separable(apply("mul", dot(Q, K), dot(Q, K)))
    assert not is_separable(apply("exp", dot(Q, K)))
    assert not is_separable(apply("mul", dot(Q, K), apply("exp", reading("bias"))))
