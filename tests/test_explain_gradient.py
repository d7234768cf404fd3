"""What ``explain --grad`` says, pinned for softmax, a sink and sigmoid; ``ATTNC_PIN=1`` writes the texts anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import attnc
from attnc.cli import app

GOLDEN = Path(__file__).with_name("golden")
SPECS = {
    "softmax": "attention softmax { mask causal }",
    "sink": "attention sink { input z: real[H]  normalize softmax_sink(score, z[h]) }",
    "sigmoid": "attention sigmoid { input table: real[H, 2 * N]  normalize sigmoid(score + table[h, j - i + N]) }",
}


@pytest.mark.parametrize("name", SPECS)
def test_what_was_derived(name: str) -> None:
    text = attnc.loads(SPECS[name]).explain(64, 32, grad=True)
    pinned = GOLDEN / f"explain_grad_{name}.txt"
    if os.environ.get("ATTNC_PIN"):
        pinned.write_text(text, encoding="utf-8")
    assert text == pinned.read_text(encoding="utf-8")


def test_what_no_gradient_reaches() -> None:
    text = attnc.loads("attention a { input w: real[H] normalize detach(w[h]) * relu(score) }").explain(grad=True)
    assert "w: zero: the result does not depend on it, or only through a step function or `detach`\n" in text


def test_what_is_left_to_the_reference_and_why(tmp_path: Path) -> None:
    spec = tmp_path / "peaked.attn"
    spec.write_text("attention peaked {\n    normalize score / rowmax(abs(score))\n}\n")
    done = CliRunner().invoke(app, ["explain", str(spec), "--grad"])
    assert done.exit_code == 0
    assert "gradients come from the reference" in done.output
    assert "peaked.attn:2:30: the result depends on a row maximum" in done.output
