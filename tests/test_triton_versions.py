"""Kernels compile with the newest Triton that we know as well as with the one that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEWEST = Path(sys.prefix) / "newest-triton"
"""Where `make test` puts it: beside the environment's own, which the rest of the suite uses."""

PROGRAM = """
import json
import triton
import triton_backward_cases
import triton_cases
from attnc.backends.protocol import Target

target, said = Target("cuda", "sm_90"), {"version": triton.__version__}
for name, dtype, D in (("alibi", "bf16", 128), ("documents", "f16", 64)):
    data = triton_cases.make(triton_cases.find(name).at(D=D, E=D, M=1, N=1), dtype, 0)
    made = data.kernel(target)
    for part in (made.many, made.few):
        for at, report in part.report().items():
            said[f"{name} {dtype} {at}"] = [report.spilled, report.serialised]
for name in ("causal",):
    data = triton_backward_cases.make(triton_cases.find(name).at(D=64, E=64, M=1, N=1), "bf16", 0)
    _, made = triton_backward_cases.kernels(data, target)
    for at, report in made.report().items():
        said[f"{name} backward {at}"] = [report.spilled, report.serialised]
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(not NEWEST.is_dir(), reason="`make test` installs the newest Triton; this environment lacks it")
def test_the_newest_triton_compiles_them(tmp_path: Path) -> None:
    places = [str(NEWEST), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("version") == (next(NEWEST.glob("triton-*.dist-info")).name.split("-")[1]).removesuffix(".dist")
    assert any("hopper" in at or "pass0" in at for at in said)
    assert all(spilled <= 320 and not serialised for spilled, serialised in said.values()), said
