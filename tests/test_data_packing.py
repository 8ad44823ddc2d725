"""Plans waste little and lose nothing; in a packed batch no sample sees another; the Talker's rows
are those that generation hands over."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import media_samples as samples
import numpy as np
import pytest
import torch
from data_samples import row_of, write_media
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOICE_IDS, build
from torch import Tensor

from thinktalk.generate import Thought, hand_over
from thinktalk.train.examples import IGNORED, Example, ExampleMaker, maker_for
from thinktalk.train.packing import (
    PADDING,
    causal_mask,
    collate,
    cumulative_lengths,
    plan_packed,
    plan_padded,
    talker_rows,
)
from thinktalk.weights import LoadedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return build(tmp_path_factory.mktemp("tiny"), "7b")


@pytest.fixture(scope="module")
def maker(model: LoadedModel) -> ExampleMaker:
    return maker_for(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_media(folder / "media")
    return folder


many_lengths = st.lists(st.integers(1, 100), max_size=60)


@given(lengths=many_lengths, size=st.one_of(st.none(), st.integers(1, 7)))
@settings(max_examples=200, deadline=None)
def test_packed_plans_hold_every_sample_once(lengths: list[int], size: int | None) -> None:
    array = np.array(lengths, np.int64)
    rows = plan_packed(array, batch_tokens=100, batch_size=size)
    assert sorted(place for row in rows for place in row.tolist()) == list(range(len(lengths)))
    assert all(array[row].sum() <= 100 and len(row) <= (size or 100) for row in rows)
    if size is None and len(rows) > 1:  # best fit leaves at most one row half empty
        assert sorted(array[row].sum() for row in rows)[1] > 50


@given(
    lengths=many_lengths,
    size=st.one_of(st.none(), st.integers(1, 7)),
    tokens=st.one_of(st.none(), st.integers(100, 400)),
)
@settings(max_examples=200, deadline=None)
def test_padded_plans_group_neighbours_in_length(
    lengths: list[int], size: int | None, tokens: int | None
) -> None:
    array = np.array(lengths, np.int64)
    batches = plan_padded(array, batch_tokens=tokens, batch_size=size)
    assert sorted(place for b in batches for place in b.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= (size or len(lengths))
        assert len(batch) * array[batch].max() <= (tokens or np.inf)
    borders = [(array[b].max(), array[b].min()) for b in batches]
    assert all(low >= high for (_, low), (high, _) in pairwise(borders))
    if size and not tokens:
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)


def test_packing_fills_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 2000, size=4096)
    rows = plan_packed(lengths, batch_tokens=8192)
    assert lengths.sum() / (8192 * len(rows)) > 0.98


def some_examples(maker: ExampleMaker, folder: Path) -> list[Example]:
    """Of different lengths, with all kinds of media."""
    media = folder / "media"
    everything = [
        {"type": "video", "video": str(media / "talking.mp4")},
        {"type": "audio", "audio": str(media / "bell.wav")},
        {"type": "image", "image": str(media / "cat.png")},
        "what?",
    ]
    rows = [
        row_of("hi", "hello", codes=[1, 2], speaker="Chelsie"),
        row_of(everything, "all of it", "sure?", "yes", codes=[5, 6, 7], speaker="Ethan"),
        row_of([{"type": "image", "image": str(media / "dog.jpg")}], "a dog", label=False),
    ]
    return [example for row in rows for example in maker.make(row)]


def states(model: LoadedModel, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embeddings and hidden states [B,T,C] of the Thinker on a collated batch."""
    thinker = model.omni.thinker
    pictures = zip(batch["image_patches"], batch["image_grids"], strict=True)
    films = zip(batch["video_patches"], batch["video_grids"], strict=True)
    embeddings = thinker.embed_prompt(
        batch["ids"],
        audio=thinker.encode_audio(batch["mels"]),
        images=thinker.encode_patches(list(pictures)),
        videos=thinker.encode_patches(list(films)),
    )
    mask = causal_mask(batch["segments"])
    return embeddings, thinker(embeddings, positions=batch["positions"], mask=mask)


def logits(model: LoadedModel, batch: dict[str, Any]) -> Tensor:
    """[B,T,V] of the Thinker on a collated batch."""
    with torch.inference_mode():
        return model.omni.thinker.logits(states(model, batch)[1])


