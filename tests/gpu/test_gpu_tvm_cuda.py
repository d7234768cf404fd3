"""TVM's kernels on a GPU, from bundles that ``prepare_tvm_bundles.py`` made elsewhere; TVM is not imported here.

Beside the reference in float64, with fresh data, at sizes that no tile divides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import spec_cases
import torch
import triton_cases
from test_gpu_numerics import larger
from test_specs import load, make_inputs, tokens
from torch import Tensor
from triton_cases import Data, make

from attnc.backends.protocol import Kernel, Target
from attnc.backends.tvm import TvmBackend
from attnc.targets import target_of_device

sys.path.insert(0, str(Path(__file__).resolve().parent))

from prepare_tvm_bundles import FOLDER

pytestmark = pytest.mark.gpu
INDEX = FOLDER / "index.json"


@cache
def index() -> list[dict[str, Any]]:
    return json.loads(INDEX.read_text())["entries"] if INDEX.exists() else []


def entries(kind: str) -> list[Any]:
    found = [entry for entry in index() if entry["kind"] == kind and "folder" in entry]
    return [
        pytest.param(entry, id="-".join((entry["name"], entry["dtype"], "x".join(map(str, entry["widths"])))))
        for entry in sorted(found, key=lambda entry: int(entry["folder"]))
    ]


@pytest.fixture(autouse=True)
def _prepared() -> None:
    if not INDEX.exists():
        pytest.skip(f"no bundles in {FOLDER}")
    if json.loads(INDEX.read_text())["arch"] != target_of_device("cuda").arch:
        pytest.skip("the bundles are for another GPU")


@cache
def kernel_of(folder: str) -> Kernel:
    where = FOLDER / folder
    return TvmBackend().load(where, json.loads((where / "manifest.json").read_text()))


class Prepared(Data):
    """The arguments of one call of a kernel from a folder."""

    folder: str = ""

    def kernel(self, target: Target) -> Kernel:
        return kernel_of(self.folder)


def prepared(name: str, dtype: str, widths: tuple[int, int], seed: int, **sizes: int) -> Prepared:
    entry = next(
        e for e in index() if (e["kind"], e["name"], e["dtype"], tuple(e["widths"])) == ("case", name, dtype, widths)
    )
    case = triton_cases.find(name).at(D=widths[0], E=widths[1])
    case = case.at(**sizes) if sizes else larger(case)
    data = make(case, dtype, seed, "cuda")
    made = Prepared(data.case, data.program, data.q, data.k, data.v, data.inputs)
    made.folder = entry["folder"]
    return made


def here() -> Target:
    return target_of_device("cuda")


@pytest.mark.parametrize("entry", entries("case"))
def test_case(entry: dict[str, Any], seed: int) -> None:
    prepared(entry["name"], entry["dtype"], tuple(entry["widths"]), seed).compare(here())


@pytest.mark.parametrize("entry", entries("spec"))
def test_spec(entry: dict[str, Any], generator: torch.Generator) -> None:
    case = next(one for one in spec_cases.CASES if one.name == entry["name"])
    op = load(case.name, **case.constants)
    inputs = make_inputs(case, op, generator, torch.float32)
    q, k, v = tokens(case, generator, torch.float32)
    expected = op.reference(q.double(), k.double(), v.double(), **inputs, **case.params, **case.extents)
    out = torch.full(expected.shape, float("nan"), device="cuda")
    given = [inputs[source.name].cuda() for source in op.program.inputs]
    params = [case.params[parameter.name] for parameter in op.program.parameters]
    extents = [case.extents[name] for name in op.program.extents]
    kernel_of(entry["folder"]).run(q.cuda(), k.cuda(), v.cuda(), given, params, extents, out, None)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=3e-5, atol=3e-5)


SHAPES = [(1, 1), (1, 1000), (127, 129), (128, 128), (300, 5), (64, 2048), (1100, 1100)]


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize(("M", "N"), SHAPES)
def test_sizes(M: int, N: int, dtype: str, seed: int) -> None:
    prepared("causal", dtype, (128, 128), seed, B=3, H=12, G=3, M=M, N=N).compare(here())


@pytest.mark.parametrize("empty", ["B", "M", "N"])
def test_nothing_there(empty: str, seed: int) -> None:
    prepared("causal", "bf16", (32, 16), seed, **{empty: 0}).compare(here())


@pytest.mark.parametrize("name", ["causal", "rope", "documents", "output of lanes"])
def test_strides(name: str, seed: int) -> None:
    data = prepared(name, "bf16", (32, 16), seed)
    q, k, v = data.q, data.k, data.v
    data.q = q.transpose(1, 2).contiguous().transpose(1, 2)
    data.k = torch.stack((k, k), -1).flatten(-2)[..., ::2]
    data.v = torch.cat((v.new_zeros(*v.shape[:-1], 3), v), -1)[..., 3:]
    data.compare(here())
    expected, _ = data.expected()
    out = q.new_full((*q.shape[:2], 2 * q.shape[2], 2 * v.shape[-1]), float("nan"))
    data.run(here(), out[..., ::2, ::2])
    torch.testing.assert_close(out[..., ::2, ::2].double(), expected, rtol=3e-2, atol=3e-2)
    assert out[..., 1::2, :].isnan().all()


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).float() for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q.float(), k, v, is_causal=True)


def test_a_long_sequence_against_sdpa(seed: int) -> None:
    """16k keys in bf16, where the order of summation shows; no memory in proportion to M x N."""
    data = prepared("causal", "bf16", (128, 128), seed, B=1, H=4, G=2, M=16384, N=16384)
    data.run(here())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out, lse = data.run(here())
    torch.cuda.synchronize()
    assert lse is not None
    used = torch.cuda.max_memory_allocated() - before
    assert used <= out.numel() * 2 + lse.numel() * 4 + 2**20
    torch.testing.assert_close(out.float(), exact(data.q, data.k, data.v), rtol=3e-2, atol=1e-2)


def test_offsets_beyond_32_bits() -> None:
    """Keys of 2.3e9 elements: the last head lies where 32-bit offsets do not reach."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free memory")
    entry = next(e for e in index() if (e["kind"], e["name"], tuple(e["widths"])) == ("bench", "causal", (128, 128)))
    heads, keys, width = 18, 2**20, 128
    k, v = (torch.randn(1, heads, keys, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(1, heads, 64, width, device="cuda", dtype=torch.bfloat16)
    out = torch.full_like(q, float("nan"))
    kernel_of(entry["folder"]).run(q, k, v, [], [], [], out, None)
    last = slice(heads - 1, heads)
    mask = torch.arange(keys, device="cuda") <= torch.arange(64, device="cuda")[:, None] + keys - 64
    want = torch.nn.functional.scaled_dot_product_attention(
        q[:, last].float(), k[:, last].float(), v[:, last].float(), mask
    )
    torch.testing.assert_close(out[:, last].float(), want, rtol=3e-2, atol=2e-3)


def test_a_side_stream_and_a_graph(seed: int) -> None:
    data = prepared("documents", "bf16", (32, 16), seed)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        data.compare(here())
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    out = data.q.new_full((*data.q.shape[:3], data.v.shape[-1]), float("nan"))
    with torch.cuda.graph(graph):
        data.run(here(), out)
    data.inputs[0].copy_(data.inputs[0].flip(1))
    data.q.copy_(data.q.flip(0))
    graph.replay()
    expected, _ = data.expected()
    torch.testing.assert_close(out.double(), expected, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", ["causal", "documents"])
def test_the_same_bits_twice(name: str, seed: int) -> None:
    data = prepared(name, "bf16", (32, 16), seed)
    assert torch.equal(data.run(here())[0], data.run(here())[0])


def test_a_bundle_runs_without_any_compiler() -> None:
    """``attnc.load`` on a folder of ``attnc compile``, with gradients by the reference."""
    program = """
import sys, warnings
for name in ("tvm", "tvm_ffi", "triton"):
    sys.modules[name] = None
import torch, attnc
op = attnc.load(sys.argv[1])
q, k, v = (torch.randn(2, heads, 300, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 4, 4))
slope = torch.rand(8, device="cuda")
out, lse = op(q, k, v, slope=slope, return_lse=True)
want, rows = op.reference(*(x.double().cpu() for x in (q, k, v)), slope=slope.double().cpu(), return_lse=True)
torch.testing.assert_close(out.cpu().double(), want, rtol=3e-2, atol=3e-2)
torch.testing.assert_close(lse.cpu().double(), rows, rtol=1e-4, atol=1e-4)
"""
    command = [sys.executable, "-c", program, str(FOLDER / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
