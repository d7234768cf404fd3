"""Routes whose queries choose blocks: kernels that choose beside the eager choice, and routed operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import attnc
from attnc.analyse.ranking import Ranking, ranking_of
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.ir.specialize import specialize
from attnc.routing.choice import Lists, unpack, words_of
from attnc.validate import DTYPES

Maker = Callable[[Mapping[str, int], torch.Generator], Tensor]
TYPES = {short: dtype for dtype, short in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Route:
    """A route by its clauses. ``kind`` of data: ``normal``, ``ties``, or with ``nan``."""

    block: int
    rank: str
    rest: str
    before: str = "mask causal"
    kind: str = "normal"
    sizes: Mapping[str, int] = field(default_factory=dict)
    made: Mapping[str, Maker] = field(default_factory=dict)

    @property
    def text(self) -> str:
        route = f"route keys(block={self.block}) per query {{ rank {self.rank} {self.rest} }}"
        return f"attention a {{ {self.before} {route} }}"

    @property
    def all_sizes(self) -> dict[str, int]:
        return {"B": 2, "H": 2, "G": 1, "M": 70, "N": 90, "D": 16, "E": 16, **self.sizes}


def normal(*dims: str | int) -> Maker:
    return lambda sizes, random: torch.randn([sizes.get(str(x), x) for x in dims], generator=random)  # type: ignore[misc]


ROUTES = {
    "moba": Route(16, "dot(q, mean(k))", "select top(3) always self"),
    "ties": Route(16, "dot(q, mean(k))", "select top(3) always self", kind="ties"),
    "nan": Route(16, "dot(q, mean(k))", "select top(3) always self", kind="nan"),
    "everything visible": Route(20, "dot(q, max(k))", "select top(2)", before="", kind="ties"),
    "taken anyhow": Route(16, "dot(q, min(k))", "select top(5) always first(1), last(2) also self", before=""),
    "more taken than chosen": Route(
        16, "dot(q, sum(k)) * rsqrt(D) - J / 7", "select top(2) always first(1), last(2) also last(1), first(3)"
    ),
    "candidates": Route(
        16, "dot(q, mean(l2norm(k)))", "candidates J != I and norm2(mean(k)) > 0.9 select top(4) also self"
    ),
    "more than there are": Route(64, "dot(q, mean(k))", "select top(9) always self", sizes={"M": 33}),
    "more rows than keys": Route(16, "dot(q, mean(k))", "select top(3) always self", sizes={"M": 90, "N": 70}),
    "one row": Route(16, "dot(q, mean(k))", "select top(3) always self", sizes={"M": 1}),
    "no pool": Route(16, "1.0 * (J * 7 % 5)", "select top(2)"),
    "inputs": Route(
        16, "dot(rope(q, i), mean(k)) * w[h] + m[b, h, row, J] + norm2(q)", "select top(3) always self",
        before="input w: real[H] input m: real[B, H, M, 10] mask causal",
        made={"w": normal("H"), "m": normal("B", "H", "M", 10)},
    ),
    "gate": Route(
        16, "dot(a[b, h, row, :], c[b, g, J, :])", "select top(17) always last(1)",
        before="input a: real[B, H, M, 24] input c: real[B, G, 25, 24] mask causal", sizes={"M": 40, "N": 400},
        made={"a": normal("B", "H", "M", 24), "c": normal("B", "G", 25, 24)},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Data:
    """An operator and its tensors."""

    op: attnc.Op
    q: Tensor
    k: Tensor
    v: Tensor
    inputs: dict[str, Tensor]


def make(route: Route, dtype: str, seed: int, device: str = "cpu") -> Data:
    sizes, random = route.all_sizes, torch.Generator().manual_seed(seed)
    shapes = (("H", "M", "D"), ("G", "N", "D"), ("G", "N", "E"))
    q, k, v = (torch.randn(sizes["B"], *(sizes[x] for x in shape), generator=random) for shape in shapes)
    if route.kind == "ties":
        q, k = q.sign(), k.sign()
    if route.kind == "nan":
        k[0, 0, 40], q[0, 0, -20] = float("nan"), float("nan")
    made = {name: maker(sizes, random) for name, maker in route.made.items()}
    op = attnc.loads(route.text, backend="triton")
    q, k, v, *rest = (x.to(device, TYPES[dtype]) for x in (q, k, v, *made.values()))
    return Data(op, q, k, v, dict(zip(made, rest, strict=True)))


def ranking(data: Data) -> Ranking:
    return ranking_of(specialize(data.op.program, data.q.shape[-1], data.v.shape[-1]))


def chosen(data: Data, target: Target) -> Tensor:
    """What the kernels choose, ``[B, H, M, blocks]``; the form of the lists is checked."""
    made, inputs = ranking(data), [data.inputs[x.name] for x in data.op.program.inputs]
    workload = Workload(DTYPES[data.q.dtype], tuple(DTYPES[x.dtype] for x in inputs), False)
    backend = TritonBackend()
    assert not (problems := backend.router_problems(made, workload, target)), problems
    rows = data.q.shape[:3]
    numbers = torch.full((*rows, made.most), -77, dtype=torch.int32, device=data.q.device)
    counts = torch.full(rows, -77, dtype=torch.int32, device=data.q.device)
    backend.build_router(made, workload, target).run(data.q, data.k, inputs, (), (), numbers, counts)
    assert ((numbers >= 0).sum(-1) == counts).all(), "-1 after the last, and only there"
    assert (numbers >= -1).all(), "every place is written"
    blocks = -(-data.k.shape[2] // made.block)
    found = unpack(words_of(Lists(numbers, counts), blocks))[..., :blocks]
    assert (found.sum(-1) == counts).all(), "each block once"
    return found


def due(data: Data) -> Tensor:
    """What torch chooses."""
    call, (choice,) = data.op.composite.chosen(data.q, data.k, data.v, list(data.inputs.values()))[""]
    found = unpack(choice.words)[..., : choice.blocks]
    return found.expand(call.sizes["B"], call.sizes["H"], -1, -1)


def compare_choice(name: str, dtype: str, seed: int, target: Target, device: str = "cpu", **sizes: int) -> None:
    """The same blocks."""
    route = ROUTES[name]
    data = make(replace(route, sizes={**route.sizes, **sizes}), dtype, seed, device)
    wrong = (chosen(data, target) != due(data)).any(-1)
    # products are summed in another order, in 16 bits those of 17 bits of a mean: a near tie may fall otherwise
    exact = route.kind == "ties" or (dtype == "f32" and device == "cpu")
    allowed = 0.0 if exact else 0.002
    assert wrong.float().mean() <= allowed, f"{int(wrong.sum())} of {wrong.numel()} rows differ"


def compare_operator(name: str, dtype: str, seed: int, device: str = "cpu") -> None:
    """Output and gradients of the whole, chosen and regrouped by kernels, against the definition in float64."""
    data = make(ROUTES[name], dtype, seed, device)
    data.op.composite.regroups = True
    real = [x.requires_grad_() for x in (data.q, data.k, data.v, *data.inputs.values())]
    wide = [x.detach().double().requires_grad_() for x in real]
    names = list(data.inputs)
    out = data.op(*real[:3], **dict(zip(names, real[3:], strict=True)))
    exact = data.op.reference(*wide[:3], **dict(zip(names, wide[3:], strict=True)))
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out)
    found = (out, *torch.autograd.grad(out, real[:3], cotangent))
    right = (exact, *torch.autograd.grad(exact, wide[:3], cotangent.double()))
    tolerance = {"f32": 3e-5, "f16": 4e-3, "bf16": 3e-2}[dtype]
    for x, y in zip(found, right, strict=True):
        size = max(1.0, float(y.detach().abs().max()))
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance * size)
