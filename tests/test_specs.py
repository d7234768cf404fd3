"""The library of specs: each checks, sees whom its paper says, and computes what its paper says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from spec_cases import CASES, Case
from spec_formulas import FORMULAS, context, plain
from torch import Tensor

import attnc
from attnc.ir.build import apply, literal, reduce_keys, token
from attnc.ir.nodes import Kind
from attnc.reference import evaluate
from attnc.signature import size_value

SPECS = Path(__file__).resolve().parent.parent / "specs"
each_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])


def attentions() -> Iterator[str]:
    """The names under which specs can be loaded: the file's stem, with the attention where there are several."""
    for path in sorted(SPECS.glob("*.attn")):
        names = re.findall(r"^attention (\w+)", path.read_text(), re.MULTILINE)
        yield from (path.stem if len(names) == 1 else f"{path.stem}:{name}" for name in names)


def load(name: str, **constants: float) -> attnc.Op:
    stem, _, attention = name.partition(":")
    return attnc.load(SPECS / f"{stem}.attn", attention or None, constants=constants)


def make_inputs(case: Case, op: attnc.Op, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the spec declares: from the case where it matters, random reals elsewhere."""
    made = case.made(case.env, generator)
    sizes = {name: value for name, value in vars(case.env).items() if isinstance(value, int)}
    for source in op.program.inputs:
        if source.name not in made:
            assert source.kind is Kind.REAL, f"{case.name}: the case must make `{source.name}`"
            dims = [size_value(dim, sizes) for dim in source.dims]
            made[source.name] = torch.randn(dims, generator=generator, dtype=dtype)
    declared = {source.name for source in op.program.inputs}
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in made.items() if name in declared}


def visibility(op: attnc.Op, case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """``[B,H,M,N]``: what the spec's mask says, read off the reference by giving each key a value of its own."""
    e = case.env
    ones = reduce_keys("sum", apply("mul", literal(1.0), token("v")))
    body = replace(op.program.body, weight=literal(1.0), value=token("v"), output=ones)
    q, k = torch.zeros(e.B, e.H, e.M, e.D), torch.zeros(e.B, e.G, e.N, e.D)
    v = torch.eye(e.N).expand(e.B, e.G, e.N, e.N)
    seen = evaluate(replace(op.program, body=body), q, k, v, inputs, case.params, case.extents)
    assert isinstance(seen, Tensor)
    return seen.bool()


def brute_force(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The same from the case's own predicate."""
    e = case.env
    for name, x in inputs.items():
        setattr(e, name, x.tolist())
    points = product(range(e.B), range(e.H), range(e.N - e.M, e.N), range(e.N))
    return torch.tensor([case.visible(e, *point) for point in points]).view(e.B, e.H, e.M, e.N)


def tokens(case: Case, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    e = case.env
    q = torch.randn(e.B, e.H, e.M, e.D, generator=generator, dtype=dtype)
    k = torch.randn(e.B, e.G, e.N, e.D, generator=generator, dtype=dtype)
    v = torch.randn(e.B, e.G, e.N, e.E, generator=generator, dtype=dtype)
    return q * case.spread, k * case.spread, v


def test_every_spec_has_a_case() -> None:
    assert sorted(case.name for case in CASES) == sorted(attentions())
    assert FORMULAS.keys() <= {case.name for case in CASES}


@pytest.mark.parametrize("name", list(attentions()))
def test_spec_is_valid_as_it_stands(name: str) -> None:
    assert load(name).name == name.rpartition(":")[2]


@each_case
def test_who_sees_whom(case: Case, generator: torch.Generator) -> None:
    op = load(case.name, **case.constants)
    inputs = make_inputs(case, op, generator, torch.float32)
    torch.testing.assert_close(visibility(op, case, inputs), brute_force(case, inputs))


@each_case
def test_reference_computes_the_definition(case: Case, generator: torch.Generator) -> None:
    op = load(case.name, **case.constants)
    inputs = make_inputs(case, op, generator, torch.float64)
    q, k, v = tokens(case, generator, torch.float64)
    seen = brute_force(case, inputs)
    expected = FORMULAS.get(case.name, plain)(context(case.env, q, k, v, seen, inputs))
    found = op.reference(q, k, v, **inputs, **case.params, **case.extents)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@each_case
def test_cpu_kernel_computes_the_reference(
    case: Case, generator: torch.Generator, tolerance: Callable[[torch.dtype], dict[str, Any]]
) -> None:
    pytest.importorskip("tvm")
    op = load(case.name, **case.constants)
    inputs = make_inputs(case, op, generator, torch.float32)
    q, k, v = tokens(case, generator, torch.float32)
    arguments = {**inputs, **case.params, **case.extents}
    if not case.kernels:
        with pytest.raises(attnc.UnsupportedError):
            op(q, k, v, **arguments)
        return
    wide = {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in arguments.items()}
    expected = op.reference(q.double(), k.double(), v.double(), **wide)
    torch.testing.assert_close(op(q, k, v, **arguments), expected.float(), **tolerance(torch.float32))


# Published vectors: the keys of each row, inclusive ranges and single keys; `row:` before those of one row.
VECTORS = [
    ("neighborhood_1d:neighborhood", {"SIZE": 3}, 8, "0-2 0-2 1-3 2-4 3-5 4-6 5-7 5-7"),
    ("neighborhood_1d:neighborhood", {"SIZE": 4}, 8, "0-3 0-3 0-3 1-4 2-5 3-6 4-7 4-7"),
    ("neighborhood_1d:causal_neighborhood", {"SIZE": 3}, 8, "0 0-1 0-2 1-3 2-4 3-5 4-6 5-7"),
    (
        "neighborhood_1d:neighborhood",
        {"SIZE": 3, "DILATION": 2},
        9,
        "0,2,4 1,3,5 0,2,4 1,3,5 2,4,6 3,5,7 4,6,8 3,5,7 4,6,8",
    ),
    (
        "neighborhood_1d:neighborhood",
        {"SIZE": 3, "DILATION": 3},
        10,
        "0,3,6 1,4,7 2,5,8 0,3,6 1,4,7 2,5,8 3,6,9 1,4,7 2,5,8 3,6,9",
    ),
    ("gna:gna_1d", {"SIZE": 5, "STRIDE": 2}, 10, "0-4 0-4 1-5 1-5 3-7 3-7 5-9 5-9 5-9 5-9"),
    ("gna:gna_1d", {"SIZE": 4, "STRIDE": 4}, 10, "0-3 0-3 0-3 0-3 4-7 4-7 4-7 4-7 6-9 6-9"),
    ("gna:gna_1d_causal", {"SIZE": 4, "STRIDE": 2}, 10, "0 0-1 0-2 0-3 2-4 2-5 4-6 4-7 6-8 6-9"),
    ("gna:gna_1d_causal", {"SIZE": 4, "STRIDE": 4}, 10, "0 0-1 0-2 0-3 4 4-5 4-6 4-7 6-8 6-9"),
    ("power", {"BLOCK": 1, "LOCAL": 2}, 17, "0:0 1:0-1 5:0,1,3-5 16:0,8,12,14-16"),
    ("longlora:wrapped", {"SIZE": 4}, 16, "0:0,14-15 1:0-1,14-15 2:2 3:2-3 4:2-4 5:2-5 6:6 14:14 15:14-15"),
    ("longlora:cut", {"SIZE": 4}, 16, "0:0 1:0-1 2:2 3:2-3 4:2-4 5:2-5 6:6 14:14 15:14-15"),
    ("blockrank", {"BLOCK": 2}, 8, "0 0-1 0-2 0-3 0-1,4 0-1,4-5 0-6 0-7"),
    ("nats", {"W": 1}, 8, "0 0-1 0-2 0-3 0-1,3-4 0,4-5 0,4-6 0,4,6-7"),
]
VECTOR_INPUTS = {
    "blockrank": {"valid": torch.ones(1, 8, dtype=torch.bool)},
    "nats": {
        "kind": torch.tensor([[[0, 1, 2, 1, 0, 2, 1, 0]]]),
        "until": torch.tensor([[[0, 4, 4, 4, 4, 7, 7, 7]]]),
    },
}


def parse_rows(text: str) -> dict[int, set[int]]:
    rows = {}
    for number, word in enumerate(text.split()):
        row, _, keys = word.rpartition(":")
        ends = [part.split("-") for part in keys.split(",")]
        rows[int(row or number)] = {key for end in ends for key in range(int(end[0]), int(end[-1]) + 1)}
    return rows


@pytest.mark.parametrize(("name", "constants", "n", "text"), VECTORS)
def test_published_vectors(name: str, constants: dict[str, int], n: int, text: str) -> None:
    op = load(name, **constants)
    heads = 2 if name.startswith("longlora") else 1  # the second half of its heads is shifted
    case = Case(name, constants=constants, sizes={"B": 1, "H": heads, "G": 1, "M": n, "N": n})
    seen = visibility(op, case, VECTOR_INPUTS.get(name, {}))[0, -1]
    rows = parse_rows(text)
    assert {i: set(seen[i].nonzero()[:, 0].tolist()) for i in rows} == rows
