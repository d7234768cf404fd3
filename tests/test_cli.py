"""The command line, over a backend that runs the reference: what it prints, writes and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_backend import FakeBackend, installed
from typer.testing import CliRunner, Result

import attnc
from attnc.cli import app

GOOD = "attention local {\n    const W = 4\n    mask causal and i - j < W\n}\nattention full {}\n"
BAD = "attention broken {\n    mask causall\n    score dot(q, slope)\n}\n"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    monkeypatch.chdir(tmp_path)
    Path("good.attn").write_text(GOOD)
    Path("bad.attn").write_text(BAD)
    Path("capped.attn").write_text("attention capped {\n    score softcap(dot(q, k), 5)\n}\n")
    with installed(monkeypatch, tmp_path / "cache") as fake:
        yield fake


def run(*words: str) -> Result:
    result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def test_check_says_what_is_right(backend: FakeBackend) -> None:
    result = run("check", "good.attn")
    assert (result.exit_code, result.stdout) == (0, "good.attn: local, full: no errors\n")
    assert run("check", "good.attn:full", "-D", "W=9").exit_code == 1
    assert run("check", "good.attn:local", "-D", "W=9", "--json").stdout == "[]\n"


def test_check_shows_every_error(backend: FakeBackend) -> None:
    result = run("check", "bad.attn")
    assert result.exit_code == 1
    assert "bad.attn:2:10: error[" in result.stderr
    assert "bad.attn:3:18: error[" in result.stderr
    assert "did you mean `causal`?" in result.stderr
    assert "\x1b[" not in result.stderr


def test_errors_as_json(backend: FakeBackend) -> None:
    result = run("check", "bad.attn", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [(error["line"], error["column"]) for error in found] == [(2, 10), (3, 18)]


def test_compile_needs_no_further_flag(backend: FakeBackend) -> None:
    result = run("compile", "good.attn:local", "--target", "cuda:sm_80")
    assert result.exit_code == 0
    assert result.stdout.startswith("local: wrote good-local-cuda-sm_80 in ")
    manifest = json.loads(Path("good-local-cuda-sm_80/manifest.json").read_text())
    assert [entry["name"] for entry in manifest["kernels"]] == [
        "bf16-d64-e64",
        "f16-d64-e64",
        "bf16-d128-e128",
        "f16-d128-e128",
    ]


def test_compile_takes_widths_types_constants_and_a_folder(backend: FakeBackend) -> None:
    flags = "--head-dim 8 --head-dim 16:4 --dtype f32 -D W=2 --lse -o out".split()
    assert run("compile", "good.attn:local", "-t", "cpu", *flags).exit_code == 0
    names = [entry["name"] for entry in json.loads(Path("out/manifest.json").read_text())["kernels"]]
    assert names == ["f32-d8-e8", "f32-d8-e8-lse", "f32-d16-e4", "f32-d16-e4-lse"]
    assert "i - j < 2" in Path("out/program.txt").read_text()
    assert attnc.load("out").name == "local"


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("ir", "program local\nwidths D=64 E=64\n"),
        ("plan", "plan local"),
        ("source", "# kernel.py\n# the reference\n"),
        ("asm", "# kernel.s\n"),
    ],
)
def test_emit_prints_a_stage_and_writes_nothing(backend: FakeBackend, stage: str, expected: str) -> None:
    before = set(Path().iterdir())
    result = run("compile", "good.attn:local", "--target", "cpu", "--emit", stage)
    assert result.exit_code == 0
    assert result.stdout.startswith(expected)
    assert {path.name for path in set(Path().iterdir()) - before} <= {"cache"}


def test_explain(backend: FakeBackend) -> None:
    result = run("explain", "good.attn:local", "--head-dim", "8:16")
    assert result.exit_code == 0
    assert "local: 1 pass over the keys" in result.stdout
    assert "a vector of 16" in result.stdout


def test_what_a_target_cannot_do_is_located(backend: FakeBackend) -> None:
    result = run("compile", "capped.attn", "--target", "cpu")
    assert result.exit_code == 3
    assert "there is no `tanh`" in result.stderr
    assert " 2 |     score softcap(dot(q, k), 5)" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("check nothing.attn", 2, "nothing.attn: No such file or directory"),
        ("check .", 2, "Is a directory"),
        ("check good.attn:ful", 1, "no attention `ful`"),
        ("compile good.attn --target cpu", 1, "this file holds several attentions"),
        ("compile good.attn:full --target cpuu", 2, "unknown target `cpuu` (did you mean `cpu`?)"),
        ("compile good.attn:full --target cpu --backend tvn", 2, "unknown backend `tvn` (did you mean `tvm`?)"),
        ("compile good.attn:full --target cpu --dtype f31", 2, "unknown dtype `f31` (did you mean"),
        ("compile good.attn:full --target cpu --head-dim x", 2, "`--head-dim x`: write D or D:E"),
        ("compile good.attn:full --target cpu --head-dim 0", 2, "a head width must be positive"),
        ("compile good.attn:local --target cpu -D W", 2, "`-D W`: write -D name=value"),
        ("compile good.attn:local --target cpu -D W=wide", 2, "`-D W=wide`"),
        ("compile good.attn:local --target cpu -D V=3", 1, "`V`"),
        ("compile good.attn:full --target cpu -o full", 2, "full exists and is no bundle"),
        ("compile good.attn:full", 2, "--target"),
        ("frobnicate", 2, "frobnicate"),
    ],
)
def test_wrong_command_lines(backend: FakeBackend, words: str, code: int, message: str) -> None:
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("years of work")
    result = run(*words.split())
    assert message in result.stderr
    assert result.exit_code == code


def test_a_spec_that_is_not_text(backend: FakeBackend) -> None:
    Path("binary.attn").write_bytes(b"attention \xff\xfe {}")
    result = run("check", "binary.attn")
    assert (result.exit_code, "the spec is not UTF-8" in result.stderr) == (2, True)


def test_a_missing_compiler_says_what_to_install(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnc import targets

    monkeypatch.setattr(targets, "PACKAGES", {"fake": ("no_such_module", "attnc[fake]")})
    result = run("compile", "good.attn:full", "--target", "cpu")
    assert (result.exit_code, "pip install 'attnc[fake]'" in result.stderr) == (3, True)
    assert "'attnc[fake]'" in run("doctor").stdout
    doctor = json.loads(run("doctor", "--json").stdout)["targets"]["cpu"]
    assert not doctor["compiles"]
    assert "pip install 'attnc[fake]'" in doctor["why"]


def test_doctor_lists_every_target(backend: FakeBackend) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    for word in ("cpu", "cuda:sm_100", "hip:gfx942", "torch", "cache"):
        assert word in result.stdout
    report = json.loads(run("doctor", "--json").stdout)
    assert report["targets"]["cpu"] == {"compiles": True, "runs": True, "why": ""}
    assert report["installed"]["attnc"] == attnc.__version__


def test_version(backend: FakeBackend) -> None:
    assert run("--version").stdout == f"attnc {attnc.__version__}\n"


@pytest.mark.slow
def test_the_installed_command_has_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.attn").write_text(BAD)
    command = [sys.executable, "-c", "from attnc.cli import app; app()", "check", "bad.attn"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "bad.attn:2:10" in done.stderr
