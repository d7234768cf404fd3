"""How kernels for GPUs cut tiles: by default, and what the tuner may choose."""

from __future__ import annotations

from attnc.backends.protocol import Choice, Config, Space, Target, Workload
from attnc.backends.tvm.cuda.shared import MOST_SHARED
from attnc.backends.tvm.emit import width_of
from attnc.backends.tvm.slots import is_product, product_of
from attnc.ir.traverse import postorder
from attnc.plan import Pass, Plan
from attnc.templates.tvm.cuda.shape import Shape
from attnc.templates.tvm.cuda.stream import STAGES

CHOICES = (Choice("warps", (2, 4, 8)), Choice("groups", (1, 2)), Choice("keys", (16, 32, 64, 128)))
COMFORTABLE = 112 * 1024
"""Bytes of shared memory of which two blocks find room on a multiprocessor."""


def shape_of(workload: Workload, config: Config) -> Shape:
    """How tiles are cut."""
    return Shape(workload.dtype, *(int(config[choice.name]) for choice in CHOICES))


def defaults_of(plan: Plan, workload: Workload, target: Target) -> list[Config]:
    """Configs to try where none is given: the first whose kernel spills nothing, or else the last."""
    cuts = [(4, 1, 64), (4, 1, 32), (4, 1, 16), (2, 1, 16)]
    if workload.dtype != "f32":
        cuts = [(4, 2, 64), (4, 2, 32), *cuts]
    configs: list[Config] = [dict(zip((c.name for c in CHOICES), cut, strict=True)) for cut in cuts]
    taken = [shared_of(plan, shape_of(workload, config)) for config in configs]
    for most in (COMFORTABLE, MOST_SHARED[target.arch]):
        if fitting := [config for config, bytes in zip(configs, taken, strict=True) if bytes <= most]:
            return fitting
    return []


def shared_of(plan: Plan, shape: Shape) -> int:
    """Bytes of shared memory that a plan takes."""
    ends = [shape.rows * (width_of(one.value.width) + 1) * 4 for step in plan.passes for one in step.accumulators]
    states = [shape.rows * 4] * (sum(len(step.statistics) for step in plan.passes) + 1)
    return max(sum(map(_whole, ends + states)), *(_of_pass(plan, step, shape) for step in plan.passes), 0)


def _of_pass(plan: Plan, step: Pass, shape: Shape) -> int:
    terms = [plan.mask, *(one.term for one in step.parts)]
    found = [product_of(node, convert=False) for node in postorder(*terms) if is_product(node)]
    products = [product.width for product in found if not product.by_pair]
    sums = [width_of(one.value.width) for one in step.accumulators if "i" not in one.value.axes]
    tiles = [shape.rows * shape.pitch(width) for width in products]
    tiles += [STAGES * shape.keys * shape.pitch(width) for width in (*products, *sums)]
    taken = sum(_whole(tile * shape.bytes) for tile in tiles)
    by_pair = len(products) < len(found) or len(sums) < len(step.accumulators)
    return taken + by_pair * shape.rows * shape.keys * 4


def _whole(bytes: int) -> int:
    return -(-bytes // 16) * 16


def space_of(plan: Plan, workload: Workload, target: Target) -> Space:
    """The space of a plan."""

    def excluded(config: Config) -> str | None:
        taken, most = shared_of(plan, shape_of(workload, config)), MOST_SHARED[target.arch]
        return f"tiles take {taken} bytes of shared memory, there are {most}" if taken > most else None

    return Space(CHOICES, defaults_of(plan, workload, target)[0], excluded)
