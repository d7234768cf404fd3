"""Attentions, sizes and data on which Triton's kernels are compared with the reference in float64.

Used three times: in the interpreter, through compilation for machines that are not here, and on a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Kernel, Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.check import check
from attnc.grammar.source import Source
from attnc.ir.nodes import Kind
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.reference import evaluate
from attnc.signature import size_value

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAMES = {
    torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64",
    torch.int32: "i32", torch.int64: "i64", torch.bool: "bool",
}  # fmt: skip
TOLERANCES = {"f32": 3e-5, "f16": 4e-3, "bf16": 3e-2}
Maker = Callable[[Mapping[str, int], torch.Generator], Tensor]


def documents(sizes: Mapping[str, int], random: torch.Generator) -> Tensor:
    """Ascending document ids."""
    return torch.randint(0, 4, (sizes["B"], sizes["N"]), generator=random).sort(1).values


def few(most: int, *dims: str) -> Maker:
    """Ints below ``most``."""
    return lambda sizes, random: torch.randint(0, most, [sizes[dim] for dim in dims], generator=random)


def words(choosers: str | int, block: int) -> Maker:
    """Bits for each block of keys: of each query and head, or of blocks of so many queries."""

    def make(sizes: Mapping[str, int], random: torch.Generator) -> Tensor:
        n, m = sizes["N"], sizes["M"]
        who = [sizes["H"], m] if isinstance(choosers, str) else [(n - 1) // choosers - (n - m) // choosers + 1]
        shape = [sizes["B"], *who, -(-n // (block * 32))]
        return torch.randint(-(2**31), 2**31, shape, generator=random).to(torch.int32)

    return make


def lists(most: int, block: int) -> Maker:
    """Numbers of blocks for each query and head: some that are none, some twice."""

    def make(sizes: Mapping[str, int], random: torch.Generator) -> Tensor:
        blocks = -(-sizes["N"] // block)
        shape = [sizes["B"], sizes["H"], sizes["M"], most]
        return torch.randint(-2, blocks + 1, shape, generator=random)

    return make


def listed(most: int, block: int) -> str:
    """A mask of such lists."""
    return " or ".join(f"l[b, h, row, {n}] == j // {block}" for n in range(most))


def some(share: float, *dims: str) -> Maker:
    """Truth values of which ``share`` is true."""
    return lambda sizes, random: torch.rand([sizes[dim] for dim in dims], generator=random) < share


def below_one(*dims: str) -> Maker:
    """Reals in 0 .. 1."""
    return lambda sizes, random: torch.rand([sizes[dim] for dim in dims], generator=random)


@dataclass(frozen=True, slots=True)
class Case:
    """One attention at one size. Reals that ``made`` does not make are random normal."""

    name: str
    spec: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    made: Mapping[str, Maker] = field(default_factory=dict)
    params: tuple[float, ...] = ()
    extents: tuple[int, ...] = ()
    lse: bool = False
    loose: float = 1.0

    def at(self, **sizes: int) -> Case:
        return replace(self, sizes={**self.sizes, **sizes})

    @property
    def all_sizes(self) -> dict[str, int]:
        return {"B": 2, "H": 4, "G": 2, "M": 37, "N": 53, "D": 32, "E": 16, **self.sizes}


CASES = (
    Case("softmax", "", lse=True),
    Case("causal", "mask causal", lse=True),
    Case("causal, more rows than keys", "mask causal", {"M": 53, "N": 37}, lse=True),
    Case("window", "mask causal and i - j < 7"),
    Case("window on both sides", "mask window(5)", lse=True),
    Case("sink tokens and a window", "mask causal and (i - j < 9 or sink(3))"),
    Case("prefix", "input n: int[B] mask j < n[b] or causal", made={"n": few(50, "B")}),
    Case("block", "mask block_causal(8)"),
    Case("strided", "mask causal and strided(5)"),
    Case("odd floors", "mask (i // -3 + j) % -4 != -1 and (j - i) // 4 % 2 == 0"),
    Case("softmax with a sink", "input z: real[H] mask causal normalize softmax_sink(score, z[h])"),
    Case("softmax1", "normalize softmax1(score)"),
    Case("alibi", "input slope: real[H] mask causal score dot(q, k) * scale + slope[h] * (j - i)",
         made={"slope": below_one("H")}, lse=True),
    Case("softcap", "mask causal score softcap(dot(q, k) * scale, 2)"),
    Case("sigmoid", "mask causal normalize sigmoid_n(score)"),
    Case("relu2", "mask causal normalize relu2(score) / N"),
    Case("squares", "normalize relu2(100 * score) / (N * 10000)"),
    Case("cog", "normalize cog(score)"),
    Case("affine", "mask causal normalize affine(score, 0.7, 0.01)"),
    Case("inline", "mask causal normalize inline(score)", loose=10),
    Case("decay", "input rate: real[H] mask causal normalize softmax(score) * exp(rate[h] * rate[h] * (j - i))"),
    Case("two passes", "normalize softmax(score * rowmax(score))", lse=True),
    Case("two passes over a mask", "mask window(9) normalize softmax(score - rowmean(score) ** 2)"),
    Case("documents", "input doc: int[B, N] mask same_document(doc) and causal", {"M": 53}, {"doc": documents}),
    Case("chosen blocks", "input words: int[B, H, M, (N + 511) // 512] mask causal and "
         "words[b, h, row, j // 16 // 32] >> j // 16 % 32 & 1 == 1", {"M": 53}, {"words": words("M", 16)}),
    Case("blocks chosen together", "input words: int[B, (N - 1) // 32 - (N - M) // 32 + 1, (N + 255) // 256] "
         "mask causal and words[b, i // 32 - (i - row) // 32, j // 8 // 32] >> j // 8 % 32 & 1 == 1",
         made={"words": words(32, 8)}),
    *(
        Case(f"tiles chosen together, {m} of {n}", "input words: int[B, (N - 1) // 64 - (N - M) // 64 + 1, "
             "(N + 1023) // 1024] mask causal and "
             "words[b, i // 64 - (i - row) // 64, j // 32 // 32] >> j // 32 % 32 & 1 == 1",
             {"B": 1, "H": 2, "G": 1, "M": m, "N": n}, {"words": words(64, 32)})
        for m, n in ((100, 260), (70, 263), (150, 118))
    ),
    Case("lists", f"input l: int[B, H, M, 3] mask {listed(3, 16)}", {"N": 83}, {"l": lists(3, 16)}, lse=True),
    Case("lists, causal", f"input l: int[B, H, M, 2] mask causal and ({listed(2, 20)})", {"M": 83, "N": 93},
         {"l": lists(2, 20)}, lse=True),
    Case("lists in a window", f"input l: int[B, H, M, 5] mask window(30) and ({listed(5, 16)})", {"M": 93, "N": 83},
         {"l": lists(5, 16)}),
    Case("lists, rotated and biased", f"input l: int[B, H, M, 3] input x: real[H] query rope(q, i) key rope(k, j) "
         f"score dot(q, k) * scale + x[h] * (j - i) mask causal and ({listed(3, 32)})", {"M": 83, "N": 93},
         {"l": lists(3, 32)}, lse=True, loose=8),
    Case("lists without a softmax", f"input l: int[B, H, M, 3] normalize sigmoid(score) mask {listed(3, 16)}",
         {"M": 83, "N": 93}, {"l": lists(3, 16)}, loose=2),
    Case("chunk of documents", "input doc: int[B, N] mask same_document(doc) and causal", {}, {"doc": documents}),
    Case("spans by head", "input span: int[H] mask causal and i - j < span[h]", made={"span": few(60, "H")}),
    Case("keys that are there", "input keep: bool[B, N] mask keep[b, j]", made={"keep": some(0.3, "B", "N")}, lse=True),
    Case("no key", "input keep: bool[B, N] mask keep[b, j]", made={"keep": some(0.0, "B", "N")}, lse=True),
    Case("words", "input w: int[H, N] mask w[h, i] & w[h, j] != 0", {"M": 53}, {"w": few(16, "H", "N")}),
    Case("mask by score", "mask dot(q, k) > 0", lse=True),
    Case("mask by token", "mask norm2(k) > 30 or norm2(q) > 40"),
    Case("neighbourhood", "space (y: Y, x: X) mask neighborhood2d(3, 5)", {"M": 56, "N": 56}, extents=(7, 8)),
    Case("end of a grid", "space (y: Y, x: X) mask neighborhood2d(3, 5)", {"M": 20, "N": 56}, extents=(7, 8)),
    Case("rope", "query rope(q, i) key rope(k, j) mask causal"),
    Case("part of rope", "query rope(q, i, 10000, 16) key rope(k, j, 10000, 16)"),
    Case("normalised and rotated", "query rope(rmsnorm(q), i) key rope(l2norm(k), j) value l2norm(v)"),
    Case("latent", "value k[0:16]"),
    Case("parts", "score dot(q[0:16], k[0:16]) * scale + sigmoid(dot(q[16:32], k[16:32]))"),
    Case("gate", "input gate: real[B, H, M, E] output sigmoid(gate[b, h, row, :]) * o"),
    Case("output of lanes", "mask causal output rmsnorm(o)", {"M": 53, "N": 37}),
    Case("output of a part", "mask causal output o[4:12] * 2"),
    Case("output plus one", "mask causal output o + 1", {"M": 53, "N": 37}),
    Case("projections", "input a: real[H, D, D] input c: real[H, E, E] query matmul(q, a[h, :, :]) * 0.1 "
         "output matmul(o, c[h, :, :])", loose=4),
    Case("bias", "input bias: real[B, H, M, N] score dot(q, k) * scale + bias[b, h, row, j]"),
    Case("table", "const W = 9 input t: real[H, 2 * W - 1] mask window(W) "
         "score dot(q, k) * scale + t[h, j - i + W - 1]"),
    Case("temperature", "param t: real = 1.0 score dot(q, k) * scale * t", params=(2.5,), lse=True),
    Case("error function and tangent", "score erf(dot(q, k) * scale) + tanh(dot(q, k) * 0.1)"),
    Case("waves", "score dot(q, k) * scale * cos(dot(q, k)) + sin(i - j) + cos(i * 1000)"),
    Case("powers and roots", "score dot(q, k) * scale + abs(i - j) ** 0.3 + log(1 + j) + sqrt(1 + j) * rsqrt(2 + i)"),
    Case("remainders", "score dot(q, k) * scale + floor((i - j) * 0.3 + 0.05) % 3 + (0.03 - i * 0.7) % 1.5"),
    Case("multi-query", "mask causal", {"H": 3, "G": 1}),
    Case("own groups", "mask causal groups h % G", {"H": 4, "G": 2}),
    Case("one key", "mask causal", {"M": 1, "N": 1}, lse=True),
    Case("one row", "mask causal", {"M": 1, "N": 70}),
)  # fmt: skip

WIDTHS = ((16, 16), (40, 40), (72, 72), (80, 80), (96, 96), (17, 5), (192, 128), (256, 256))


@cache
def specialized(spec: str, D: int, E: int) -> Program:
    return specialize(check(Source("case.attn", f"attention case {{ {spec} }}")), D, E)


@cache
def kernel(spec: str, D: int, E: int, workload: Workload, target: Target) -> Kernel:
    """The kernel of a spec; made once."""
    plan = lower_program_to_plan(specialized(spec, D, E))
    backend = TritonBackend()
    assert not (problems := backend.problems(plan, workload, target)), problems
    return backend.build(plan, workload, target)


@dataclass(slots=True)
class Data:
    """The arguments of one call, and what the reference makes of them in float64."""

    case: Case
    program: Program
    q: Tensor
    k: Tensor
    v: Tensor
    inputs: list[Tensor]

    def workload(self) -> Workload:
        return Workload(NAMES[self.q.dtype], tuple(NAMES[tensor.dtype] for tensor in self.inputs), self.case.lse)

    def kernel(self, target: Target) -> Kernel:
        sizes = self.case.all_sizes
        return kernel(self.case.spec, sizes["D"], sizes["E"], self.workload(), target)

    def expected(self) -> tuple[Tensor, Tensor | None]:
        def wide(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        named = {declared.name: wide(x) for declared, x in zip(self.program.inputs, self.inputs, strict=True)}
        params = {p.name: x for p, x in zip(self.program.parameters, self.case.params, strict=True)}
        extents = dict(zip(self.program.extents, self.case.extents, strict=True))
        tokens = wide(self.q), wide(self.k), wide(self.v)
        found = evaluate(self.program, *tokens, named, params, extents, self.case.lse)
        return found if isinstance(found, tuple) else (found, None)

    def run(self, target: Target, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The kernel's results, in poisoned memory."""
        batch, heads, rows, _ = self.q.shape
        width = size_value(self.program.body.output.width, {}) if out is None else 0
        if out is None:
            out = self.q.new_full((batch, heads, rows, width), float("nan"))
        lse = self.q.new_full((batch, heads, rows), float("nan"), dtype=torch.float32) if self.case.lse else None
        made = self.kernel(target)
        made.run(self.q, self.k, self.v, self.inputs, self.case.params, self.case.extents, out, lse)
        return out, lse

    def compare(self, target: Target) -> None:
        """Assert that the kernel does what the reference does."""
        tolerance = TOLERANCES[NAMES[self.q.dtype]] * self.case.loose
        out, lse = self.run(target)
        expected, rows = self.expected()
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
        if rows is not None and lse is not None:
            torch.testing.assert_close(lse.double(), rows, rtol=tolerance, atol=tolerance)


def make(case: Case, dtype: str, seed: int, device: str = "cpu") -> Data:
    """Fresh random data for a case."""
    random = torch.Generator().manual_seed(seed)
    sizes, element = case.all_sizes, DTYPES[dtype]
    program = specialized(case.spec, sizes["D"], sizes["E"])

    def normal(*dims: int) -> Tensor:
        return torch.randn(dims, generator=random).to(element).to(device)

    inputs = []
    for declared in program.inputs:
        if declared.name in case.made:
            inputs.append(case.made[declared.name](sizes, random).to(device))
        else:
            assert declared.kind is Kind.REAL, declared.name
            inputs.append(normal(*(size_value(dim, sizes) for dim in declared.dims)).float())
    q = normal(sizes["B"], sizes["H"], sizes["M"], sizes["D"])
    k = normal(sizes["B"], sizes["G"], sizes["N"], sizes["D"])
    v = normal(sizes["B"], sizes["G"], sizes["N"], sizes["E"])
    return Data(case, program, q, k, v, inputs)


def find(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
