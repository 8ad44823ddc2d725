"""Bad rows are told and left out; what is known of rows is kept and shared; both projects' files
come out as batches."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from data_numbers import NumberMaker, dataset, flat, given_rows
from data_samples import LLAMA_FACTORY, OURS, SWIFT, write
from tiny import build

from thinktalk.train import survey
from thinktalk.train.data import Dataset, Loader
from thinktalk.train.examples import maker_for
from thinktalk.train.features import FeatureCache
from thinktalk.train.shards import open_source


def test_bad_rows_are_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    maker = NumberMaker(bad=frozenset({3, 17}))
    with caplog.at_level(logging.WARNING):
        rows = dataset(maker=maker, max_bad_share=0.05)
    assert [str(row) for row in rows.bad] == [
        "numbers:4: number 3 is bad", "numbers:18: number 17 is bad",
    ]  # fmt: skip
    assert "skipped numbers:4: number 3 is bad" in caplog.text
    order = flat(given_rows(Loader(rows, batch_size=4, epochs=1)))
    assert sorted(order) == sorted(set(range(50)) - {3, 17})
    with pytest.raises(ValueError, match=r"(?s)2 of 50 rows .*1\.0%.*numbers:4: number 3 is bad"):
        dataset(maker=NumberMaker(bad=frozenset({3, 17})))
    every = NumberMaker(bad=frozenset(range(50)))
    with pytest.raises(ValueError, match="no row of the training data can be used"):
        dataset(maker=every, max_bad_share=1.0)


def test_silent_rows_are_left_out_and_are_no_bad_ones(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    maker = NumberMaker(bad=frozenset({3}), silent=frozenset(range(10, 50)))
    for _ in range(2):  # seen for the first time, and found in the folder
        caplog.clear()
        rows = dataset(maker=maker, max_bad_share=0.11, folder=tmp_path)
        assert caplog.messages[0] == (
            "left out 40 of 50 rows, without a spoken reply: numbers:11 ..."
        )
        assert len(caplog.messages) == 2 and "number 3 is bad" in caplog.messages[1]
        order = flat(given_rows(Loader(rows, batch_size=3, epochs=1)))
        assert sorted(order) == [n for n in range(10) if n != 3]
    with pytest.raises(ValueError, match="1 of 10 rows cannot be used"):
        dataset(maker=maker, max_bad_share=0.09)
    with pytest.raises(ValueError, match=r"no reply in the 50 rows .* is spoken"):
        dataset(maker=NumberMaker(silent=frozenset(range(50))))


def test_rows_too_long_for_a_batch_are_left_out_or_told() -> None:
    with pytest.raises(ValueError, match="a row has 44 tokens, but batch_tokens is 40"):
        Loader(dataset(), batch_tokens=40)
    rows = dataset(max_length=40, max_bad_share=0.2)
    assert all("tokens, but may have 40" in row.reason for row in rows.bad) and rows.bad
    lengths = [NumberMaker().length(n) for n in range(50)]
    assert len(rows) == sum(length <= 40 for length in lengths)


def test_our_own_errors_name_the_row() -> None:
    def fail(number: int) -> int:
        assert number != 7, "seven"
        return 3

    with pytest.raises(RuntimeError, match="numbers:8: seven"):
        dataset(maker=NumberMaker(length=fail))
    with pytest.raises(ValueError, match=r"something unexpected .TypeError"):
        dataset(maker=NumberMaker(length=lambda n: len(n)))  # type: ignore[arg-type]


def test_a_survey_is_kept_shared_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "BLOCK_ROWS", 8)
    first = NumberMaker(bad=frozenset({9}))
    rows = dataset(30, maker=first, folder=tmp_path, max_bad_share=0.1)
    assert sorted(first.measured) == list(range(30))
    again = NumberMaker()  # somebody mended row 9
    mended = dataset(30, maker=again, folder=tmp_path)
    assert again.measured == [9] and not mended.bad
    assert (mended.lengths != rows.lengths).tolist() == [n == 9 for n in range(30)]
    kept = sorted((tmp_path / "surveys").glob("*/*.json"))
    assert len(kept) == 4
    kept[1].unlink()  # an interrupted survey goes on where it stopped
    third = NumberMaker(bad=frozenset({9}))
    dataset(30, maker=third, folder=tmp_path, max_bad_share=0.1)
    assert sorted(third.measured) == list(range(8, 16))
    other = NumberMaker()
    dataset(31, maker=other, folder=tmp_path)
    assert len(other.measured) == 31


def test_several_surveys_at_once_share_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "BLOCK_ROWS", 4)
    monkeypatch.setattr(survey, "POLL_S", 0.01)
    makers = [NumberMaker() for _ in range(3)]
    results: dict[int, list[int]] = {}

    def look(n: int) -> None:
        results[n] = dataset(80, maker=makers[n], folder=tmp_path).lengths.tolist()

    threads = [threading.Thread(target=look, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2]
    assert sorted(n for maker in makers for n in maker.measured) == list(range(80))


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for name, files in (("lf", LLAMA_FACTORY), ("swift", SWIFT), ("ours", OURS)):
        (folder / name).mkdir()
        write(folder / name, files)
    return folder


def test_sample_files_come_as_batches(sample_folder: Path, tmp_path: Path) -> None:
    """The whole way, from both projects' files to packed batches, twice: bit for bit the same."""
    maker = maker_for(build(tmp_path / "tiny", "7b"), cache=FeatureCache(tmp_path / "cache"))
    sources = [open_source(sample_folder / name) for name in ("lf", "swift", "ours")]

    def epoch() -> list[dict[str, Any]]:
        rows = Dataset(sources, maker, max_bad_share=0.1, folder=tmp_path / "cache")
        # a prompt without a reply, and a recording where no encoder is
        assert sorted(row.place.rsplit("/", 1)[1] for row in rows.bad) == [
            "grpo.jsonl:1", "spoken.jsonl:2",
        ]  # fmt: skip
        return list(Loader(rows, batch_tokens=2048, epochs=1, pad_id=262))

    first, second = epoch(), epoch()
    assert len(first) > 1
    total = sum(len(source) for source in sources)
    assert sorted({n for batch in first for n in batch["samples"].tolist()}) == [
        n for n in range(total) if n not in bad_numbers(sources)
    ]
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            pairs = zip(value, theirs[name], strict=True) if isinstance(value, list) else []
            assert all((a == b).all() for a, b in pairs)
            assert isinstance(value, list) or bool((value == theirs[name]).all())
    assert any(len(batch["mels"]) for batch in first)
    assert any(bool(batch["rejected"].any()) for batch in first)


def bad_numbers(sources: list[Any]) -> set[int]:
    """The two rows that no maker without an encoder takes, among all sources' rows."""
    ends = ("grpo.jsonl:1", "spoken.jsonl:2")
    places = [source.place(n) for source in sources for n in range(len(source))]
    return {n for n, place in enumerate(places) if place.endswith(ends)}
