"""Triton's kernels against the reference, in Triton's interpreter: the same code a GPU runs, on small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import programs, sizes
from triton_cases import CASES, WIDTHS

from attnc.ir.printer import print_program
from attnc.ir.program import Program

pytest.importorskip("triton")
HERE = Path(__file__).resolve().parent
Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Ask]:
    """Asks the worker process to do something, and fails with what it says."""
    worker = subprocess.Popen(
        [sys.executable, str(HERE / "triton_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert worker.stdin is not None
    assert worker.stdout is not None

    def ask(action: str, **request: Any) -> Any:
        print(json.dumps({"action": action, **request}), file=worker.stdin, flush=True)
        answer = json.loads(worker.stdout.readline() or '{"error": "the worker died"}')
        if "error" in answer:
            pytest.fail(answer["error"], pytrace=False)
        return answer["ok"]

    yield ask
    worker.stdin.close()
    worker.wait(10)
    worker.stdout.close()


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_case_in_float32(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("compare", case=name, dtype="f32", seed=seed)


SPLIT = [case for case in CASES if not case.extents and case.all_sizes["N"] > 1]
UNSPLIT = {"two passes", "output of lanes", "output of a part", "projections"}
UNSPLIT |= {case.name for case in CASES if case.name.startswith("lists")}  # blocks are walked side by side


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", [case.name for case in SPLIT])
def test_few_rows_and_many_keys(interpreter: Ask, name: str, rows: int, seed: int) -> None:
    """All heads of a group in one tile, and the keys in parts, unless another pass or kernel has to follow."""
    parts = interpreter("few rows", case=name, dtype="f32", seed=seed, sizes={"B": 1, "M": rows, "N": 150})
    assert (parts == "no parts") == (name in UNSPLIT)
    if parts != "no parts":
        assert parts == ("3 parts" if name in ("spans by head", "own groups") else "3 parts, packed")


@pytest.mark.parametrize("name", ["causal", "alibi", "cog"])
def test_few_rows_in_half_precision(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("few rows", case=name, dtype="bf16", seed=seed, sizes={"B": 1, "H": 6, "M": 3, "N": 190})


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["causal", "sigmoid", "cog", "normalised and rotated", "output of lanes"])
def test_case_in_half_precision(interpreter: Ask, name: str, dtype: str, seed: int) -> None:
    interpreter("compare", case=name, dtype=dtype, seed=seed)


def test_unbounded_weights_do_not_overflow_float16(interpreter: Ask, seed: int) -> None:
    """Squares of scores pass 65504 before they are divided by N."""
    interpreter("compare", case="squares", dtype="f16", seed=seed)


@pytest.mark.parametrize("widths", WIDTHS, ids=lambda widths: "{}-{}".format(*widths))
def test_head_widths(interpreter: Ask, widths: tuple[int, int], seed: int) -> None:
    at = {"D": widths[0], "E": widths[1], "B": 1, "H": 2, "G": 1}
    interpreter("compare", case="causal", dtype="f32", seed=seed, sizes=at)


@pytest.mark.parametrize("empty", ["B", "M", "N"])
@pytest.mark.parametrize("name", ["causal", "two passes", "documents", "output of lanes"])
def test_nothing_there(interpreter: Ask, name: str, empty: str, seed: int) -> None:
    at = {empty: 0} if name != "documents" or empty == "B" else {"M": 0, "N": 0}
    interpreter("compare", case=name, dtype="f32", seed=seed, sizes=at)


@pytest.mark.parametrize("name", ["causal", "rope", "output of lanes"])
def test_strides(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("strides", case=name, seed=seed)


def test_tile_lists_follow_their_inputs(interpreter: Ask, seed: int) -> None:
    interpreter("lists", seed=seed)


def test_library_functions_are_accurate(interpreter: Ask) -> None:
    errors = interpreter("library")
    allowed = {"power": 2e-6, "fifth power": 2e-6, "inverse square": 1e-6, "tanh near 0, relative": 4e-7}
    wrong = {name: error for name, error in errors.items() if not error <= allowed.get(name, 5e-7)}
    assert not wrong, wrong


@settings(max_examples=25)
@given(program=programs(), at=sizes(), seed=st.integers(0, 2**31))
def test_random_programs(interpreter: Ask, program: Program, at: dict[str, int], seed: int) -> None:
    interpreter("program", program=print_program(program), sizes=at, seed=seed)
