"""Routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnc.check.block import Block
from attnc.ir.program import Route

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator


def routes_of(ev: Evaluator, block: Block) -> tuple[Route, ...] | None:
    if block.routes:
        ev.report.add("E404", "routes are not known", block.routes[0].head)
        return None
    return ()
