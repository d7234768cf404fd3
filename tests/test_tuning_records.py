"""Keys, records and the winner among them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_cases import PARTS, key, observation, pin

from attnc.autotune.bucket import bucket_of
from attnc.autotune.canonical import LARGEST, Malformed, dumps, loads
from attnc.autotune.explain import nearest, sentences
from attnc.autotune.key import Key, differences
from attnc.autotune.record import Record, read, write
from attnc.autotune.winner import Conflict, ranking, winner
from attnc.backends.protocol import Choice, Space

FIELDS = [(part, name) for part, fields in PARTS.items() for name in fields]


@pytest.mark.parametrize(("part", "name"), FIELDS)
def test_every_field_changes_the_key_and_explain_names_it(part: str, name: str) -> None:
    old = PARTS[part][name]
    new: Any = {**old, "keys": 9} if isinstance(old, dict) else [*old, "x"] if isinstance(old, list) else f"{old}!"
    other = key(**{f"{part}__{name}": new})
    assert other.digest != key().digest
    ((found_part, found_name, *_),) = differences(key(), other)
    assert (found_part, found_name.split(".")[0]) == (part, name)
    near = nearest(key(), [other, key(workload__dtype="f64", policy__mode="graph")])
    assert near is not None
    assert near.key == other
    assert sentences(near)[0].startswith(f"{part}: {name}")


def test_the_nearest_sizes_are_nearer_than_far_ones() -> None:
    def at(keys: int, **changes: Any) -> Key:
        return key(workload__bucket={**PARTS["workload"]["bucket"], "keys": keys}, **changes)

    others = [at(9), at(7), at(4, workload__dtype="f64", workload__lse=True)]
    for here, expected in ((6, 7), (5, 7), (10, 9), (4, 4)):
        near = nearest(at(here), others)
        assert near is not None
        assert near.key.parts["workload"]["bucket"]["keys"] == expected


def test_the_key_does_not_depend_on_the_order_of_fields() -> None:
    turned = {name: dict(reversed(part.items())) for name, part in reversed(PARTS.items())}
    assert Key.of(turned).digest == key().digest


leaves = st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.floats(-1e15, 1e15) | st.text()


@given(st.recursive(leaves, lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10))
def test_canonical_json_is_json_of_one_spelling(value: Any) -> None:
    text = dumps(value)
    assert json.loads(text) == value
    assert dumps(loads(text)) == text


def test_records_survive_writing() -> None:
    for one in (observation(config={"tile": 64, "way": "up"}), observation(status="crash", times_us=()), pin()):
        assert read(write(one)) == one


def test_what_is_no_record_is_refused() -> None:
    good = json.loads(write(observation()))
    for change in (
        {"schema": 2},
        {"schema": True},
        {"kind": "program"},
        {"key": "0" * 64},
        {"key_parts": {}},
        {"config": {"tile": "__import__('os').system('true')"}},
        {"config": {"../../etc/passwd": 1}},
        {"config": {"tile": "/etc/passwd"}},
        {"config": {"tile": 1.5}},
        {"config": {"tile": True}},
        {"config": [1]},
        {"status": "fine"},
        {"stage": ["final"]},
        {"times_us": []},
        {"times_us": [-1]},
        {"times_us": [1] * 2000},
        {"relative_to_default": 0},
        {"relative_to_default": None},
        {"run_id": "a\nb"},
        {"tool_version": 7},
        {"environment": "x"},
        {"exclusive": 1},
        {"unknown": 1},
    ):
        with pytest.raises(Malformed):
            read(json.dumps(good | change).encode())
    for data in (b"", b"[]", b"\xff", b"{" * 5000, b'{"a":NaN}', b'{"a":1,"a":2}', b" " * (LARGEST + 1)):
        with pytest.raises(Malformed):
            read(data)
    with pytest.raises(Malformed):
        read(json.dumps(good).replace('"bf16"', '"f16"').encode())  # the key no longer follows


@given(st.binary(max_size=300), st.integers(0, 10**6))
def test_fuzzed_records_are_read_or_refused(noise: bytes, at: int) -> None:
    data = bytearray(write(observation(config={"tile": 64})))
    at %= len(data)
    data[at : at + len(noise)] = noise
    try:
        read(bytes(data))
    except Malformed:
        return


SPACE = Space((Choice("tile", (16, 32, 64)),), {"tile": 16})


def final(tile: int | None, *ratios: float, **changes: Any) -> list[Record]:
    config = {} if tile is None else {"tile": tile}
    return [observation(config=config, relative_to_default=r, run_id=f"{i}", **changes) for i, r in enumerate(ratios)]


def test_the_fastest_wins() -> None:
    assert winner([*final(None, 1.0), *final(32, 0.8), *final(64, 0.9)], SPACE) == {"tile": 32}
    assert winner([*final(None, 1.0), *final(32, 0.8, 1.2, 1.3), *final(64, 0.9)], SPACE) == {"tile": 64}  # medians
    assert winner([], SPACE) is None


def test_nothing_slower_than_the_default_wins() -> None:
    assert winner([*final(None, 1.0), *final(32, 1.05)], SPACE) == {}
    assert winner([*final(None, 1.0), *final(32, 0.995)], SPACE) == {}  # noise
    assert winner(final(32, 0.5), SPACE) is None  # the default was no finalist


def test_ties_go_to_the_smallest_config_whatever_the_order() -> None:
    records = [*final(None, 1.0), *final(64, 0.800), *final(32, 0.806), *final(16, 0.82)]
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert winner(records, SPACE) == {"tile": 32}


def test_what_was_ever_wrong_and_what_is_no_choice_is_out() -> None:
    wrong = final(32, 1.0, status="wrong")
    assert winner([*final(None, 1.0), *final(32, 0.5), *wrong, *final(64, 0.9)], SPACE) == {"tile": 64}
    assert winner([*final(None, 1.0), *final(48, 0.5)], SPACE) == {}
    assert ranking([observation(stage="screen")]) == []


def test_pins_decide_and_may_conflict() -> None:
    records = [*final(None, 1.0), *final(32, 0.5)]
    assert winner([*records, pin(config={"tile": 64})], SPACE) == {"tile": 64}
    assert winner([*records, pin(), pin(reason="again")], SPACE) == {}
    with pytest.raises(Conflict):
        winner([*records, pin(config={"tile": 64}), pin(config={"tile": 16})], SPACE)


@given(st.tuples(*[st.integers(1, 2**20)] * 4), st.sampled_from([1, 2, 8]))
def test_buckets_grow_with_sizes(sizes: tuple[int, int, int, int], ratio: int) -> None:
    b, g, m, n = sizes
    here = bucket_of({"B": b, "H": g * ratio, "G": g, "M": m, "N": n})
    assert 4 ** (here.keys - 1) < n <= 4**here.keys or (n == 1 and here.keys == 0)
    assert 4 ** (here.rows - 1) < m <= 4**here.rows or (m == 1 and here.rows == 0)
    assert here.ratio == ratio
    larger = bucket_of({"B": b, "H": g * ratio, "G": g, "M": m + 1, "N": 4 * n})
    assert larger.rows >= here.rows
    assert larger.keys == here.keys + 1
