"""The numeric tests of Triton's kernels on a real GPU: larger sizes, every element type, streams, graphs, bundles.

``python -m pytest -m gpu tests/gpu -n 8`` compiles in parallel. Needs no package beyond attnc's own and pytest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton_cases
from triton_cases import CASES, WIDTHS, Case, make

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.backends.triton.few import FewRows
from attnc.targets import target_of_device

pytestmark = pytest.mark.gpu


def here() -> Target:
    return target_of_device("cuda")


def larger(case: Case) -> Case:
    """The case at a size that no tile divides; grids and single keys stay as they are."""
    sizes = case.all_sizes
    if case.extents or sizes["N"] == 1:
        return case
    keys = 389 if sizes["N"] >= sizes["M"] else 277
    rows = {True: 389, False: 277}[sizes["M"] >= 53]
    return case.at(M=1 if sizes["M"] == 1 else rows, N=keys)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_case(case: Case, dtype: str, seed: int) -> None:
    make(larger(case), dtype, seed, "cuda").compare(here())


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("widths", WIDTHS, ids=lambda widths: "{}-{}".format(*widths))
def test_head_widths(widths: tuple[int, int], dtype: str, seed: int) -> None:
    case = triton_cases.find("causal").at(D=widths[0], E=widths[1], M=300, N=515)
    make(case, dtype, seed, "cuda").compare(here())


@pytest.mark.parametrize("empty", ["B", "M", "N"])
def test_nothing_there(empty: str, seed: int) -> None:
    make(triton_cases.find("causal").at(**{empty: 0}), "bf16", seed, "cuda").compare(here())


@pytest.mark.parametrize("name", ["causal", "rope", "documents", "output of lanes"])
def test_strides(name: str, seed: int) -> None:
    data = make(larger(triton_cases.find(name)), "bf16", seed, "cuda")
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


def test_a_long_sequence_against_sdpa(seed: int) -> None:
    """16k keys in bf16, where the order of summation shows; no memory in proportion to M x N."""
    case = Case("long", "mask causal", {"B": 1, "H": 4, "G": 2, "M": 16384, "N": 16384, "D": 128, "E": 128}, lse=True)
    data = make(case, "bf16", seed, "cuda")
    data.run(here())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out, lse = data.run(here())
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated() - before
    assert lse is not None
    assert used <= out.numel() * 2 + lse.numel() * 4 + 2**20
    k, v = (x.repeat_interleave(2, 1).float() for x in (data.k, data.v))
    exact = torch.nn.functional.scaled_dot_product_attention(data.q.float(), k, v, is_causal=True)
    torch.testing.assert_close(out.float(), exact, rtol=3e-2, atol=1e-2)


def test_offsets_beyond_32_bits() -> None:
    """Keys of 2.3e9 elements: the last head lies where 32-bit offsets do not reach."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free memory")
    heads, keys, width = 18, 2**20, 128
    case = Case("big", "mask causal", {"B": 1, "H": heads, "G": heads, "M": 64, "N": keys, "D": width, "E": width})
    k, v = (torch.randn(1, heads, keys, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(1, heads, 64, width, device="cuda", dtype=torch.bfloat16)
    out = torch.full_like(q, float("nan"))
    made = triton_cases.kernel(case.spec, width, width, Workload("bf16", (), False), here())
    made.run(q, k, v, [], [], [], out, None)
    last = slice(heads - 1, heads)
    mask = torch.arange(keys, device="cuda") <= torch.arange(64, device="cuda")[:, None] + keys - 64
    exact = torch.nn.functional.scaled_dot_product_attention(
        q[:, last].float(), k[:, last].float(), v[:, last].float(), mask
    )
    torch.testing.assert_close(out[:, last].float(), exact, rtol=3e-2, atol=2e-3)


def test_new_sizes_compile_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    make(triton_cases.find("documents"), "bf16", seed, "cuda").compare(here())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(triton, "compile", refuse)
    for sizes in ({"B": 1, "M": 129, "N": 129}, {"B": 3, "M": 1, "N": 1000}, {"H": 6, "M": 16, "N": 16}):
        make(triton_cases.find("documents").at(**sizes), "bf16", seed, "cuda").compare(here())


def test_a_side_stream_and_a_graph(seed: int) -> None:
    data = make(larger(triton_cases.find("documents")), "bf16", seed, "cuda")
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


def test_a_bundle_runs_without_triton(tmp_path: Path, seed: int) -> None:
    data = make(larger(triton_cases.find("documents")), "bf16", seed, "cuda")
    made = data.kernel(here())
    (tmp_path / "manifest.json").write_text(json.dumps(dict(made.save(tmp_path))))
    out, _ = data.run(here())
    torch.save([x.cpu() for x in (data.q, data.k, data.v, data.inputs[0], out)], tmp_path / "tensors.pt")
    program = """
import json, sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"triton", "tvm"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch
from attnc.backends.triton import TritonBackend
folder = Path(sys.argv[1])
q, k, v, doc, expected = (x.cuda() for x in torch.load(folder / "tensors.pt"))
kernel = TritonBackend().load(folder, json.loads((folder / "manifest.json").read_text()))
out = torch.full_like(expected, float("nan"))
kernel.run(q, k, v, [doc], [], [], out, None)
torch.testing.assert_close(out, expected, rtol=0, atol=0)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FEW_ROWS = {"family": "split", "block_m": 32, "block_n": 32, "warps": 4, "stages": 2}


def few(data: triton_cases.Data) -> FewRows:
    sizes = data.case.all_sizes
    plan = lower_program_to_plan(triton_cases.specialized(data.case.spec, sizes["D"], sizes["E"]))
    made = TritonBackend().build(plan, data.workload(), here(), FEW_ROWS)
    assert isinstance(made, FewRows)
    return made


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", ["softmax", "causal", "window", "softmax with a sink", "alibi", "cog", "affine",
                                  "documents", "spans by head", "own groups", "gate", "rope", "no key"])  # fmt: skip
def test_few_rows_and_many_keys(name: str, rows: int, dtype: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are walked in parts, twice with the same bits."""
    data = make(triton_cases.find(name).at(B=1, H=8, M=rows, N=3001), dtype, seed, "cuda")
    made = few(data)
    monkeypatch.setattr(triton_cases.Data, "kernel", lambda self, target: made)
    data.compare(here())
    first, second = (data.run(here())[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [{"B": 3, "M": 128, "N": 2000}, {"B": 70, "M": 1, "N": 700}, {"M": 64, "N": 5000}])
@pytest.mark.parametrize("width", [64, 128])
def test_few_rows_of_other_shapes(
    sizes: dict[str, int], width: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(triton_cases.find("causal").at(H=16, G=2, D=width, E=width, **sizes), "bf16", seed, "cuda")
    made = few(data)
    monkeypatch.setattr(triton_cases.Data, "kernel", lambda self, target: made)
    data.compare(here())
