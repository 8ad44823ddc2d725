"""The order of data: fixed by seed and epoch alone, resumable anywhere on any number of ranks; bad
rows are told and skipped; nothing is made too far ahead."""

import json
import threading
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from data_numbers import NumberMaker, Numbers, dataset, flat, given_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktalk.train import data
from thinktalk.train.data import Dataset, Loader


def test_every_row_once_an_epoch_in_an_order_of_seed_and_epoch() -> None:
    rows = dataset()
    one = given_rows(Loader(rows, batch_size=4, seed=1, epochs=1))
    assert sorted(flat(one)) == list(range(50)) and len(one) == 13
    assert given_rows(Loader(rows, batch_size=4, seed=1, epochs=1, workers=3, ahead=9)) == one
    assert given_rows(Loader(dataset(), batch_size=4, seed=1, epochs=1)) == one
    assert given_rows(Loader(rows, batch_size=4, seed=2, epochs=1)) != one
    two = given_rows(Loader(rows, batch_size=4, seed=1, epochs=2))
    assert two[:13] == one and sorted(flat(two[13:])) == list(range(50)) and two[13:] != one


def test_batches_keep_to_their_size_and_hold_neighbours_in_length() -> None:
    rows, length = dataset(200), NumberMaker().length
    packed = Loader(rows, batch_tokens=100, epochs=1)
    for batch in packed:
        assert batch["ids"].shape[0] == 1
        assert sum(length(n) for n in batch["samples"].tolist()) <= 100
        for place, number in enumerate(batch["samples"].tolist()):
            mine = batch["segments"] == place
            assert batch["ids"][mine].tolist() == [number] * length(number)
    padded = given_rows(Loader(rows, batch_tokens=100, packed=False, epochs=1))
    for batch in padded:
        assert len(batch) * max(map(length, batch)) <= 100
    waste = sum(len(b) * max(map(length, b)) - sum(map(length, b)) for b in padded)
    assert waste < 0.05 * sum(map(length, range(200)))
    both = given_rows(Loader(rows, batch_tokens=100, batch_size=3, packed=True, epochs=1))
    assert max(map(len, both)) == 3
    assert max(sum(map(length, batch)) for batch in both) <= 100