@pytest.mark.parametrize("packed", [True, False])
def test_no_sample_sees_another(
    model: LoadedModel, maker: ExampleMaker, folder: Path, packed: bool
) -> None:
    """The logits of every sample in a batch are those that it has alone."""
    examples = some_examples(maker, folder)
    batch = collate(examples, samples=[4, 5, 6], pad_id=262, packed=packed)
    together = logits(model, batch)
    for number, example in enumerate(examples):
        alone = collate([example], samples=[0], pad_id=262, packed=packed)
        expected = logits(model, alone)[0, : len(example.ids)]
        found = together[batch["segments"] == number]
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_what_a_batch_holds(maker: ExampleMaker, folder: Path) -> None:
    examples = some_examples(maker, folder)
    lengths = [len(example.ids) for example in examples]
    padded = collate(examples, samples=[4, 5, 6], pad_id=262, packed=False)
    packed = collate(examples, samples=[4, 5, 6], pad_id=262, packed=True)
    assert padded["ids"].shape[0] == 3 and packed["ids"].shape[0] == 1
    assert packed["ids"].shape[1] == -(-sum(lengths) // 32) * 32
    assert padded["ids"].shape[1] == -(-max(lengths) // 32) * 32
    for batch in (padded, packed):
        for number, example in enumerate(examples):
            mine = batch["segments"] == number
            assert batch["ids"][mine].tolist() == example.ids.tolist()
            assert batch["labels"][mine].tolist() == example.labels.tolist()
            assert batch["positions"][:, mine].tolist() == example.positions.tolist()
        rest = batch["segments"] == PADDING
        assert int(rest.sum()) == batch["ids"].numel() - sum(lengths)
        assert (batch["labels"][rest] == IGNORED).all() and (batch["ids"][rest] == 262).all()
        assert batch["samples"].tolist() == [4, 5, 6]
        assert batch["wanted"].tolist() == [-1, -1, 0]
        assert batch["rejected"].tolist() == [False] * 3
        for sample, row, start, end, voice in batch["spoken"].tolist():
            example = examples[sample]
            target = example.spoken[0]
            text = batch["ids"][row, start:end].tolist()
            assert text == example.ids[target.start : target.end].tolist()
            assert voice == target.voice
        assert [codes.tolist() for codes in batch["codes"]] == [[1, 2], [5, 6, 7]]
        assert [len(batch[name]) for name in ("mels", "image_patches", "video_patches")] == [
            2,
            2,
            1,
        ]
        assert batch["image_grids"].shape == (2, 3) and batch["video_grids"].shape == (1, 3)
    assert len(padded["spoken"]) == 2


def test_masks_and_cumulative_lengths() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, PADDING], [2, 2, 2, 2, PADDING, PADDING]])
    mask = causal_mask(segments)
    assert mask.shape == (2, 1, 6, 6) and mask.dtype == torch.bool
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:2, :2] = expected[2:5, 2:5] = expected[5:, 5:] = True
    assert torch.equal(mask[0, 0], expected.tril())
    cumulative = cumulative_lengths(segments)
    assert cumulative.tolist() == [0, 2, 5, 6, 10, 12] and cumulative.dtype == torch.int32
    # neighbours of one number in two rows are still two samples
    assert cumulative_lengths(torch.zeros(2, 3).long()).tolist() == [0, 3, 6]


WIDE = samples.frames(2, 56, 1120)  # its columns reach further than all that follows it
QUESTIONS = {
    "picture": [{"type": "image", "image": samples.picture(56, 84)}, "hi"],
    "wide film": [{"type": "video", "video": WIDE, "sound": samples.tone(0.1, 16000)}],
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_talker_rows_are_those_of_generation(
    maker: ExampleMaker, model: LoadedModel, question: str
) -> None:
    """The layout in a packed batch gives the very tracks and positions that generate hands over."""
    omni, thinker, config = model.omni, model.omni.thinker, model.config.talker_config
    row = row_of(QUESTIONS[question], "Well, hello.", codes=[3, 1, 4], speaker="Ethan")
    (example,), (other,) = maker.make(row), maker.make(row_of("another", "sample"))
    batch = collate([other, example], samples=[7, 8], pad_id=0, packed=True)
    talker = talker_rows(batch, config=config)
    spoken = example.spoken[0]
    prompt = replace(example.prompt, ids=example.ids[: spoken.start])
    with torch.inference_mode():
        thought = Thought(omni, prompt, max_text_tokens=20)
        for token in example.ids[spoken.start : spoken.end].tolist():
            thought.feed(torch.tensor([token]))
        tracks, positions = hand_over(thought, voice=model.voices["Ethan"])
        embeddings, hidden = states(model, batch)
        media = torch.isin(batch["ids"], torch.tensor(thinker.config.media_token_ids))
        rows = hidden + embeddings.masked_fill(media[..., None], 0.0)
        special = thinker.embed(talker["special_ids"])
        rows = torch.cat((rows[talker["rows"]], special), dim=1)  # [K,T+3,E]
        codec = omni.talker.embed_codec(talker["codec_ids"]) * talker["has_codec"][..., None]
        ours = (rows[torch.arange(1)[:, None], talker["places"]] + codec)[0]
    count = len(tracks)
    torch.testing.assert_close(ours[:count], tracks, atol=2e-5, rtol=1e-4)
    assert torch.equal(talker["positions"][:, 0, :count], positions)
    assert (int(positions.max()) > int(positions[0, -1])) == (question == "wide film")
    after = int(positions.max()) + 1  # as generate goes on
    rest = [after, after + 1, after + 2]
    assert talker["positions"][:, 0, count : count + 3].tolist() == [rest] * 3
    said = talker["labels"][0][talker["labels"][0] != IGNORED].tolist()
    assert said == [3, 1, 4, config.tts_codec_end_token_id]
    track = talker["codec_ids"][0][talker["has_codec"][0]].tolist()
    assert track == [config.tts_codec_pad_token_id, config.tts_codec_start_token_id, 3, 1, 4]
    begin, width = len(other.ids), batch["ids"].shape[1]
    text_places = [begin + spoken.start + n for n in range(4)]
    assert talker["places"][0, count - 2 : count + 3].tolist() == [width, *text_places]
    assert talker["special_ids"].tolist() == [[VOICE_IDS["Ethan"], 282, 280]]


def test_short_texts_end_and_are_padded(maker: ExampleMaker) -> None:
    (example,) = maker.make(row_of("a", "bc", codes=list(range(6)), speaker="Ethan"))
    batch = collate([example], samples=[0], pad_id=0, packed=False)
    talker = talker_rows(batch, config=maker.config.talker_config)
    start, width = example.spoken[0].start, batch["ids"].shape[1]
    end, pad = width + 1, width + 2
    expected = [width, start, start + 1, end, pad, pad, pad, pad]
    assert talker["places"][0, start : start + 8].tolist() == expected
    assert talker["places"].shape[1] % 32 == 0
    empty = collate(maker.make(row_of("a", "b")), samples=[0], pad_id=0, packed=False)
    assert talker_rows(empty, config=maker.config.talker_config)["places"].shape == (0, 0)
