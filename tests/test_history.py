"""What a conversation is written as while it comes: the same ids, positions and features as the
prompt of the whole, in whatever pieces it came."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omni_cases import CASES, SYSTEM, Turns, messages, random_turns, sound

from thinktalk.config import OmniConfig, ThinkerConfig
from thinktalk.generate import load_processor, load_tokenizer
from thinktalk.live.history import Composer, Item, Mark, Piece, flat, heard_tokens
from thinktalk.media.chat import MARKERS, Control, Medium, as_messages, render
from thinktalk.media.mel import log_mel
from thinktalk.media.prompt import Prompt, assemble, build_prompt
from thinktalk.model.audio import num_tokens
from thinktalk.model.tmrope import Track, prompt_positions

SPARK = Path(__file__).parents[1] / "src" / "thinktalk" / "spark"


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("7b")


def config_of(folder: Path) -> ThinkerConfig:
    return OmniConfig.from_dict(json.loads((folder / "config.json").read_text())).thinker_config


def composer_of(folder: Path) -> Composer:
    return Composer(load_tokenizer(folder), config_of(folder))


def prompt_of(folder: Path, content, **options) -> Prompt:
    return build_prompt(
        content,
        tokenizer=load_tokenizer(folder),
        config=config_of(folder),
        processor=load_processor(folder),
        reply=False,
        **options,
    )


def medium(folder: Path, part: dict) -> Prompt:
    """A medium with its markers, as sessions read it."""
    kind = part["type"]
    options = {key: value for key, value in part.items() if key not in ("type", kind)}
    before, after = MARKERS[kind]
    return assemble(
        [Control(before), Medium(kind, part[kind], options), Control(after)],
        tokenizer=load_tokenizer(folder),
        config=config_of(folder),
        processor=load_processor(folder),
    )


def windows(wave: np.ndarray) -> Iterator[torch.Tensor]:
    """As the microphone gives them: no rest that makes no token."""
    for window in torch.from_numpy(log_mel(wave, maximum="running")).split(200, dim=1):
        if num_tokens(window.shape[1]):
            yield window


def composed(folder: Path, turns: Turns) -> list[Piece]:
    """Every turn written part by part, what is certain taken after each of them."""
    composer, pieces = composer_of(folder), []
    for message in messages(turns):
        composer.begin(message["role"])
        for part in message["content"]:
            if part["type"] == "text":
                composer.text(part["text"])
            elif part["type"] == "audio":
                for window in windows(part["audio"]):
                    composer.hear(window)
                    pieces.append(composer.take())
                composer.close()
            else:
                composer.add(medium(folder, part))
            pieces.append(composer.take())
        composer.end()
        pieces.append(composer.take())
    assert composer.take(whole=True) is None
    return [piece for piece in pieces if piece is not None]


def same(folder: Path, pieces: list[Piece], prompt: Prompt) -> None:
    """Ids, positions, mels and patches of the pieces are those of the prompt."""
    config = config_of(folder)
    assert [i for piece in pieces for i in piece.ids] == prompt.ids.tolist()
    track, positions = Track(), []
    for piece in pieces:
        span, track = piece.positions(track, config)
        positions.append(span)
    expected, end = prompt_positions(
        torch.from_numpy(prompt.ids),
        config=config,
        audio_tokens=[num_tokens(mel.shape[1]) for mel in prompt.mels],
        image_grids=[grid for _, grid in prompt.images],
        video_grids=[grid for _, grid, _ in prompt.videos],
        seconds_per_pair=[seconds for _, _, seconds in prompt.videos],
        video_has_audio=prompt.video_has_audio,
    )
    assert torch.equal(torch.cat(positions, dim=1), expected) and track.next == end
    tokens = sum(num_tokens(mel.shape[1]) for piece in pieces for mel in piece.mels)
    assert tokens == sum(num_tokens(mel.shape[1]) for mel in prompt.mels)
    for kind in ("images", "videos"):
        ours = [patches for piece in pieces for patches, _ in getattr(piece, kind)]
        theirs = [entry[0] for entry in getattr(prompt, kind)]
        assert len(ours) == len(theirs)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_turns_are_written_as_the_template_does(folder: Path, case: str) -> None:
    same(folder, composed(folder, CASES[case]), prompt_of(folder, messages(CASES[case])))


@pytest.mark.parametrize("seed", range(12))
def test_any_turns(folder: Path, seed: int) -> None:
    turns = random_turns(seed)
    same(folder, composed(folder, turns), prompt_of(folder, messages(turns)))


def test_windows_are_the_clip(folder: Path) -> None:
    """What is heard window by window has the mel of the whole clip."""
    turns: Turns = [SYSTEM, ("user", [("audio", 5.3)])]
    pieces, [mel] = composed(folder, turns), prompt_of(folder, messages(turns)).mels
    heard = torch.cat([mel for piece in pieces for mel in piece.mels], dim=1)
    assert np.array_equal(heard.numpy(), mel) and heard.shape[1] == 530
    assert [len(piece.mels) for piece in pieces] == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 9), tuple(range(1, 30))])
def test_tokens_reach_across_the_borders_of_texts(cuts: tuple[int, ...]) -> None:
    """With a trained tokenizer, words that came in pieces are the tokens of the whole text."""
    words = "What is the capital of France? I wonder"
    composer = composer_of(SPARK)
    composer.begin("user")
    pieces = [composer.take()]
    for start, stop in zip((0, *cuts), (*cuts, len(words)), strict=True):
        composer.text(words[start:stop])
        assert composer.take() is None, "words wait for what follows them"
    composer.end()
    ids = [i for piece in (*pieces, composer.take()) if piece is not None for i in piece.ids]
    expected = prompt_of(SPARK, [{"role": "user", "content": words}], system="-").ids.tolist()
    assert ids == expected[len(expected) - len(ids) :] and expected.count(ids[0]) == 2


def test_names_of_added_tokens_are_words(folder: Path) -> None:
    """Nobody closes their own turn by writing the sign for it."""
    composer = composer_of(folder)
    composer.text("<|im_end|>")
    piece = composer.take(whole=True)
    assert piece is not None and composer.tokenizer.id_of("<|im_end|>") not in piece.ids
    assert composer.tokenizer.decode(piece.ids, keep_special=True) == "<|im_end|>"


@pytest.mark.parametrize("folder", [SPARK])
def test_messages_with_tools(folder: Path) -> None:
    """A call, its result and what follows, each added on its own."""
    call = {"type": "function", "function": {"name": "move", "arguments": '{"steps": 2}'}}
    talk = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "Yes.", "tool_calls": [call]},
        {"role": "tool", "content": "arrived"},
        {"role": "user", "content": "Thanks."},
    ]
    options = {
        "tokenizer": load_tokenizer(folder),
        "config": config_of(folder),
        "processor": load_processor(folder),
    }
    ids: list[int] = []
    for message in talk:
        rendered = render([{"role": "system", "content": "-"}, message], reply=False)
        second = [n for n, p in enumerate(rendered) if p == Control("<|im_start|>")][1]
        ids += Piece.of(assemble(rendered[second:], **options)).ids
    whole = prompt_of(folder, talk, system="-").ids.tolist()
    assert ids == whole[len(whole) - len(ids) :] and whole.count(ids[0]) == len(talk) + 1


# ---- pieces


def test_parts_of_a_piece_take_their_own_features(folder: Path) -> None:
    piece = Piece.of(prompt_of(folder, as_messages(["See", np.zeros((56, 84, 3), np.uint8)])))
    piece.ids += Piece.of(prompt_of(folder, as_messages([sound(0.5)]))).ids
    config = config_of(folder)
    counts = [piece.ids.count(token) for token in config.media_token_ids]
    assert counts[0] == 12 and counts[1] == 6 and counts[2] == 0
    features = [torch.arange(count)[:, None] + 100 * n for n, count in enumerate(counts)]
    piece.keep_features((features[0], features[1], None))
    assert piece.ready and not piece.images
    for step in (1, 5, len(piece.ids)):
        found = [[], [], []]
        for start in range(0, len(piece.ids), step):
            ids, rows = piece.part(start, min(start + step, len(piece.ids)), config)
            assert ids.tolist() == piece.ids[start : start + step]
            for kind, values in zip(found, rows, strict=True):
                kind += [] if values is None else values[:, 0].tolist()
        assert found[0] == list(range(12)) and found[1] == list(range(100, 106)) and not found[2]


def test_ids_that_the_model_chose_are_plain(folder: Path) -> None:
    """Even a placeholder or a marker, which a model may choose: they count as text."""
    config = config_of(folder)
    ids = [config.image_token_index, config.vision_start_token_id, config.video_token_index, 5]
    positions, track = Piece(ids, is_plain=True).positions(Track(next=7, base=7), config)
    assert positions.tolist() == [[7, 8, 9, 10]] * 3
    assert track == Track(next=11, base=11)


def test_pieces_and_items_are_known_by_themselves() -> None:
    """Two seconds of silence are not two other seconds of silence."""
    first, second = (Piece([1], mels=[torch.zeros(128, 200)]) for _ in range(2))
    assert first != second and [first] == [first]
    assert Item("a", "user", [first]) != Item("a", "user", [first])
    assert list(flat([Item("a", "user", [first]), Item("b", "user", [second])])) == [first, second]
    assert Mark(first, 0, Track(), -1) != Mark(second, 0, Track(), -1)


def test_a_copy_goes_on_alone(folder: Path) -> None:
    composer = composer_of(folder)
    composer.begin("user")
    composer.add(medium(folder, {"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}))
    composer.text("one")
    twin = composer.copy()
    composer.text(" two")
    composer.end()
    twin.end()
    first, second = composer.take(), twin.take()
    assert first is not None and second is not None
    text = [composer.tokenizer.decode(piece.ids) for piece in (first, second)]
    assert text == ["user\none two\n", "user\none\n"]
    assert len(first.images) == len(second.images) == len(second.image_grids) == 1


# ---- what was heard of a reply


def heard(words: list[str], audio_ms: int, *, speech_ms: int | None) -> str:
    item = Item("a", "assistant", was_spoken=True, audio_ms=10_000, speech_ms=speech_ms)
    texts = [word.encode() for word in words]
    count = heard_tokens(item, audio_ms, texts=texts, chars_per_second=10.0)
    return "".join(words[:count])


def test_speech_of_known_length_is_divided_evenly() -> None:
    words = ["The", " cat", " sat", " down", "."]  # 17 characters
    cases = {0: "", 300: "The", 600: "The cat", 700: "The cat sat", 950: "The cat sat down"}
    for audio_ms, text in cases.items():
        assert heard(words, round(audio_ms * 17 / 10), speech_ms=1700) == text, audio_ms
    assert heard(words, 1700, speech_ms=1700) == heard(words, 9999, speech_ms=1700)
    assert heard(words, 1700, speech_ms=1700) == "The cat sat down."


def test_speech_that_goes_on_has_the_usual_pace() -> None:
    words = ["The", " cat", " sat", " down", "."]
    assert heard(words, 299, speech_ms=None) == ""
    assert heard(words, 1000, speech_ms=None) == "The cat"
    assert heard(words, 60_000, speech_ms=None) == "The cat sat down."


def test_only_whole_words_were_heard() -> None:
    words = ["un", "believ", "able", " news"]
    assert [heard(words, ms, speech_ms=None) for ms in (300, 900, 1200, 1700)] == [
        "",
        "",
        "unbelievable",
        "unbelievable news",
    ]
    assert heard([], 100, speech_ms=None) == heard([], 100, speech_ms=0) == ""
