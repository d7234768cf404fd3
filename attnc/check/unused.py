"""Nothing is ever ignored: what is declared and has no effect is an error."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.check.block import Block, name_of
from attnc.check.evaluate import Evaluator
from attnc.check.frame import Frame
from attnc.check.functions import Function, Scope
from attnc.check.report import Report
from attnc.check.values import POISON
from attnc.grammar import Span
from attnc.grammar import tree as t

EFFECT = {
    "query": ("q",),
    "key": ("k",),
    "value": ("v", "o"),
    "scale": ("scale",),
    "score": ("score",),
    "normalize": ("weight", "o"),
}
"""The names through which each clause has its effect. ``mask``, ``output`` and ``groups`` always have one."""


def check_unused(ev: Evaluator, block: Block, had_errors: bool) -> None:
    """Report declarations and clauses without effect; where there were errors, only check what is left."""
    if not had_errors:
        _declarations(ev, block)
        for owner in (block, *block.branches.values()):
            _clauses(ev, block, owner)
    for owner in (block, *block.branches.values()):
        frame = Frame("let", owner.scope, owner, owner)
        for declared in owner.declared.values():
            if isinstance(declared, t.Let) and (owner, declared.name.text) not in ev.used:
                ev.value(declared.value, frame)
        _bodies(ev, owner.scope.own.values(), frame)


def _declarations(ev: Evaluator, block: Block) -> None:
    for name, declared in block.declared.items():
        if (block, name) in ev.used or isinstance(declared, t.Let | t.Name):
            continue
        what = {t.InputDecl: "input", t.ConstDecl: "constant", t.ParamDecl: "param", t.Branch: "branch"}[type(declared)]
        hint = "combine it in `output`" if what == "branch" else "use it in a clause, or remove it"
        _no_effect(ev, f"the {what} `{name}` is never used", name_of(declared).span, hint)


def _clauses(ev: Evaluator, block: Block, owner: Block) -> None:
    bodies = list(block.branches.values()) or [block]
    for keyword, clause in owner.clauses.items():
        if keyword in ("groups", "output"):
            continue
        ruled = [body for body in bodies if body.clause(keyword) == (clause, owner)]
        if not ruled:
            hint = f"every branch has a `{keyword}` of its own"
            _no_effect(ev, f"this `{keyword}` has no effect", clause.at, hint)
        elif keyword in EFFECT and not any((body, name) in ev.used for body in ruled for name in EFFECT[keyword]):
            listed = " or ".join(f"`{name}`" for name in EFFECT[keyword])
            _no_effect(ev, f"this `{keyword}` has no effect", clause.at, f"nothing that follows uses {listed}")


def _no_effect(ev: Evaluator, message: str, span: Span, hint: str) -> None:
    ev.report.add("E405", message, span, "no effect", hint)


def _bodies(ev: Evaluator, functions: Iterable[Function], frame: Frame) -> None:
    """Check the names in functions whether they are called or not; what depends on arguments is left open."""
    for function in functions:
        parameters = function.declared.parameters
        open_ = {parameter.name.text: POISON for parameter in parameters}
        inner = Frame(frame.clause, function.scope, frame.body, function.home, open_)
        ev.value(function.declared.body, inner)
        for parameter in parameters:
            if parameter.default is not None:
                ev.value(parameter.default, inner)


def check_definitions(scope: Scope, report: Report) -> None:
    """Check the functions of a file that stand outside of its attentions."""
    if not scope.own:
        return
    first = next(iter(scope.own.values()))
    body = Block(first.declared.name, scope, is_file=True)
    _bodies(Evaluator(report, None), scope.own.values(), Frame("let", scope, body, None))
