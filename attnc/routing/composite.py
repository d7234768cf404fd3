"""A program with routes or branches as an operator: choices first, then plain attentions, then their combination.

Every step is differentiable by torch where the definition is: the attentions are operators with derived backwards,
what is around them is eager.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnc.analyse.scalar import evaluate
from attnc.backends.protocol import Target, Workload
from attnc.errors import ArgumentError
from attnc.ir.lse import log_denominator
from attnc.ir.nodes import Kind
from attnc.ir.program import Program
from attnc.reference.evaluate import merge
from attnc.routing.choice import Choice
from attnc.routing.choose import CAUSAL, choose, visible_pairs
from attnc.routing.dense import Call, Choosers, Dense, Widened
from attnc.routing.draw import draw_choices
from attnc.routing.explain import explain_parts
from attnc.routing.gathered import Gathered, is_by_key
from attnc.routing.kept import Kept
from attnc.routing.lower import LISTS, TOKENS, Part, combines, is_choice, parts_of, vanishes
from attnc.routing.pools import window_count
from attnc.routing.regroup import Regrouped, saves
from attnc.routing.router import Chooser
from attnc.routing.selecting import Selecting, from_words, words_of
from attnc.signature import Signature, size_value
from attnc.validate import check_call, split

if TYPE_CHECKING:
    from attnc.op import Op
    from attnc.plan import Plan
    from attnc.runtime import KernelSource

STRETCH = 1 << 26
"""Pairs of a head looked at together, where it must be known which rows see a key."""


class Composite:
    """The steps of one program. ``make`` turns the plain program of a part into an operator, of kernels of ``source``.

    Raises:
        NotLowerable: a part has no plain program.
    """

    def __init__(self, program: Program, make: Callable[[Program], Op], source: KernelSource) -> None:
        self.program = program
        self._source = source
        self._plans: dict[tuple[str, int, int], Plan] = {}
        self.signature = Signature.of(program)
        self.parts = [(part, make(part.plain)) for part in parts_of(program)]
        self.regrouped = {part.name: Regrouped.of(part.plain, part.body, make) for part, _ in self.parts}
        self.gathered = {part.name: Gathered.of(part.bare, part.body, make) for part, _ in self.parts}
        self.kept = {part.name: Kept.of(part, make) for part, _ in self.parts}
        self.keeps = True
        """Whether heads that keep some queries attend among these alone."""
        self.selecting = {part.name: Selecting(part, op.source) for part, op in self.parts}
        self.gathers: bool | None = None
        """Whether to gather keys that were chosen one by one, where that can be done; ``None``: where it pays."""
        self.used: dict[str, str] = {}
        """How each attention was run last: ``kept``, ``sorted``, ``gathered``, ``regrouped`` or ``masked``."""
        self.choosers = {
            part.name: Chooser(part.routed, source) for part, _ in self.parts if part.routed and part.listed
        }
        self.listed = {part.name: make(part.listed) for part, _ in self.parts if part.listed is not None}
        self.regroups: bool | None = None
        """Whether to regroup queries by what they chose; ``None``: where it pays."""

    def attentions(self, target: Target) -> list[Op]:
        """The operators that a bundle for ``target`` is made of: all that are needed, and those that gather keys."""
        gathered = [found.op for found in self.gathered.values() if found is not None]
        return [*(op for _, op in self.parts), *(op for op in gathered if _runs(op, target))]

    def explain(self, D: int, E: int | None, grad: bool) -> str:
        """What is chosen and combined, then what is derived for each attention."""
        before = explain_parts(
            self.program,
            tuple(part for part, _ in self.parts),
            [name for name, regrouped in self.regrouped.items() if regrouped is not None],
            [name for name, gathered in self.gathered.items() if gathered is not None],
            [name for name, kept in self.kept.items() if kept is not None],
            {
                (part.name, at): self.selecting[part.name].explain(at, D, D if E is None else E)
                for part, _ in self.parts
                for at, route in enumerate(part.body.routes)
                if is_by_key(route)
            },
            {
                part.name: self._on_gpus(part, D, D if E is None else E)
                for part, _ in self.parts
                if part.chosen and self.kept[part.name] is None and not any(map(is_by_key, part.body.routes))
            },
        )
        return "\n".join([before, *(op.explain(D, E, grad=grad) for _, op in self.parts)])

    @staticmethod
    def _on_gpus(part: Part, D: int, E: int) -> list[str]:
        """How kernels choose and attend there, or why they do not."""
        from attnc.analyse.ranking import refusal
        from attnc.compiler import specialize_program

        reason = "several routes refine one another"
        if part.routed is not None:
            reason = refusal(specialize_program(part.routed, (D, E))) or ""
        if part.listed is None:
            reason = reason or "what is chosen is no short list of blocks"
            return [f"chosen in torch: {reason}"]
        most = size_value(part.listed.inputs[-1].dims[-1], {})
        chosen = f"chosen in torch: {reason}" if reason else "ranked and selected by one kernel"
        return [
            f"{chosen}; as lists of at most {most} blocks",
            "where that saves work, kernels sort queries by the blocks in their lists, and merge what each block gives",
        ]

    def draw(self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], b: int, h: int) -> str:
        """What the routes choose on given tensors, attention by attention."""
        found = self.chosen(q, k, v, values)
        drawn = []
        for part, _ in self.parts:
            call, choices = found[part.name]
            if choices:
                widths = call.sizes["D"] + call.sizes["E"]
                drawn.append(f"{part.plain.name}\n" + draw_choices(call, part.body.mask, choices, widths, b, h))
        return "\n\n".join(drawn) + "\n"

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool, states: Sequence[Tensor] | None = None
    ) -> Any:
        """The output, with the log-sum-exp if ``lse``; ``values`` are those of :meth:`Signature.bind`.

        ``states`` are the choices of such a call before (:meth:`choose_all`), which are made if they are not given.
        """
        sizes = check_call(self.program, self.signature, q, k, v, values)
        call = functools.cache(lambda: self.call(q, k, v, values, sizes))
        chosen = {} if states is None else self._taken(call(), list(states))
        given = dict(zip(self.signature.names, values, strict=True))
        if not self.program.branches:
            ((part, op),) = self.parts
            return self._attend(part, op, call, sizes, (q, k, v), given, lse, chosen.get(part.name))
        outputs: dict[tuple[str, ...], Tensor] = {}
        rows: dict[str, Tensor] = {}
        used = combines(self.program)
        merged = {name for node in used if len(node.names) > 1 for name in node.names}
        must_see = not vanishes(self.program.body.output)
        sees = torch.zeros(q.shape[:3], dtype=torch.bool, device=q.device)
        for part, op in self.parts:
            has_lse = log_denominator(part.body.weight) is not None
            wants = part.name in merged or (must_see and has_lse)
            found = self._attend(part, op, call, sizes, (q, k, v), given, wants, chosen.get(part.name))
            outputs[part.name,], rows[part.name] = found if wants else (found, found)
            if must_see:
                sees |= rows[part.name] > float("-inf") if wants else self._sees(part, call(), chosen.get(part.name))
        for node in used:
            if len(node.names) > 1:
                found = [outputs[name,].to(rows[name].dtype) for name in node.names]
                outputs[node.names] = merge(found, [rows[name] for name in node.names])
        output = self._combined(call(), outputs, sees if must_see else None).to(q.dtype)
        if not lse:
            return output
        if self.program.body.output not in used or not merged:
            message = "branches have one log-sum-exp where the output is their `merge` alone"
            raise ArgumentError("return_lse", message)
        return output, torch.stack([rows[name] for name in used[0].names]).logsumexp(0)

    def call(self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], sizes: Mapping[str, int]) -> Call:
        """What choices and combinations are computed on: at least float32."""
        compute = torch.float32 if q.dtype in (torch.bfloat16, torch.float16) else q.dtype
        inputs, numbers, _ = split(self.signature, values)
        kinds = {Kind.REAL: compute, Kind.INT: torch.long, Kind.BOOL: torch.bool}
        heads = torch.arange(sizes["H"])
        params = {
            x.name: torch.as_tensor(number, dtype=kinds[x.kind], device=q.device)
            for x, number in zip(self.signature.parameters, numbers, strict=True)
        }
        named = {x.name: tensor for x, tensor in zip(self.signature.inputs, inputs, strict=True)}
        env = {**sizes, "h": heads, **dict(zip(params, numbers, strict=True)), **named}
        groups = torch.as_tensor(evaluate(self.program.group, env)).expand(sizes["H"]).to(q.device)
        tokens = Widened(dict(zip("qkv", (q, k, v), strict=True)), compute)
        return Call(tokens, named, params, sizes, groups)

    def chosen(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any] = ()
    ) -> dict[str, tuple[Call, list[Choice]]]:
        """What each attention's routes choose on given tensors, by its name."""
        call = self.call(q, k, v, values, check_call(self.program, self.signature, q, k, v, values))
        return {part.name: (call, self.choices(part, call)) for part, _ in self.parts}

    def choices(self, part: Part, call: Call, most: int | None = None) -> list[Choice]:
        """What the routes of a part chose, as words, or as lists of at most ``most``; by kernels where they can."""
        return choose(call, part.body.mask, part.body.routes, most, self.selecting[part.name])

    def _most(self, part: Part, call: Call) -> int | None:
        """The length of the lists that an attention gathers by; ``None`` where it reads words."""
        gathered = self.gathered[part.name]
        if gathered is None or len(part.body.routes) > 1 or not self._gathers(gathered, call):
            return None
        return gathered.shapes(call.sizes)[0][-1]

    def _gathers(self, gathered: Gathered, call: Call) -> bool:
        return gathered.pays(call) if self.gathers is None else self.gathers

    # Choices as tensors, to be kept between a forward and its backward

    def choose_all(self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any]) -> list[Tensor]:
        """The choices of a call as tensors: lists where each query chose single keys, else words."""
        sizes = check_call(self.program, self.signature, q, k, v, values)
        call = self.call(q, k, v, values, sizes)
        given = dict(zip(self.signature.names, values, strict=True))
        made: list[Tensor] = []
        for part, _ in self.parts:
            chooser = self.choosers.get(part.name)
            found = None if chooser is None else chooser.choose(q, k, v, given, sizes)
            choices = [found] if found else self.choices(part, call, self._most(part, call))
            made += [x for at, choice in enumerate(choices) for x in self._as_tensors(part, at, choice, call)]
        return [x.contiguous() for x in made]

    def states_like(self, q: Tensor, sizes: Mapping[str, int]) -> list[Tensor]:
        """Empty tensors like those of :meth:`choose_all`."""
        made: list[Tensor] = []
        for part, _ in self.parts:
            for at, source in enumerate(part.chosen):
                gathered = self._lists(part, at)
                shapes = [[size_value(dim, sizes) for dim in source.dims]]
                if gathered is not None:
                    shapes = gathered.shapes(sizes)
                made += [q.new_empty(shape, dtype=torch.int32) for shape in shapes]
        return made

    def _lists(self, part: Part, at: int) -> Gathered | None:
        """Whether the choice of a route is kept as lists."""
        return self.gathered[part.name] if at == len(part.chosen) - 1 else None

    def _as_tensors(self, part: Part, at: int, choice: Choice, call: Call) -> list[Tensor]:
        if (gathered := self._lists(part, at)) is not None:
            return list(gathered.arguments(choice, call).values())
        return [words_of(choice, part.chosen[at], call)]

    def _taken(self, call: Call, states: list[Tensor]) -> dict[str, list[Choice]]:
        """The choices of each attention from what :meth:`choose_all` made."""
        found: dict[str, list[Choice]] = {}
        for part, _ in self.parts:
            found[part.name] = []
            for at, (source, route) in enumerate(zip(part.chosen, part.body.routes, strict=True)):
                if (gathered := self._lists(part, at)) is not None:
                    found[part.name].append(gathered.choice(states.pop(0), states.pop(0), call))
                else:
                    found[part.name].append(from_words(states.pop(0), route, source, call))
        return found

    def _attend(
        self,
        part: Part,
        op: Op,
        made: Callable[[], Call],
        sizes: Mapping[str, int],
        tokens: Sequence[Tensor],
        given: Mapping[str, Any],
        lse: bool,
        choices: Sequence[Choice] | None,
    ) -> Any:
        """One attention, by its operator. What eager steps need is ``made`` where there are some."""
        q, k, v = tokens
        if (listed := self._listed(part, q, sizes)) is not None:
            most = size_value(listed.program.inputs[-1].dims[-1], sizes)
            choice = choices[0] if choices else self.choosers[part.name].choose(q, k, v, given, sizes)
            numbers = (choice or self.choices(part, made(), most)[0]).lists(most).numbers
            numbers = numbers.expand(sizes["B"], sizes["H"], -1, -1)
            rest = {name: given[name] for name in listed.arguments if name != LISTS}
            self.used[part.name] = "sorted"
            return listed(q, k, v, return_lse=lse, **{LISTS: numbers}, **rest)
        call = made()
        if choices is None:
            choices = self.choices(part, call, self._most(part, call))
        kept = self.kept[part.name]
        if kept is not None and self.keeps and q.numel() and k.numel():
            self.used[part.name] = "kept"
            return kept.run(tokens, choices, call, given, lse)
        gathered = self.gathered[part.name]
        if gathered is not None and self._gathers(gathered, call):
            lists = gathered.arguments(choices[-1], call)
            if gathered.op.refusal(q, k, v, lists | dict(given), lse) is None:
                self.used[part.name] = "gathered"
                return gathered.run(q, k, v, lists, given, lse)
        regrouped = self.regrouped[part.name]
        if regrouped is not None and not lse and q.numel() and k.numel() and self._pays(regrouped, choices[0], call):
            names = regrouped.whole.arguments
            found = regrouped.run(q, k, v, choices[0], call, {name: given[name] for name in names})
            if found is not None:
                self.used[part.name] = "regrouped"
                return found
        self.used[part.name] = "masked"
        chosen = [words_of(choice, source, call) for source, choice in zip(part.chosen, choices, strict=True)]
        arguments: dict[str, Any] = dict(zip((source.name for source in part.chosen), chosen, strict=True))
        if part.value is not None:
            k, v = self._windows(part, call, q.dtype)
            arguments[TOKENS] = call.sizes["N"]
        arguments |= {name: given[name] for name in op.arguments if name not in arguments}
        return op(q, k, v, return_lse=lse, **arguments)

    def _listed(self, part: Part, q: Tensor, sizes: Mapping[str, int]) -> Op | None:
        """The operator that sorts queries by lists of blocks, where there is one and it pays."""
        listed = self.listed.get(part.name)
        if listed is None or self.regroups is False:
            return None
        if not self._source.backend_on(q.device.type).regroups(self._plan(listed, sizes["D"], sizes["E"])):
            return None
        (route,) = part.body.routes
        block, most = (size_value(x, sizes) for x in (route.keys_block, listed.program.inputs[-1].dims[-1]))
        pays = self.regroups or saves(sizes["N"], block, most, part.body.mask is CAUSAL)
        return listed if pays else None

    def _plan(self, listed: Op, D: int, E: int) -> Plan:
        key = listed.name, D, E
        if key not in self._plans:
            self._plans[key] = listed.plan(D, E)
        return self._plans[key]

    def _pays(self, regrouped: Regrouped, choice: Choice, call: Call) -> bool:
        return regrouped.pays(choice, call) if self.regroups is None else self.regroups

    @staticmethod
    def _windows(part: Part, call: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What stands for k and v: ``[B, G or H, windows, width]``."""
        assert part.value is not None
        if part.per_group:
            heads = torch.arange(call.sizes["G"], device=call.device)
            call = Call(call.tokens, call.inputs, call.params, {**call.sizes, "H": call.sizes["G"]}, heads)
        dense = Dense(call, Choosers(0, 0))
        value = dense.at(part.value).flatten(2, 3).to(dtype)
        value = value.expand(call.sizes["B"], call.sizes["H"], -1, -1)
        if part.key is None:
            return value.new_zeros(*value.shape[:3], call.sizes["D"]), value
        key = dense.at(part.key).flatten(2, 3).to(dtype)
        return key.expand(call.sizes["B"], call.sizes["H"], -1, -1), value

    def _sees(self, part: Part, call: Call, choices: Sequence[Choice] | None) -> Tensor:
        """Which rows see a key, ``[B or 1, H or 1, M]``."""
        if part.value is not None:
            assert part.body.windows is not None
            length, stride = (int(evaluate(size, call.sizes)) for size in part.body.windows)
            count = window_count(call.sizes["N"], length, stride)
            return Dense(call, Choosers(0, call.sizes["M"]), keys=count).at(part.body.mask).any(3)
        choices = self.choices(part, call) if choices is None else choices
        step = max(1, STRETCH // max(1, call.sizes["N"] * call.sizes["B"] * call.sizes["H"]))
        found = [
            visible_pairs(call, part.body.mask, choices, lo, min(lo + step, call.sizes["M"])).any(3)
            for lo in range(0, call.sizes["M"], step)
        ]
        return torch.cat(found, 2)

    def _combined(self, call: Call, outputs: Mapping[tuple[str, ...], Tensor], sees: Tensor | None) -> Tensor:
        """The output clause, ``[B, H, M, width]``; 0 where ``sees`` is false."""
        dense = Dense(call, Choosers(0, call.sizes["M"]), branches=outputs)
        output = dense.at(self.program.body.output).squeeze(3)
        output = output.expand(*(call.sizes[size] for size in "BHM"), -1)
        return output if sees is None else torch.where(sees[..., None], output, torch.zeros_like(output))


def _runs(op: Op, target: Target) -> bool:
    """Whether a backend can compile an operator for some usual widths."""
    types = {"real": "f32", "int": "i64", "bool": "bool"}
    inputs = tuple("i32" if is_choice(source) else types[source.kind] for source in op.program.inputs)
    workload = Workload("bf16", inputs, False)
    return any(op.source.refusal(widths, workload, target) is None for widths in ((64, 64), (128, 128), (576, 512)))
