"""The prelude as the checker sees it: its functions, and what a clause means when it is not written."""

from __future__ import annotations

import functools

from attnc.check.functions import Scope, declare
from attnc.check.report import Report
from attnc.grammar import std_source
from attnc.grammar import tree as t
from attnc.grammar.parse import parse


@functools.cache
def _prelude() -> t.File:
    return parse(std_source())


@functools.cache
def std_scope() -> Scope:
    """The functions of the prelude."""
    scope, report = Scope(), Report()
    declare(scope, _prelude().functions, report, frozenset(), None)
    report.raise_if_any()
    return scope


@functools.cache
def default_clause(keyword: str) -> t.Clause:
    """The clause that stands when none is written."""
    (defaults,) = _prelude().attentions
    (clause,) = (item for item in defaults.items if isinstance(item, t.Clause) and item.keyword == keyword)
    return clause
