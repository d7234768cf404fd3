"""The checker: what programs specs become, and that every error comes out as an error of the spec."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from attnc.check import check
from attnc.grammar import Source, SpecError
from attnc.ir.nodes import Dot, Kind, Literal
from attnc.ir.printer import expression, print_program
from attnc.ir.program import Program
from attnc.ir.reader import read_program
from attnc.ir.traverse import postorder
from attnc.ir.verify import verify_program

SPECS = sorted((Path(__file__).parent.parent / "specs").rglob("*.attn"))


def program(body: str, functions: str = "", **constants: float) -> Program:
    return check(Source("<test>", f"{functions} attention a {{ {body} }}"), None, constants)


def errors(text: str, name: str | None = None, constants: Mapping[str, float] | None = None) -> list[str]:
    """Codes and underlined texts of the errors of a file."""
    with pytest.raises(SpecError) as caught:
        check(Source("<test>", text), name, constants)
    return [f"{found.code} {found.span.text}" for found in caught.value.diagnostics]


def same(one: str, other: str) -> bool:
    return print_program(program(one)) == print_program(program(other))


# --- what clauses mean -------------------------------------------------------------------------------


def test_an_empty_attention_is_softmax_attention() -> None:
    full = program("")
    assert full == program(
        "mask true score dot(q, k) * scale normalize exp(score - rowmax(score)) / rowsum(exp(score - rowmax(score)))"
        "output rowsum(weight * v) scale rsqrt(D) groups h // (H // G)"
    )
    assert expression(full.body.score) == "dot(q, k) * rsqrt(real(D))"
    assert expression(full.group) == "h // (H // G)"


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_is_a_sound_program_that_reads_back(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in (line.split()[1] for line in text.splitlines() if line.startswith("attention ")):
        made = check(Source(str(path), text), name)
        verify_program(made)
        assert read_program(print_program(made)) == made
        body = made.body
        assert all(node in made.spans for node in (body.mask, body.score, body.weight, body.output) if node.children)


def test_prologues_replace_q_k_v_and_see_the_raw_ones() -> None:
    made = program("query q * 2 key l2norm(k) value v + k[0:E]  score dot(q, k)")
    assert "dot(q * 2.0, k * rsqrt" in expression(made.body.score)
    assert expression(made.body.value) == "v + k[0:E]"
    assert same("query q * 2 let p = dot(q, k) score p", "score dot(q * 2, k)")


def test_clauses_and_declarations_may_stand_in_any_order() -> None:
    one = "let d = i - j const W = 3 mask d < W score dot(q, k) + bias(d) def bias(x) = -x"
    assert same(one, "def bias(x) = -x score dot(q, k) + bias(d) mask d < W const W = 3 let d = i - j")


def test_coordinates_are_places_on_a_row_major_grid() -> None:
    made = program("space (t: T, y: Y, x: X) mask i.t == j.t and i.y == j.y and i.x < N.x")
    assert expression(made.body.mask) == ("i // (Y * X) == j // (Y * X) and i // X % Y == j // X % Y and i % X < X")
    assert made.extents == ("T", "Y", "X")
    fixed = program("const X = 4 space (y: Y, x: X) mask i.y == i.x")
    assert expression(fixed.body.mask) == "i // 4 == i % 4"
    assert fixed.extents == ("Y",)
    assert expression(program("space (x: X) mask i.x == 0").body.mask) == "i == 0"


def test_constants_are_literals_and_may_be_overridden() -> None:
    spec = "const W: int = 8 const half = W // 2 const flag = true mask i - j < half if flag else j < W"
    assert expression(program(spec).body.mask) == "i - j < 4"
    assert expression(program(spec, W=20).body.mask) == "i - j < 10"
    assert expression(program(spec, flag=False).body.mask) == "j < 8"
    real = program("const t: real = 2 score dot(q, k) * t", t=3)
    assert any(isinstance(node, Literal) and node.value == 3.0 for node in postorder(real.body.score))
    given = program("const W: int mask j < W", W=5)
    assert expression(given.body.mask) == "j < 5"


def test_static_widths_are_folded() -> None:
    made = program("const n = 32 score dot(q[0:2 * n], k[:64]) + dot(q[D // 2:], k[D // 2:D])")
    widths = [node.a.width for node in postorder(made.body.score) if isinstance(node, Dot)]
    assert isinstance(widths[0], Literal)
    assert widths[0].value == 64
    assert widths[1] is not None
    assert expression(widths[1]) == "D - D // 2"


def test_params_and_inputs_are_declared_in_order() -> None:
    made = program(
        "param t: real = 2 param n: int input a: real[H] input b_: int[2 * H - 1] score t * a[h] if n < b_[h] else n"
    )
    assert [(p.name, p.kind, p.default) for p in made.parameters] == [("t", Kind.REAL, 2.0), ("n", Kind.INT, None)]
    assert [(x.name, x.kind, len(x.dims)) for x in made.inputs] == [("a", Kind.REAL, 1), ("b_", Kind.INT, 1)]
    assert expression(made.inputs[1].dims[0]) == "2 * H - 1"


def test_scalar_inputs_are_read_by_their_name() -> None:
    assert "z[]" in expression(program("input z: real score dot(q, k) + z").body.score)


def test_ints_become_reals_where_reals_are_needed() -> None:
    assert expression(program("score i - j").body.score) == "real(i - j)"
    assert expression(program("score dot(q, k) + 1").body.score) == "dot(q, k) + 1.0"


# --- functions ---------------------------------------------------------------------------------------


def test_functions_are_inlined_with_names_where_they_were_defined() -> None:
    functions = "def shift(x, by=x * 2) = x + by def causal = j < i"
    made = program("mask causal score shift(dot(q, k)) + shift(1.0, by=scale)", functions)
    assert expression(made.body.mask) == "j < i"
    assert same("mask window(3)", "def causal = j > i mask window(3)")
    assert expression(program("mask power_blocks(1, 2)", "def causal = j > i").body.mask).endswith("and j <= i")


def test_functions_in_a_block_see_its_declarations_and_others_do_not() -> None:
    assert expression(program("const W = 3 def near(x) = x < W mask near(i - j)").body.mask) == "i - j < 3"
    assert errors("def near(x) = x < W attention a { const W = 3 mask near(i - j) and j < W }") == ["E101 W"]


def test_inputs_are_passed_whole_to_functions() -> None:
    made = program("input t: real[H, N] score dot(q, k) + at(t, j)", "def at(x, p) = x[h, p]")
    assert "t[h, j]" in expression(made.body.score)


def test_names_of_the_prelude_may_be_used_for_other_things() -> None:
    assert expression(program("const window = 5 mask window(window)").body.mask) == "abs(i - j) < 5"
    assert expression(program("let G = cumsum(f[b, h, j]) input f: real[B, H, N] score G[b, h, i]").body.score) == (
        "cumsum(f[b, h, j], i)"
    )


# --- imports -----------------------------------------------------------------------------------------


def check_file(path: Path, *search: Path) -> Program:
    return check(Source(str(path), path.read_text(encoding="utf-8")), None, {}, search)


def test_imports_are_found_beside_the_file_and_in_the_search_path(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    (tmp_path / "specs" / "near.attn").write_text("def near(x) = x < 7")
    (tmp_path / "lib" / "far.attn").write_text('import "deep/taper.attn" def far(x) = taper(x) attention unused { }')
    (tmp_path / "lib" / "deep" / "taper.attn").write_text("def taper(x) = x < 9")
    main = tmp_path / "specs" / "main.attn"
    main.write_text('import "near.attn" import "far.attn" attention a { mask near(i) and far(j) }')
    assert expression(check_file(main, tmp_path / "lib").body.mask) == "i < 7 and j < 9"
    with pytest.raises(SpecError, match=r"no file \"far.attn\""):
        check_file(main)


@pytest.mark.parametrize("written", ["../outside.attn", "sub/../../outside.attn", "link.attn"])
def test_imports_do_not_leave_the_search_path(tmp_path: Path, written: str) -> None:
    inside = tmp_path / "specs"
    (inside / "sub").mkdir(parents=True)
    (tmp_path / "outside.attn").write_text("def f = 1")
    (inside / "link.attn").symlink_to(tmp_path / "outside.attn")
    main = inside / "main.attn"
    main.write_text(f'import "{written}" attention a {{ score f }}')
    with pytest.raises(SpecError, match="outside the search path"):
        check_file(main)
    assert check_file(main, tmp_path).body


def test_import_errors_are_errors_of_the_spec(tmp_path: Path) -> None:
    main = tmp_path / "a.attn"
    main.write_text(
        'import "b.attn" import "c.attn" import "d.attn" import "bin.attn" import "uncalled.attn" attention a { }'
    )
    (tmp_path / "b.attn").write_text('import "e.attn" def twice = 1')
    (tmp_path / "e.attn").write_text('import "b.attn"')
    (tmp_path / "c.attn").write_text("def twice = 2")
    (tmp_path / "d.attn").write_text("def broken(x) = x +* 2")
    (tmp_path / "uncalled.attn").write_text("def uncalled(x) = x + nope")
    (tmp_path / "bin.attn").write_bytes(b"def f = \xff")
    with pytest.raises(SpecError) as caught:
        check_file(main)
    assert sorted(found.code for found in caught.value.diagnostics) == ["E002", "E101", "E103", "E502", "E503"]


# --- errors ------------------------------------------------------------------------------------------


def test_all_errors_of_a_file_come_at_once() -> None:
    found = errors("def f(x) = x + nope attention a { mask i score q let y = zzz } attention b { output 3 + aa }", "a")
    assert found == ["E101 nope", "E210 i", "E209 q", "E101 zzz", "E101 aa"]


def test_one_mistake_is_one_error() -> None:
    assert errors("attention a { let x = zzz let y = x + 1 mask y < x score x * y normalize softmax(score) * x }") == [
        "E101 zzz"
    ]
    assert errors("attention a { const k = 3 mask j < k score k * 2 }") == ["E104 k"]
    assert errors("attention a { input x: real[zzz] score x[0] + x[1] }") == ["E101 zzz"]
    assert errors("attention a { score f(zzz) + u(f(zzz)) def f(x) = x def u(x) = f(x) }") == ["E101 zzz"] * 2


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        (2.5, "int = 1"),
        (True, "int = 1"),
        (1, "bool = true"),
        (float("nan"), "real = 1.0"),
        (2**40, "int = 1"),
        (1e39, "real"),
    ],
)
def test_constants_of_the_wrong_kind_are_refused(value: float, declared: str) -> None:
    assert errors(f"attention a {{ const c: {declared} score 1 if c == c else 0 }}", None, {"c": value}) in (
        ["E304 c"],
        ["E305 c"],
    )


@pytest.mark.parametrize("value", ["8", None, [1], 1 + 2j])
def test_constants_that_are_no_numbers_are_refused(value: object) -> None:
    assert errors("attention a { const c = 1 mask j < c }", None, {"c": value}) == ["E304 c"]  # type: ignore[dict-item]


def test_unknown_constants_name_the_near_ones() -> None:
    with pytest.raises(SpecError, match="did you mean `window_size`"):
        check(Source("<test>", "attention a { const window_size = 3 mask j < window_size }"), None, {"windowsize": 3})


def test_a_declaration_used_nowhere_but_in_dimensions_is_used() -> None:
    made = program("const W = 4 input t: real[H, 2 * W - 1] score dot(q, k) + t[h, 0]")
    assert expression(made.inputs[0].dims[1]) == "7"


def nested_functions(count: int, form: str) -> str:
    """Functions of which each is made of the one before it."""
    functions = "".join(form.format(n=n, after=n + 1) for n in range(count))
    return f"def f0(x) = sin(x) {functions} attention a {{ score f{count}(j) }}"


@pytest.mark.parametrize(
    "text",
    [
        "attention a { score " + "exp(" * 110 + "1e-9" + ")" * 110 + " }",
        "attention a { " + "".join(f"let x{n} = x{n + 1} + j " for n in range(400)) + "let x400 = i score x0 }",
        "attention a { " + "".join(f"let x{n + 1} = sin(x{n}) " for n in range(400)) + "let x0 = j score x400 }",
        nested_functions(300, "def f{after}(x) = f{n}(x) + f{n}(-x) "),
        nested_functions(60, "def f{after}(x) = f{n}(x * 2) + f{n}(-x) "),
        "attention a { mask " + " and ".join(["j < 3"] * 2000) + " }",
        "".join(f"def f{n} = {n} " for n in range(2000)) + "attention a { score f0 }",
    ],
    ids=["calls", "lets", "lets-forward", "functions", "doubling", "long", "many"],
)
def test_specs_too_deep_or_too_large_are_errors_of_the_spec(text: str) -> None:
    found = errors(text)
    assert found
    assert {error.split()[0] for error in found} <= {"E901", "E902"}


def test_sharing_keeps_doubling_functions_cheap() -> None:
    doubled = "".join(f"def f{n + 1}(x) = f{n}(x) + f{n}(x) " for n in range(25))
    made = program("score f25(j)", "def f0(x) = sin(x) " + doubled)
    assert len(list(postorder(made.body.score))) < 40


def test_errors_inside_functions_tell_the_way_there() -> None:
    with pytest.raises(SpecError) as caught:
        program("score outer(3)", "def inner(x) = x and true def outer(y) = inner(y)")
    (found,) = caught.value.diagnostics
    assert (found.code, found.span.text) == ("E201", "x")
    assert [note.split(",")[0] for note in found.notes] == ["in `inner`", "in `outer`"]


# --- anything at all ---------------------------------------------------------------------------------

_WORDS = (
    "q k v i j h b g row o score weight scale N D 3 0.5 causal softmax(score) window(4) dot(q, k) table[h, j] "
    "doc[b, i] + - * / // % ** < == and or not if else ( ) , [ ] : mask score normalize output let x = x rowsum( exp( "
    "merge(near) cumsum( solve( mean( sum(n, true k[0:4] rope(q, i) i.x N.x inf 1e400 0x7fffffff norm2( max( param "
    "input"
).split(" ")


def mutated(text: str, chance: random.Random) -> str:
    """A spec with words dropped, doubled, exchanged or put in."""
    words = text.split(" ")
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(words))
        match chance.randrange(4):
            case 0:
                words[at] = chance.choice(_WORDS)
            case 1:
                words.insert(at, chance.choice(_WORDS))
            case 2:
                words[at] = words[chance.randrange(len(words))]
            case _:
                words[at] = ""
    return " ".join(words)


@pytest.mark.parametrize("seed", range(12))
def test_mutated_specs_check_or_are_spec_errors(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        path = chance.choice(SPECS)
        text = mutated(path.read_text(encoding="utf-8"), chance)
        try:
            made = check(Source("<mutated>", text))
        except SpecError as error:
            str(error)
        else:
            verify_program(made)
