"""Calls that do not fit their spec: each mistake is named, expected and found, by one type of error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_backend import installed

import attnc
from attnc import targets
from attnc.backends.protocol import Target
from attnc.errors import ArgumentError

TEXT = """
attention everything {
    input slope: real[H]
    input doc: int[B, N]
    input keep: bool[B, N]
    input table: real[H, 2*W - 1]
    const W = 4
    param temperature: real = 1.0
    param reach: int
    space (y: Y, x: X)
    mask  abs(i.x - j.x) < W and doc[b, j] == doc[b, max(i, 0)] and keep[b, j] and j < reach
    score dot(q, k) * temperature + slope[h] + table[h, j.x - i.x + W - 1]
}
"""


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[attnc.Op]:
    with installed(monkeypatch, tmp_path):
        yield attnc.loads(TEXT)


def call(op: Any, **changes: Any) -> Any:
    """A right call (B=2, H=4, G=2, M=6, N=6, D=8, E=8), with some arguments changed or (``...``) left out."""
    given = {
        "q": torch.randn(2, 4, 6, 8),
        "k": torch.randn(2, 2, 6, 8),
        "v": torch.randn(2, 2, 6, 8),
        "slope": torch.randn(4),
        "doc": torch.zeros(2, 6, dtype=torch.long),
        "keep": torch.ones(2, 6, dtype=torch.bool),
        "table": torch.randn(4, 7),
        "reach": 6,
        "X": 3,
    } | changes
    given = {name: value for name, value in given.items() if value is not ...}
    return op(given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_a_right_call_passes(op: attnc.Op) -> None:
    assert call(op).shape == (2, 4, 6, 8)
    assert call(op, Y=2, X=...).shape == (2, 4, 6, 8)
    assert call(op, temperature=2, slope=torch.randn(4, dtype=torch.float64)).isfinite().all()


WRONG = [
    ({"q": torch.randn(4, 6, 8)}, "q", "`q` is [B, H, M, D], found shape [4, 6, 8]"),
    ({"q": [1.0]}, "q", "`q` must be a tensor, found list"),
    (
        {"q": torch.ones(2, 4, 6, 8, dtype=torch.int64)},
        "q",
        "takes bfloat16, float16, float32, float64, found torch.int64",
    ),
    ({"k": torch.randn(2, 2, 6, 8).double()}, "k", "`k` must have the dtype of q, torch.float32, found torch.float64"),
    ({"k": torch.randn(2, 2, 6, 9)}, "k", "dimension 3 of `k` is D, 8 by q, found 9"),
    ({"k": torch.randn(3, 2, 6, 8)}, "k", "dimension 0 of `k` is B, 2 by q, found 3"),
    ({"v": torch.randn(2, 2, 5, 8)}, "v", "dimension 2 of `v` is N, 6 by k, found 5"),
    ({"v": torch.randn(2, 4, 6, 8)}, "v", "dimension 1 of `v` is G, 2 by k, found 4"),
    ({"v": torch.randn(2, 2, 6, 0)}, "v", "`v` has no elements along its last dimension"),
    (
        {"k": torch.randn(2, 3, 6, 8), "v": torch.randn(2, 3, 6, 8)},
        "k",
        "the 4 heads of q cannot be shared out evenly among the 3",
    ),
    ({"k": torch.randn(2, 0, 6, 8), "v": torch.randn(2, 0, 6, 8)}, "k", "`k` has no heads, q has 4"),
    ({"k": torch.randn(2, 2, 6, 8, device="meta")}, "k", "`k` is on meta, q is on cpu"),
    ({"slope": ...}, "slope", "missing input `slope`, real[H]"),
    ({"slopes": torch.randn(4)}, "slopes", "unknown argument `slopes` (did you mean `slope`?)"),
    ({"slope": torch.randn(5)}, "slope", "`slope` is declared real[H], here [4], found shape [5]"),
    ({"slope": 1.0}, "slope", "`slope` must be a tensor, found float"),
    ({"slope": torch.ones(4, dtype=torch.int64)}, "slope", "`slope` (declared real[H]) takes"),
    ({"slope": torch.randn(4, device="meta")}, "slope", "`slope` is on meta, q is on cpu"),
    ({"slope": torch.randn(4).to_sparse()}, "slope", "`slope` must be a dense tensor"),
    ({"doc": torch.randn(2, 6)}, "doc", "`doc` (declared int[B, N]) takes int32, int64, found torch.float32"),
    ({"keep": torch.ones(2, 6, dtype=torch.long)}, "keep", "`keep` (declared bool[B, N]) takes bool"),
    ({"table": torch.randn(4, 8)}, "table", "here [4, 7], found shape [4, 8]"),
    ({"temperature": float("nan")}, "temperature", "parameter `temperature` must be finite, found nan"),
    ({"temperature": float("inf")}, "temperature", "must be finite"),
    ({"temperature": torch.tensor(1.0)}, "temperature", "takes a number, found a tensor; declare it `input`"),
    ({"temperature": "1"}, "temperature", "parameter `temperature` is real, found '1'"),
    ({"reach": ...}, "reach", "missing parameter `reach`, of kind int"),
    ({"reach": 1.5}, "reach", "parameter `reach` is int, found 1.5"),
    ({"reach": True}, "reach", "parameter `reach` is int, found True"),
    ({"reach": 2**31}, "reach", "must fit 32 bits"),
    ({"X": ...}, "X", "at most one extent may be left out, missing are `Y`, `X`"),
    ({"X": 4}, "Y", "the space is Y * X=4 tokens, but there are N = 6 keys"),
    ({"X": 3, "Y": 3}, "N", "the space is Y=3 * X=3 tokens, but there are N = 6 keys"),
    ({"X": 2.0}, "X", "extent `X` takes an int, found 2.0"),
    ({"X": -3}, "X", "extent `X` cannot be negative, found -3"),
]


@pytest.mark.parametrize(("changes", "argument", "message"), WRONG, ids=[message[:50] for _, _, message in WRONG])
@pytest.mark.parametrize("how", ["kernel", "reference"])
def test_what_does_not_fit_is_named(
    op: attnc.Op, how: str, changes: dict[str, Any], argument: str, message: str
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)) as caught:
        call(op if how == "kernel" else op.reference, **changes)
    assert caught.value.argument == argument


def test_mistakes_are_found_while_tracing_too(op: attnc.Op) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, k, v = torch.empty(1, 2, 3, 8), torch.empty(1, 2, 3, 8), torch.empty(1, 1, 3, 8)
        with pytest.raises(ArgumentError, match="dimension 1 of `v` is G, 2 by k, found 1"):
            attnc.loads("attention traced {}")(q, k, v)


def test_groups_out_of_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with installed(monkeypatch, tmp_path):
        op = attnc.loads("attention shared { groups h }")
        with pytest.raises(ArgumentError, match="`groups` gives head 2 of q the head 2 of k, which has 2"):
            op(torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8))
        interleaved = attnc.loads("attention interleaved { groups h % G }")
        assert interleaved(torch.randn(1, 5, 3, 8), *(torch.randn(1, 2, 3, 8),) * 2).shape == (1, 5, 3, 8)


def test_a_spec_that_is_not_text() -> None:
    with pytest.raises(ArgumentError, match="a spec is a str, found bytes"):
        attnc.loads(b"attention full {}")  # type: ignore[arg-type]


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(attnc.TargetError, match="no kernels for tensors on `meta`"):
        targets.target_of_device("meta")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("cpuu", "unknown target `cpuu` (did you mean `cpu`?)"),
        ("cuda:sm90", "unknown target `cuda:sm90` (did you mean `cuda:sm_90`?)"),
        ("hip:", "unknown target `hip:`"),
    ],
)
def test_unknown_targets(target: str, message: str) -> None:
    with pytest.raises(attnc.TargetError, match=re.escape(message)):
        targets.parse_target(target)


def test_known_targets() -> None:
    assert [str(targets.parse_target(name)) for name in ("cpu", "cuda:sm_80", "hip:gfx942", "hip")] == [
        "cpu",
        "cuda:sm_80",
        "hip:gfx942",
        "hip:gfx942",
    ]
    assert all(targets.parse_target(name) for name in targets.KNOWN)


def test_unknown_and_missing_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(attnc.TargetError, match=re.escape("unknown backend `trition` (did you mean `triton`?)")):
        targets.backend_for(Target("cpu"), "trition")
    monkeypatch.setattr(targets, "PACKAGES", {"tvm": ("no_such_module", "attnc[cpu]")})
    with pytest.raises(
        attnc.TargetError, match=r"needs the package `no_such_module`: pip install 'attnc\[cpu\]'"
    ) as caught:
        targets.backend_for(Target("cpu"))
    assert caught.value.missing
