"""Kernels compiled for machines that are not here: what the compilers report, bundles, and the text of slots."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import triton_cases
from sass import unwritten_reads
from triton_cases import make

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Kernel, Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.backends.triton.configs import SHARED_MEMORY, candidates
from attnc.backends.triton.few import FewRows
from attnc.backends.triton.kernel import DeviceKernel
from attnc.backends.triton.report import fault_in
from attnc.backends.triton.sass import disassemble
from attnc.check import check
from attnc.grammar.source import Source

pytest.importorskip("triton")
SM80, SM90, SM100 = (Target("cuda", arch) for arch in ("sm_80", "sm_90", "sm_100"))
GFX942 = Target("hip", "gfx942")
INSTRUCTION = {SM80: "mma.sync", SM90: "wgmma.mma_async", SM100: "tcgen05.mma", GFX942: "v_mfma"}

SPREAD = (
    ("causal", SM80, "bf16", 128, 128),
    ("causal", SM90, "bf16", 128, 128),
    ("causal", SM100, "bf16", 128, 128),
    ("causal", GFX942, "bf16", 128, 128),
    ("softcap", SM90, "bf16", 64, 64),
    ("alibi", SM80, "f16", 64, 64),
    ("sigmoid", SM90, "f16", 96, 96),
    ("squares", SM80, "f16", 40, 40),
    ("cog", SM90, "bf16", 192, 128),
    ("inline", SM100, "bf16", 80, 80),
    ("two passes", SM90, "bf16", 72, 72),
    ("two passes", GFX942, "f16", 40, 40),
    ("documents", SM90, "bf16", 128, 128),
    ("documents", GFX942, "bf16", 64, 64),
    ("mask by score", SM90, "bf16", 64, 64),
    ("chosen blocks", SM80, "bf16", 64, 64),
    ("neighbourhood", SM80, "bf16", 32, 32),
    ("softmax with a sink", SM100, "f16", 16, 16),
    ("normalised and rotated", SM90, "bf16", 64, 64),
    ("projections", GFX942, "bf16", 32, 32),
    ("causal", SM90, "bf16", 256, 256),
    ("causal", SM90, "f32", 32, 32),
    ("softmax", GFX942, "f32", 64, 64),
)


@cache
def compiled(name: str, target: Target, dtype: str, D: int, E: int) -> DeviceKernel:
    data = make(triton_cases.find(name).at(D=D, E=E, M=1, N=1), "f32", 0) if name != "neighbourhood" else None
    inputs = tuple(triton_cases.NAMES[tensor.dtype] for tensor in data.inputs) if data else ()
    case = triton_cases.find(name)
    made: Kernel = triton_cases.kernel(case.spec, D, E, Workload(dtype, inputs, case.lse), target)
    made = made.many if isinstance(made, FewRows) else made
    assert isinstance(made, DeviceKernel)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "dtype", "D", "E"), SPREAD, ids=["{}-{.arch}-{}-{}-{}".format(*one) for one in SPREAD]
)
def test_what_the_compilers_report(name: str, target: Target, dtype: str, D: int, E: int) -> None:
    made = compiled(name, target, dtype, D, E)
    assert list(made.report()) == [launch.name for launch in made.recipe.launches]
    for launch in made.recipe.launches:
        report = made.report()[launch.name]
        assert fault_in(report, launch.family, SHARED_MEMORY[target.arch]) is None
        assert 0 < report.registers <= 512
        if launch.family in ("stream", "hopper"):
            assert report.tensor_core > 0
            assert any(kind.startswith(INSTRUCTION[target]) for kind in report.kinds)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "D", "E"), [("bf16", 17, 5), ("bf16", 19, 7), ("f32", 96, 96)])
def test_every_descriptor_is_written_before_it_is_read(dtype: str, D: int, E: int) -> None:
    """What ptxas 12.8 gets wrong for these."""
    for program in compiled("causal", SM90, dtype, D, E).programs:
        assert not unwritten_reads(disassemble(program.code))


def test_a_read_of_an_unwritten_register_is_found() -> None:
    """From what ptxas 12.8 makes of the case above."""
    right = "/*0010*/ ULDC.64 UR4, c[0x0][0x218] ;\n/*0020*/ UIADD3 UR6, UP0, UR4, 0x20, URZ ;\n"
    assert not unwritten_reads(right)
    wrong = "UIADD3 UR18, UP0, UR18, 0x20, URZ"
    assert unwritten_reads(f"{right}/*0030*/ {wrong} ;") == [wrong]
    product = "/*0030*/ HGMMA.64x16x16.F32.BF16 R96, {}gdesc[UR4]{}, R96 ;"
    assert not unwritten_reads(right + "/*0021*/ UMOV UR7, 0x1 ;\n" + product.format("", ""))
    assert unwritten_reads(right + product.format("R24, ", ".tnspB"))


FEW_ROWS = {"family": "split", "block_m": 32, "block_n": 64, "warps": 4, "stages": 3}


def few(name: str, dtype: str, width: int) -> FewRows:
    case = triton_cases.find(name)
    data = make(case.at(D=width, E=width, M=1, N=1), dtype, 0)
    plan = lower_program_to_plan(triton_cases.specialized(case.spec, width, width))
    made = TritonBackend().build(plan, data.workload(), SM90, FEW_ROWS)
    assert isinstance(made, FewRows)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("causal", 128), ("documents", 64), ("affine", 64)])
def test_kernels_for_few_rows(name: str, width: int) -> None:
    made = few(name, "bf16", width)
    assert [launch.family for launch in made.few.recipe.launches] == ["split", "combine"]  # type: ignore[attr-defined]
    assert TritonBackend().rejection(made, SM90) is None


@pytest.mark.slow
def test_a_bundle_of_kernels_for_few_rows(tmp_path: Path) -> None:
    made = few("causal", "bf16", 128)
    manifest = json.loads(json.dumps(dict(made.save(tmp_path))))
    loaded = TritonBackend().load(tmp_path, manifest)
    assert isinstance(loaded, FewRows)
    for before, after in ((made.many, loaded.many), (made.few, loaded.few)):
        assert [program.code for program in before.programs] == [program.code for program in after.programs]  # type: ignore[attr-defined]
        assert before.recipe.split == after.recipe.split


def test_a_kernel_is_one_walk_whatever_the_softmax_is_called() -> None:
    families = [launch.family for launch in compiled("causal", SM90, "bf16", 128, 128).recipe.launches]
    assert families == ["hopper"]


@pytest.mark.slow
def test_lists_of_tiles_are_made_only_where_ranges_do_not_do() -> None:
    families = [launch.family for launch in compiled("documents", SM90, "bf16", 128, 128).recipe.launches]
    assert families == ["tiles", "hopper"]


def test_a_bundle_loads_without_triton(tmp_path: Path) -> None:
    made = compiled("causal", SM90, "bf16", 128, 128)
    (tmp_path / "manifest.json").write_text(json.dumps(made.save(tmp_path)))
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
kernel = TritonBackend().load(folder, json.loads((folder / "manifest.json").read_text()))
(program,) = kernel.programs
assert program.code[:4] == b"\\x7fELF" and program.function == "forward" and program.threads % 32 == 0
print([value.name for value in kernel.launcher.values[0]], kernel.report())
q = torch.zeros(1, 1, 4, 128, dtype=torch.bfloat16)
try:
    kernel.run(q, q, q, [], [], [], q.clone(), None)
except RuntimeError as error:
    assert "take tensors on a GPU, found cpu" in str(error), error
else:
    raise AssertionError("ran on a CPU")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str([value.name for value in made.launcher.values[0]]) in done.stdout


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda manifest: manifest | {"format": 99}, "format 99"),
        (lambda manifest: manifest | {"programs": []}, "damaged"),
        (lambda manifest: manifest | {"recipe": {}}, "damaged"),
    ],
)
def test_a_foreign_or_damaged_bundle_says_so(tmp_path: Path, harm: object, message: str) -> None:
    manifest = harm(dict(compiled("causal", SM90, "bf16", 128, 128).save(tmp_path)))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        TritonBackend().load(tmp_path, manifest)


def test_configurations_ask_for_less_and_less() -> None:
    for target in (SM80, SM90, SM100, GFX942):
        for dtype in ("bf16", "f32"):
            for width in (16, 64, 128, 256, 512):
                tried = list(candidates(target, dtype, width))
                assert len(set(tried)) == len(tried)
                sizes = [(one.block_m * one.block_n, -one.warps, one.stages) for one in tried]
                assert sizes == sorted(sizes, reverse=True)
                assert all(one.block_m >= 16 and one.block_n >= 16 for one in tried)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("score -norm2(q - k)", "a dot product over pairs"),
        ("let s = cumsum(norm2(k)) score dot(q, k) + s[b, h, i]", "cumsum"),
    ],
)
def test_what_cannot_run_is_reported_with_its_node(spec: str, message: str) -> None:
    program = triton_cases.specialized(spec, 32, 32)
    problems = TritonBackend().problems(lower_program_to_plan(program), Workload("bf16", (), False), SM90)
    assert [problem for problem in problems if message in problem.message]


def test_wide_heads_and_double_precision_are_reported() -> None:
    plan = lower_program_to_plan(triton_cases.specialized("", 1024, 1024))
    messages = [one.message for one in TritonBackend().problems(plan, Workload("f64", (), False), SM90)]
    assert any("1024" in message for message in messages)
    assert any("float64" in message for message in messages)


def test_the_text_of_slots() -> None:
    """One kernel, pinned: what a person finds on disk."""
    from attnc.backends.triton.configs import INTERPRETER
    from attnc.backends.triton.lower import lower_plan_to_recipe
    from attnc.ir.specialize import specialize

    text = """attention gemma {
    input slope: real[H]
    mask causal and i - j < 4096
    score softcap(dot(q, k) * scale + slope[h] * (j - i), 50)
}"""
    program = specialize(check(Source("gemma.attn", text)), 64, 64)
    lowered = lower_plan_to_recipe(
        lower_program_to_plan(program), Workload("bf16", ("f32",), True), INTERPRETER, "ieee"
    )
    golden = Path(__file__).parent / "golden" / "triton_slots.py.txt"
    assert "\n\n".join(lowered.functions) == golden.read_text()