@given(
    count=st.integers(1, 60),
    before=st.integers(1, 4),
    after=st.integers(1, 5),
    steps=st.integers(0, 40),
    more=st.integers(0, 3),
    packed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_resuming_anywhere_on_any_world_gives_exactly_the_rest(
    count: int, before: int, after: int, steps: int, more: int, packed: bool
) -> None:
    """`steps` steps on one number of ranks, then the rest of two epochs on another one."""
    rows = dataset(count)
    size: dict[str, Any] = {"batch_tokens": 60} if packed else {"batch_size": 3}

    def ranks(world: int) -> list[Loader]:
        return [
            Loader(rows, **size, rank=r, world=world, epochs=2, workers=1, ahead=2)
            for r in range(world)
        ]

    def run(loaders: list[Loader], steps: int | None) -> list[list[int]]:
        """The packs that all ranks take in step order, without the spare ones."""
        parts = [
            [
                None if batch["idle"] else batch["samples"].tolist()
                for batch in islice(loader, steps)
            ]
            for loader in loaders
        ]
        assert len({len(part) for part in parts}) == 1  # no rank waits for another
        return [pack for step in zip(*parts, strict=True) for pack in step if pack is not None]

    whole = run(ranks(1), None)
    first = ranks(before)
    done = run(first, steps)
    states = [json.loads(json.dumps(loader.state())) for loader in first]
    assert all(state == states[0] for state in states)
    second = ranks(after)
    for loader in second:
        loader.load_state(states[0])
    # and once more, after a few steps
    done += run(second, more)
    third = ranks(before)
    for loader in third:
        loader.load_state(second[0].state())
    assert done + run(third, None) == whole
    assert Counter(flat(whole)) == Counter({row: 2 for row in range(count)})


def test_breaking_off_loses_nothing_that_was_not_given() -> None:
    rows = dataset()
    expected = given_rows(Loader(rows, batch_size=4), 20)
    loader = Loader(rows, batch_size=4, ahead=5)
    found = given_rows(loader, 7)
    found += given_rows(loader, 1)
    assert loader.state()["place"] == 8
    assert found + given_rows(loader, 12) == expected


def test_an_endless_loader_goes_over_the_ends_of_epochs() -> None:
    rows = dataset(10)
    ranks = [Loader(rows, batch_size=3, rank=r, world=3) for r in range(3)]
    packs = [pack for step in zip(*(given_rows(r, 8) for r in ranks), strict=True) for pack in step]
    single = Loader(rows, batch_size=3)
    assert packs == [pack.tolist() for epoch in range(6) for pack in single.packs(epoch)]
    assert ranks[1].state()["epoch"] == 6 and ranks[1].state()["place"] == 0


def test_where_epochs_end_ranks_without_a_pack_get_an_idle_one() -> None:
    rows = dataset(10)  # 4 packs
    batches = [list(Loader(rows, batch_size=3, rank=r, world=3, epochs=1)) for r in range(3)]
    assert [len(b) for b in batches] == [2, 2, 2]
    assert [[bool(b["idle"]) for b in of_rank] for of_rank in batches] == [
        [False, False], [False, True], [False, True],
    ]  # fmt: skip


def test_states_of_other_data_are_refused() -> None:
    state = Loader(dataset(), batch_size=4, seed=1).state()
    Loader(dataset(), batch_size=4, seed=1, rank=1, world=2).load_state(state)
    with pytest.raises(ValueError, match="shuffled with seed 1, not 2"):
        Loader(dataset(), batch_size=4, seed=2).load_state(state)
    for other in (
        Loader(dataset(), batch_size=5, seed=1),
        Loader(dataset(51), batch_size=4, seed=1),
        Loader(dataset(maker=NumberMaker(length=lambda n: n % 9 + 1)), batch_size=4, seed=1),
    ):
        with pytest.raises(ValueError, match="are not those of the interrupted run"):
            other.load_state(state)


def test_weights_mix_sources() -> None:
    sources = [Numbers(30, "a"), Numbers(10, "b"), Numbers(20, "c")]
    rows = Dataset(sources, NumberMaker(), weights=[1, 2, 1], workers=1)
    assert len(rows) == 60
    seen: Counter[int] = Counter()
    for epoch in range(4):
        order = rows.epoch(epoch, seed=0)
        assert Counter(np.digitize(order, [30, 40]).tolist()) == {0: 15, 1: 30, 2: 15}
        seen.update(order.tolist())
    assert {seen[row] for row in range(30)} == {2}  # four halves: goes on where it was
    assert {seen[row] for row in range(30, 40)} == {12}
    assert {seen[row] for row in range(40, 60)} == {3}
    assert rows.epoch(0, seed=0).tolist() != rows.epoch(1, seed=0).tolist()
    uneven = Dataset(sources, NumberMaker(), weights=[0.3, 0.3, 0.4], workers=1)
    assert len(uneven.epoch(0, seed=0)) == 60
    plain = Dataset(sources, NumberMaker(), workers=1).epoch(3, seed=0)
    assert sorted(plain.tolist()) == list(range(60))
    for weights in ([1.0], [1, 2, 0]):
        with pytest.raises(ValueError, match="for 3 sources"):
            Dataset(sources, NumberMaker(), weights=weights)
    with pytest.raises(ValueError, match="at least one source"):
        Dataset([], NumberMaker())


def test_media_that_turn_out_bad_leave_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """The other samples come as they would; whoever has nothing left gets a spare, idle batch."""
    whole = given_rows(Loader(dataset(20), batch_size=2, epochs=1))
    broken = frozenset({*whole[3], whole[5][0]})
    maker = NumberMaker(broken=broken)
    rows = dataset(20, maker=maker, max_bad_share=0.2)
    batches = list(Loader(rows, batch_size=2, epochs=2))
    found = [b["samples"].tolist() for b in batches]
    assert found[5] == whole[5][1:] and bool(batches[3]["idle"])
    assert found[:3] == whole[:3] and found[6:10] == whole[6:]
    assert sum(bool(b["idle"]) for b in batches[:10]) == 1
    assert f"skipped numbers:{whole[5][0] + 1}" in caplog.text
    assert all(maker.made.count(number) == 1 for number in broken)  # not tried again
    strict = dataset(20, maker=NumberMaker(broken=broken), max_bad_share=0.1)
    with pytest.raises(ValueError, match="3 of 20 rows cannot be used"):
        list(Loader(strict, batch_size=2, epochs=1))


def test_nothing_is_made_far_ahead() -> None:
    """No more than `ahead` batches are made before they are asked for."""
    maker = NumberMaker()
    loader = Loader(dataset(200, maker=maker), batch_size=2, ahead=3, workers=2)
    batches = iter(loader)
    for taken in range(1, 6):
        next(batches)
        assert len(maker.made) <= 2 * (taken + 3)
    assert len(maker.made) >= 10
    before = threading.active_count()
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() < before


def test_wrong_numbers_are_refused() -> None:
    rows = dataset()
    for options, message in (
        ({}, "how large is a batch"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2, "rank": 2, "world": 2}, "rank 2 does not exist among 2"),
        ({"batch_size": 2, "packed": True}, "packed rows need batch_tokens"),
    ):
        numbers: dict[str, Any] = options
        with pytest.raises(ValueError, match=message):
            Loader(rows, **numbers)


def test_windows_change_nothing_but_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs are made within windows; every row is still there once, packs are full."""
    monkeypatch.setattr(data, "WINDOW_ROWS", 10)
    packs = Loader(dataset(100), batch_size=4).packs(0)
    assert sorted(int(row) for pack in packs for row in pack) == list(range(100))
    assert [len(pack) for pack in packs] == [4] * 25
    order = dataset(100).epoch(0, seed=0).tolist()
    for first in range(0, 100, 12):  # ten rows are no whole number of batches: twelve are
        window = [int(row) for pack in packs[first // 4 : first // 4 + 3] for row in pack]
        assert sorted(window) == sorted(order[first : first + 12])
