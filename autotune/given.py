"""A call of the user's own, from a file: what is measured instead of random tensors of the same sizes."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from attnc.autotune.data import Call
from attnc.autotune.problem import Problem
from attnc.errors import ArgumentError
from attnc.ir.program import Program
from attnc.signature import Signature
from attnc.validate import DTYPES, check_call, split


def read_call(path: Path, program: Program) -> Call:
    """The call in a file that ``torch.save`` wrote: a dict of q, k, v and whatever the spec declares, by name.

    Raises:
        ArgumentError: it is no such file, or does not fit the program.
        OSError: it cannot be read.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # whatever torch has against it
        raise ArgumentError("tensors", f"{path} holds no tensors: {str(error).splitlines()[0][:200]}") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), Tensor) for name in "qkv"):
        raise ArgumentError("tensors", f"{path}: save a dict of q, k, v and inputs with torch.save")
    q, k, v = (found.pop(name) for name in "qkv")
    signature = Signature.of(program)
    values = signature.bind(found)
    sizes = check_call(program, signature, q, k, v, values)
    inputs, numbers, _ = split(signature, values)
    return Call(sizes, q, k, v, list(inputs), list(numbers), [sizes[name] for name in signature.extents])


def problem_of(call: Call, problem: Problem, path: Path) -> Problem:
    """``problem`` for the sizes, head widths and element types of a call, which is measured."""
    dtypes = tuple(DTYPES[x.dtype] for x in call.inputs)
    sizes = {name: size for name, size in call.sizes.items() if name not in ("D", "E")}
    return replace(
        problem,
        sizes=sizes,
        widths=(call.sizes["D"], call.sizes["E"]),
        workload=replace(problem.workload, dtype=DTYPES[call.q.dtype], inputs=dtypes),
        tensors=str(path.resolve()),
    )


def given_call(problem: Problem) -> Call:
    """The call that a problem names, on its device."""
    path = Path(problem.tensors)
    return _on_device(problem.tensors, path.stat().st_mtime_ns, problem.program, problem.target.kind)


@functools.lru_cache(1)
def _on_device(path: str, changed: int, program: Program, kind: str) -> Call:
    call = read_call(Path(path), program)
    device = "cpu" if kind == "cpu" else "cuda"
    q, k, v = (x.to(device) for x in (call.q, call.k, call.v))
    return Call(call.sizes, q, k, v, [x.to(device) for x in call.inputs], call.parameters, call.extents)


def digest_of(path: str) -> str:
    """What tells the tensors of one run from those of another, in records."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
