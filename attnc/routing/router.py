"""Choosing by kernels, where a backend has them for a route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnc.backends.protocol import Router, Workload
from attnc.ir.program import Program
from attnc.library import untraced
from attnc.routing.choice import Choice, Lists
from attnc.routing.dense import Choosers
from attnc.signature import Signature
from attnc.targets import target_of_device
from attnc.validate import DTYPES

if TYPE_CHECKING:
    from attnc.analyse.ranking import Ranking
    from attnc.runtime import KernelSource


@dataclass(slots=True)
class Chooser:
    """The kernels of one route, made when they are first needed."""

    program: Program
    source: KernelSource
    made: dict[tuple[Any, ...], tuple[Ranking, Router] | str] = field(default_factory=dict)

    def choose(
        self, q: Tensor, k: Tensor, v: Tensor, given: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> Choice | None:
        """What each query chooses, as lists; ``None`` where no kernel does it."""
        found = self.find(q, k, v, given)
        if isinstance(found, str):
            return None
        ranking, router = found
        rows = (sizes["B"], sizes["H"], sizes["M"])
        numbers = torch.empty((*rows, ranking.most), dtype=torch.int32, device=q.device)
        counts = torch.empty(rows, dtype=torch.int32, device=q.device)
        signature = Signature.of(self.program)
        inputs = [given[x.name].detach() for x in signature.inputs]
        parameters = [given[x.name] for x in signature.parameters]
        extents = [sizes[name] for name in signature.extents]
        untraced(router.run)(q.detach(), k.detach(), inputs, parameters, extents, numbers, counts)
        blocks = -(-sizes["N"] // ranking.block)
        return Choice(Lists(numbers, counts), ranking.block, blocks, Choosers(0, sizes["M"]))

    def find(self, q: Tensor, k: Tensor, v: Tensor, given: Mapping[str, Any]) -> tuple[Ranking, Router] | str:
        """The kernels for tensors like these, or why there are none."""
        dtypes = tuple(DTYPES[given[x.name].dtype] for x in self.program.inputs)
        widths = int(q.shape[3]), int(v.shape[3])
        key = (str(target_of_device(q.device.type)), DTYPES[q.dtype], dtypes, widths)
        if key not in self.made:
            workload = Workload(DTYPES[q.dtype], dtypes, False)
            self.made[key] = untraced(self.source.router)(self.program, widths, workload, q.device.type)
        return self.made[key]
