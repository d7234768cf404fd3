"""Bundles: written whole, verified when opened, run without a compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_backend import FakeBackend, installed
from torch.testing import assert_close

import attnc
from attnc.cache import digests

TEXT = """
attention biased {
    input slope: real[H]
    input doc: int[B, N]
    mask  doc[b, j] == doc[b, max(i, 0)]
    score dot(q, k) * scale + slope[h] * (j - i)
}
attention plain { mask causal }
attention sigmoids { normalize sigmoid(score) }
"""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    with installed(monkeypatch, tmp_path / "cache") as fake:
        yield fake


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "three.attn"
    path.write_text(TEXT)
    return path


def arguments(d: int = 64, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    q, k, v = (torch.randn(2, 4, 5, d, dtype=dtype) for _ in "qkv")
    return {"q": q, "k": k, "v": v, "slope": torch.randn(4), "doc": torch.randint(0, 2, (2, 5))}


def test_a_bundle_runs_what_was_compiled(backend: FakeBackend, spec: Path, tmp_path: Path) -> None:
    names: list[str] = []
    attnc.compile(f"{spec}:biased", "cpu", tmp_path / "out", progress=names.append)
    assert names == ["f32-d64-e64", "bf16-d64-e64", "f32-d128-e128", "bf16-d128-e128"]
    built = len(backend.built)
    op = attnc.load(tmp_path / "out")
    for d, dtype in ((64, torch.float32), (128, torch.bfloat16)):
        given = arguments(d, dtype)
        assert_close(op(**given), op.reference(**given))
    assert len(backend.built) == built == 4
    assert (tmp_path / "out" / "spec.attn").read_text() == TEXT
    assert (tmp_path / "out" / "sources" / "f32-d64-e64" / "kernel.py").exists()


def test_inputs_are_widened_to_what_the_kernels_take(backend: FakeBackend, spec: Path, tmp_path: Path) -> None:
    op = attnc.compile(spec, "cpu", tmp_path / "out", "biased", head_dims=[8], dtypes=["f32"])
    given = arguments(8)
    narrow = given | {"slope": given["slope"].bfloat16(), "doc": given["doc"].int()}
    assert_close(op(**narrow), op.reference(**narrow))
    with pytest.raises(attnc.BundleError, match=r"no kernel f32-d8-e8 with inputs \['f64', 'i64'\]"):
        op(**given | {"slope": given["slope"].double()})


def test_the_log_sum_exp_is_there_if_asked_for(backend: FakeBackend, spec: Path, tmp_path: Path) -> None:
    q = torch.randn(1, 2, 3, 8)
    without = attnc.compile(spec, "cpu", tmp_path / "a", "plain", head_dims=[8])
    with pytest.raises(attnc.ArgumentError, match="compile it with --lse"):
        without(q, q, q, return_lse=True)
    op = attnc.compile(spec, "cpu", tmp_path / "b", "plain", head_dims=[8], lse=True)
    assert_close(op(q, q, q, return_lse=True), op.reference(q, q, q, return_lse=True))
    with pytest.raises(attnc.ArgumentError, match="`sigmoids` has no log-sum-exp"):
        attnc.compile(spec, "cpu", tmp_path / "c", "sigmoids", lse=True)


def test_widths_that_suit_a_spec_are_found(backend: FakeBackend, tmp_path: Path) -> None:
    spec = tmp_path / "latent.attn"
    spec.write_text("attention latent { value k[0:512] }")
    attnc.compile(spec, "cpu", tmp_path / "out", dtypes=["f32"])
    kernels = json.loads((tmp_path / "out" / "manifest.json").read_text())["kernels"]
    assert [entry["widths"] for entry in kernels] == [[576, 512]]


def test_a_missing_variant_says_what_there_is(backend: FakeBackend, spec: Path, tmp_path: Path) -> None:
    op = attnc.compile(spec, "cpu", tmp_path / "out", "plain", head_dims=[(16, 8)], dtypes=["f32"])
    q = torch.randn(1, 1, 2, 32)
    with pytest.raises(attnc.BundleError, match=r"no kernel f32-d32-e32 with inputs .*it has f32-d16-e8"):
        op(q, q, q)


def test_another_target_is_refused(backend: FakeBackend, spec: Path, tmp_path: Path) -> None:
    op = attnc.compile(spec, "cuda:sm_80", tmp_path / "out", "plain", head_dims=[8])
    q = torch.randn(1, 1, 2, 8, dtype=torch.bfloat16)
    with pytest.raises(attnc.BundleError, match="is for target `cuda:sm_80`, the tensors are on `cpu`"):
        op(q, q, q)


def test_a_bundle_replaces_a_bundle_but_nothing_else(backend: FakeBackend, spec: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"name": "plain", "head_dims": [8], "dtypes": ["f32"]}
    attnc.compile(spec, "cpu", tmp_path / "out", **options)
    before = digests(tmp_path / "out")
    attnc.compile(spec, "cpu", tmp_path / "out", **options)
    assert digests(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(attnc.BundleError, match="exists and is no bundle"):
        attnc.compile(spec, "cpu", tmp_path / "mine", **options)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def damage_file(where: Path) -> None:
    next((where / "kernels").rglob("plan.pickle")).write_text("something else")


def remove_file(where: Path) -> None:
    (where / "program.txt").unlink()


def cut_manifest(where: Path) -> None:
    path = where / "manifest.json"
    path.write_text(path.read_text()[:100])


def set_manifest(name: str, value: object) -> Any:
    def change(where: Path) -> None:
        path = where / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


def empty_folder(where: Path) -> None:
    shutil.rmtree(where)
    where.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_file, "is damaged: kernels/f32-d8-e8/plan.pickle is missing or was changed"),
        (remove_file, "is damaged: program.txt is missing or was changed"),
        (cut_manifest, "is damaged: manifest.json"),
        (set_manifest("format", 99), "has format 99, written by attnc .* reads formats up to 2"),
        (set_manifest("format", "x"), "has format x"),
        (set_manifest("kind", "parcel"), "is no bundle: its manifest.json is of something else"),
        (set_manifest("kernels", [{}]), "is damaged: manifest.json"),
        (set_manifest("files", 3), "is damaged: manifest.json"),
        (empty_folder, "is no bundle: it has no manifest.json"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_wrong_with_a_bundle_is_said(
    backend: FakeBackend, spec: Path, tmp_path: Path, change: Any, message: str
) -> None:
    attnc.compile(spec, "cpu", tmp_path / "out", "plain", head_dims=[8], dtypes=["f32"])
    change(tmp_path / "out")
    with pytest.raises(attnc.BundleError, match=message):
        attnc.load(tmp_path / "out")


def test_constants_of_a_bundle_are_settled(backend: FakeBackend, spec: Path, tmp_path: Path) -> None:
    attnc.compile(spec, "cpu", tmp_path / "out", "plain", head_dims=[8], dtypes=["f32"])
    with pytest.raises(attnc.ArgumentError, match="its constants and its attention are settled"):
        attnc.load(tmp_path / "out", W=3)


def test_a_damaged_cache_entry_is_a_miss(backend: FakeBackend, tmp_path: Path) -> None:
    from attnc.cache import kernels

    q = torch.randn(1, 1, 2, 8)
    for expected in (1, 2):
        attnc.loads("attention full {}")(q, q, q)
        assert len(backend.built) == expected
        for path in (tmp_path / "cache").rglob("*.*"):
            if path.is_file():
                path.write_bytes(b"garbage")
        for path in (tmp_path / "cache" / "programs").iterdir():
            path.write_bytes(b"garbage\ngarbage")
        kernels.clear()
        from attnc import library

        library._registered.clear()
        library._library = torch.library.Library(library.NAMESPACE, "FRAGMENT")


@pytest.mark.slow
def test_a_bundle_runs_in_a_process_without_compilers(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    spec = tmp_path / "capped.attn"
    spec.write_text("attention capped { mask causal score softcap(dot(q, k) * scale, 5) }")
    attnc.compile(spec, "cpu", tmp_path / "out", head_dims=[16], dtypes=["f32"])
    program = """
import sys
import torch, attnc
op = attnc.load(sys.argv[1])
q, k, v = (torch.randn(2, 4, 33, 16) for _ in "qkv")
torch.testing.assert_close(op(q, k, v), op.reference(q, k, v), rtol=1e-4, atol=1e-5)
assert not {"tvm", "triton", "lark"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
