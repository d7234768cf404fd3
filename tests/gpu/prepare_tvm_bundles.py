"""Compiles TVM's kernels for GPUs here, into a folder that a machine with a GPU and without TVM tests and times.

``python tests/gpu/prepare_tvm_bundles.py [FOLDER] [--arch sm_90] [--jobs 2]``: needs TVM and nvcc, no GPU. Then,
there, ``python -m pytest tests/gpu/test_gpu_tvm_cuda.py`` and ``python benchmarks/tvm_cuda.py``, both with
``ATTNC_TVM_BUNDLES`` in the environment unless the folder is ``build/tvm-bundles``. ``index.json`` says what is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("ATTNC_TVM_BUNDLES") or TESTS.parent / "build" / "tvm-bundles")
WIDTHS = ((16, 16), (40, 40), (64, 64), (72, 72), (96, 96), (128, 128), (17, 5), (192, 128), (256, 256))
HALF = ("softmax", "causal", "squares", "inline", "affine", "documents", "normalised and rotated")
"""Cases in float16 too."""
BENCH = {"full": "", "causal": "mask causal"}
CUTS = ((4, 1, 64), (4, 1, 128), (4, 2, 32), (4, 2, 64), (8, 1, 64))
"""Warps, groups of rows and keys of the tiles that are timed beside the default."""
BUNDLE = "attention bundled { input slope: real[H] mask causal score dot(q, k) * scale + slope[h] * (j - i) }"


@dataclass(frozen=True, slots=True)
class Entry:
    """One kernel: of a case of ``triton_cases``, of a spec in ``specs/``, or to be timed."""

    kind: str
    name: str
    dtype: str
    widths: tuple[int, int]
    config: tuple[int, ...] = ()


def entries() -> Iterator[Entry]:
    from spec_cases import CASES as SPECS
    from triton_cases import CASES

    for case in CASES:
        sizes = case.all_sizes
        for dtype in ("bf16", "f32", *(("f16",) if case.name in HALF else ())):
            yield Entry("case", case.name, dtype, (sizes["D"], sizes["E"]))
    for widths in WIDTHS:
        for dtype in ("bf16", "f16", "f32"):
            yield Entry("case", "causal", dtype, widths)
    for spec in SPECS:
        if spec.kernels:
            yield Entry("spec", spec.name, "f32", (spec.env.D, spec.env.E))
    for name in BENCH:
        for width in (64, 128):
            for cut in ((), *CUTS):
                yield Entry("bench", name, "bf16", (width, width), cut)


def write(entry: Entry, folder: Path, arch: str) -> dict[str, Any]:
    """Compile one entry; what it is, and why it is not there if it is not."""
    from attnc.backends.protocol import Target, Workload
    from attnc.backends.tvm import TvmBackend

    target, backend = Target("cuda", arch), TvmBackend()
    plan, workload = planned(entry)
    assert isinstance(workload, Workload)
    described = asdict(entry)
    if problems := backend.problems(plan, workload, target):
        return described | {"why": problems[0].message}
    config = dict(zip(("warps", "groups", "keys"), entry.config, strict=True)) if entry.config else {}
    if config and (why := backend.space(plan, workload, target, {}).problem(config)):
        return described | {"why": why}
    kernel = backend.build(plan, workload, target, config)
    folder.mkdir(parents=True)
    manifest = dict(kernel.save(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return described | {"folder": folder.name, "spilled": sum(r["spilled"] for r in manifest["reports"].values())}


def planned(entry: Entry) -> tuple[Any, Any]:
    """The plan and the workload of an entry."""
    import triton_cases

    from attnc.analyse.lower import lower_program_to_plan
    from attnc.backends.protocol import Workload

    match entry.kind:
        case "case":
            case = triton_cases.find(entry.name).at(D=entry.widths[0], E=entry.widths[1])
            data = triton_cases.make(case, entry.dtype, 0)
            return lower_program_to_plan(data.program), data.workload()
        case "bench":
            program = triton_cases.specialized(BENCH[entry.name], *entry.widths)
            return lower_program_to_plan(program), Workload(entry.dtype, (), False)
        case _:
            import spec_cases
            import torch
            from test_specs import load, make_inputs

            spec = next(one for one in spec_cases.CASES if one.name == entry.name)
            op = load(spec.name, **spec.constants)
            inputs = make_inputs(spec, op, torch.Generator().manual_seed(0), torch.float32)
            kinds = tuple(triton_cases.NAMES[inputs[source.name].dtype] for source in op.program.inputs)
            return op.source.plan(entry.widths), Workload(entry.dtype, kinds, False)


def write_bundle(folder: Path, arch: str) -> None:
    """A bundle as ``attnc compile`` writes it."""
    import attnc

    spec = folder / "bundled.attn"
    spec.write_text(BUNDLE)
    attnc.compile(spec, f"cuda:{arch}", folder / "bundle", backend="tvm", head_dims=[64], dtypes=["bf16"], lse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="entries whose name contains this")
    given = parser.parse_args()
    if given.folder.exists():
        parser.exit(1, f"{given.folder} is there already\n")
    given.folder.mkdir(parents=True)
    chosen = [entry for entry in entries() if (given.only or "") in entry.name]
    made: list[dict[str, Any]] = []
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        jobs = {
            pool.submit(write, entry, given.folder / str(number), given.arch): entry
            for number, entry in enumerate(chosen)
        }
        for done, job in enumerate(as_completed(jobs), 1):
            made.append(job.result())
            print(f"{done}/{len(jobs)} {made[-1]}", flush=True)
    write_bundle(given.folder, given.arch)
    index = {"arch": given.arch, "entries": made}
    (given.folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    size = sum(path.stat().st_size for path in given.folder.rglob("*") if path.is_file())
    print(f"{given.folder}: {len(made)} kernels, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    main()
