"""A row becomes ids, labels on the replies alone, positions and speech targets, as generation has
them: the same prompt as build_prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import media_samples as samples
import numpy as np
import pytest
import torch
from data_samples import LLAMA_FACTORY, OURS, SWIFT, row_of, text, write, write_shard
from tiny import TOKEN_IDS, VOICE_IDS, build

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.generate import Thought, think
from thinktalk.media.chat import DEFAULT_SYSTEM_PROMPT, SPEECH_SYSTEM_PROMPT
from thinktalk.media.mel import voice_mel
from thinktalk.media.prompt import build_prompt
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.options import GREEDY
from thinktalk.train.codes import encode_speech
from thinktalk.train.examples import IGNORED, Example, ExampleMaker, maker_for
from thinktalk.train.features import FeatureCache
from thinktalk.train.rows import read_row
from thinktalk.train.shards import Folder, open_source
from thinktalk.train.survey import SILENT
from thinktalk.train.voice import save_speech_encoder
from thinktalk.weights import LoadedModel

STOP = TOKEN_IDS["<|im_end|>"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return build(tmp_path_factory.mktemp("tiny"), "7b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ours"), OURS)


@pytest.fixture(scope="module")
def maker(model: LoadedModel) -> ExampleMaker:
    return maker_for(model)


def learned(example: Example) -> list[str]:
    """The stretches that are learned, as text."""
    assert len(example.labels) == len(example.ids)
    on = np.flatnonzero(example.labels != IGNORED)
    assert (example.labels[on] == example.ids[on + 1]).all()
    runs = np.split(on, np.flatnonzero(np.diff(on) > 1) + 1)
    return [text(example.labels[run]) for run in runs if len(run)]


def test_labels_stand_on_replies_alone(maker: ExampleMaker) -> None:
    (example,) = maker.make(row_of("Hi", "Hello!", "And?", "That's all."))
    assert learned(example) == ["Hello!<|im_end|>", "That's all.<|im_end|>"]
    assert text(example.ids) == (
        f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nThat's all.<|im_end|>\n"
    )
    assert (example.positions == np.arange(len(example.ids))).all()


def test_the_prompt_is_what_generation_sees(
    maker: ExampleMaker, folder: Path, model: LoadedModel
) -> None:
    """All media in one conversation of two turns: ids and features of build_prompt, bit for bit."""
    media = folder / "media"
    first = [
        {"type": "image", "image": str(media / "dog.jpg")},
        {"type": "text", "text": "see and hear"},
        {"type": "audio", "audio": str(media / "bell.wav")},
        {"type": "video", "video": str(media / "talking.mp4")},
    ]
    second = [{"type": "video", "video": str(media / "silent.mp4")}, "again"]
    (example,) = maker.make(row_of(first, "One.", second, "Two."))
    prompt = build_prompt(
        [
            {"role": "user", "content": first},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": second},
        ],
        tokenizer=maker.tokenizer,
        config=maker.config.thinker_config,
        processor=maker.processor,
    )
    count = len(prompt.ids)
    assert example.ids[:count].tolist() == prompt.ids.tolist()
    assert text(example.ids[count:]) == "Two.<|im_end|>\n"
    assert learned(example) == ["One.<|im_end|>", "Two.<|im_end|>"]
    for ours, theirs in zip(example.prompt.mels, prompt.mels, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(example.prompt.images[0][0], prompt.images[0][0])
    for ours, theirs in zip(example.prompt.videos, prompt.videos, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
    assert example.prompt.video_has_audio == prompt.video_has_audio == [True, False]
    thought = Thought(model.omni, prompt, max_text_tokens=1)
    np.testing.assert_array_equal(example.positions[:, :count], thought.positions)


def test_a_reply_begins_where_generation_begins(maker: ExampleMaker) -> None:
    """Tokens never reach from the turn's head into the reply, whatever it begins with."""
    (example,) = maker.make(row_of("Hi", "\n\n  well"))
    assert learned(example) == ["\n\n  well<|im_end|>"]


def test_markers_and_media_are_never_learned(maker: ExampleMaker, folder: Path) -> None:
    picture = str(folder / "media/cat.png")
    row = row_of("draw", ["here: ", {"type": "image", "image": picture}, " done"])
    (example,) = maker.make(row)
    assert learned(example) == ["here: ", " done<|im_end|>"]


def test_a_document_is_learned_as_it_is(maker: ExampleMaker, folder: Path) -> None:
    messages = [{"role": "assistant", "content": "<image>is a cat"}]
    row = {"messages": messages, "images": [str(folder / "media/cat.png")]}
    (example,) = maker.make(read_row(row, find=Folder(folder)))
    assert learned(example) == ["is a cat<|endoftext|>"]
    assert text(example.ids).startswith("<|vision_bos|><|IMAGE|>")
    assert maker.measure(read_row(row, find=Folder(folder))) == len(example.ids)


def test_weights_tools_and_system_prompts(maker: ExampleMaker) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "the time?"},
        {"role": "function_call", "content": '{"name": "clock", "arguments": {}}'},
        {"role": "observation", "content": "4"},
        {"role": "assistant", "content": "four", "loss": False},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "bye"},
    ]
    row = read_row({"messages": turns, "tools": '[{"name": "clock"}]'}, find=Folder(Path()))
    (example,) = maker.make(row)
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call><|im_end|>'
    assert learned(example) == [call, "bye<|im_end|>"]
    whole = text(example.ids)
    assert whole.startswith("<|im_start|>system\nBe kind.\n\n# Tools") and '"clock"' in whole
    assert maker.measure(row) == len(example.ids)
    with_prompt = replace(maker, system="Mine.")
    assert text(with_prompt.make(row_of("a", "b"))[0].ids).startswith("<|im_start|>system\nMine.<")


def test_pairs_and_wanted_replies(maker: ExampleMaker) -> None:
    pair = row_of("a", "b", "c", "good", rejected_response="worse")
    chosen, rejected = maker.make(pair)
    assert learned(chosen) == ["good<|im_end|>"] and learned(rejected) == ["worse<|im_end|>"]
    assert (chosen.rejected, rejected.rejected) == (False, True)
    assert maker.measure(pair) == len(chosen.ids) + len(rejected.ids)
    (unwanted,) = maker.make(row_of("a", "b", label=False))
    assert unwanted.wanted is False and chosen.wanted is None


def test_prompts_are_refused_unless_asked_for(maker: ExampleMaker) -> None:
    row = row_of("only a question")
    with pytest.raises(ValueError, match="no reply to learn"):
        maker.make(row)
    (example,) = replace(maker, prompts=True).make(row)
    assert learned(example) == []


@pytest.mark.parametrize("name", ["lf", "swift", "ours", "shard"])
def test_sample_files_train_unmodified(
    maker: ExampleMaker, folder: Path, tmp_path: Path, name: str
) -> None:
    """Every row of both projects' forms becomes examples, as long as their headers promised."""
    files = {"lf": LLAMA_FACTORY, "swift": SWIFT, "ours": OURS}
    sources = []
    if name == "shard":
        write_shard(tmp_path / "a.tar", folder / "media")
        sources = [open_source(tmp_path / "a.tar", media=folder)]
    else:
        data = write(tmp_path, files[name])
        sources = [open_source(data)]
        if name == "lf":
            sources.append(open_source(data / "v1_demo.jsonl"))
    encoder = SpeechTokenizer(SpeechTokenizerConfig()).eval()
    ready = replace(maker, prompts=True, encoder=encoder)
    for source in sources:
        for number in range(len(source)):
            if name == "shard" and number == 3:
                continue  # the one without a row
            row = source.row(number)
            examples = ready.make(row)
            # compressed sound may be a token longer or shorter
            slack = 1 if "flac" in str(row) or "mp3" in str(row) or "talking" in str(row) else 0
            promised, got = ready.measure(row), sum(map(num_positions, examples))
            assert abs(promised - got) <= slack, (source.place(number), promised, got)
            assert row.is_prompt or all(learned(example) for example in examples)


def num_positions(example: Example) -> int:
    """Of Thinker and Talker."""
    return len(example.ids) + sum(s.start + 2 + len(s.codes) for s in example.spoken)


def test_speech_targets(maker: ExampleMaker, folder: Path) -> None:
    source = open_source(folder / "spoken.jsonl")
    (example,) = maker.make(source.row(0))
    assert text(example.ids).startswith(f"<|im_start|>system\n{SPEECH_SYSTEM_PROMPT}")
    first, second = example.spoken
    assert text(example.ids[first.start : first.end]) == "hello."
    assert text(example.ids[second.start : second.end]) == "once more, hello."
    assert example.ids[first.end] == example.ids[second.end] == STOP
    assert first.codes.tolist() == [5, 0, 999, 7] and second.codes.tolist() == list(range(6))
    assert (first.voice, second.voice) == (VOICE_IDS["Ethan"], VOICE_IDS["Chelsie"])
    ignoring = replace(maker, speech="ignored").make(source.row(0))[0]
    assert not ignoring.spoken and SPEECH_SYSTEM_PROMPT in text(ignoring.ids)
    chosen, rejected = maker.make(source.row(2))
    assert chosen.ids.tolist() == rejected.ids.tolist()
    assert [e.spoken[0].codes.tolist() for e in (chosen, rejected)] == [[1, 2], [3, 4, 5]]


def test_recordings_become_codes_once(
    maker: ExampleMaker, model: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    encoder = SpeechTokenizer(SpeechTokenizerConfig()).eval()
    wave = samples.tone(0.5, 24000)
    row = row_of("say it", "it", speech=str(folder / "media/rain.flac"), speaker="Ethan")
    cache = FeatureCache(tmp_path / "cache")
    speaking = replace(maker, encoder=encoder, cache=cache)
    (example,) = speaking.make(row)
    codes = encode_speech(str(folder / "media/rain.flac"), encoder)
    assert example.spoken[0].codes.tolist() == codes.tolist() and len(codes) == 25
    with torch.no_grad():
        direct = encoder.encode(torch.from_numpy(voice_mel(wave))[None])[0]
    assert encode_speech((wave, 24000), encoder).tolist() == direct.tolist()
    kept = len(list((tmp_path / "cache").glob("??/*")))
    assert speaking.make(row)[0].spoken[0].codes.tolist() == codes.tolist()
    assert len(list((tmp_path / "cache").glob("??/*"))) == kept
    with torch.no_grad():
        other = SpeechTokenizer(SpeechTokenizerConfig()).eval()
    assert replace(speaking, encoder=other).make(row)[0].spoken[0].codes.tolist() != codes.tolist()
    with pytest.raises(ValueError, match="no speech encoder"):
        maker.make(row)
    save_speech_encoder(encoder, tmp_path)
    found = maker_for(replace(model, folder=_checkpoint(model, tmp_path)))
    assert found.encoder is not None


def _checkpoint(model: LoadedModel, folder: Path) -> Path:
    """The folder with the checkpoint's tokenizer and processor files in it."""
    for path in model.folder.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (
            {"codes": [1], "speaker": "Nobody"},
            "'Nobody' is unknown; the voices are Chel",
        ),
        ({"codes": [1, 8193], "speaker": "Ethan"}, "codes hold 8193, but .* are 0 to 8192"),
        ({"codes": [-1], "speaker": "Ethan"}, "codes hold -1"),
        ({"codes": [], "speaker": "Ethan"}, "codes of Ethan's reply are empty"),
        ({"codes": [0.5], "speaker": "Ethan"}, "float64 of shape .*whole numbers"),
        ({"codes": [[1, 2], [3]], "speaker": "Ethan"}, "no row of whole numbers"),
        ({"codes": "notes.npy", "speaker": "Ethan"}, r"notes\.npy is no \.npy file"),
        ({"codes": "none.npy", "speaker": "Ethan"}, r"none\.npy does not exist"),
        ({"codes": [1], "speaker": "Ethan", "content": ""}, "spoken turn has no text"),
        ({"speech": "media/bell.wav", "speaker": "Ethan"}, "no speech encoder"),
    ],
)
def test_bad_speech(maker: ExampleMaker, folder: Path, turn: dict[str, Any], message: str) -> None:
    (folder / "notes.npy").write_text("la la")
    reply = {"role": "assistant", "content": "hi", **turn}
    raw = {"messages": [{"role": "user", "content": "hi"}, reply]}
    with pytest.raises(ValueError, match=message):
        maker.measure(read_row(raw, find=Folder(folder)))


def test_other_refusals(maker: ExampleMaker) -> None:
    with pytest.raises(ValueError, match=r"has \d+ tokens, but may have 50"):
        replace(maker, max_tokens=50).measure(row_of("a", "b" * 60))
    with pytest.raises(ValueError, match=r"message 1 \(user\) is empty"):
        maker.measure(row_of("", "b"))


def test_where_speech_is_needed_silent_rows_are_no_bad_ones(maker: ExampleMaker) -> None:
    needing = replace(maker, speech="needed")
    ask, said = {"role": "user", "content": "a"}, {"codes": [1, 2], "speaker": "Ethan"}
    reply = {"role": "assistant", "content": "b"}

    def measured(*messages: dict[str, Any], **columns: Any) -> int:
        raw = {"messages": list(messages), **columns}
        return needing.measure(read_row(raw, find=Folder(Path())))

    call = {"role": "tool_call", "content": '{"name": "look", "arguments": {}}'}
    assert measured(ask) == measured(ask, reply) == measured(ask, call) == SILENT
    assert measured(ask, reply | {"content": ""}) == SILENT
    assert measured(ask, reply | said | {"loss": False}, ask, reply) == SILENT
    assert measured(ask, reply, rejected_response="c") == SILENT
    assert measured(ask, reply | said) > SILENT
    with pytest.raises(ValueError, match="no reply that is learned has speech"):
        measured(ask, reply | said, rejected_response="c")
    with pytest.raises(ValueError, match="spoken turn has no text"):
        measured(ask, reply | said | {"content": ""})


def test_stamps_follow_what_lengths_depend_on(maker: ExampleMaker) -> None:
    others = [
        replace(maker, max_tokens=100),
        replace(maker, voices={"Ethan": 290}),
        replace(maker, audio_in_video=False),
        replace(maker, processor=replace(maker.processor, video_fps=1.0)),
        replace(maker, system="x"),
    ]
    stamps = {made.stamp() for made in (maker, *others)}
    assert len(stamps) == 6 and replace(maker).stamp() == maker.stamp()


def test_generated_text_is_what_the_labels_want(maker: ExampleMaker, model: LoadedModel) -> None:
    """Greedy generation from the prompt of an example reaches its labels if the model knows them:
    here the ids are fed through the same steps, so the layouts agree."""
    (example,) = maker.make(row_of("hello", "x"))
    start = int(np.flatnonzero(example.labels != IGNORED)[0]) + 1
    prompt = replace(example.prompt, ids=example.ids[:start])
    with torch.inference_mode():
        thought = Thought(model.omni, prompt, max_text_tokens=2)
        first = next(think(thought, sampling=GREEDY, seed=0))
        ids = torch.from_numpy(example.ids)[None]
        embeddings = model.omni.thinker.embed(ids)
        positions = torch.from_numpy(example.positions)[:, None]
        hidden = model.omni.thinker(embeddings, positions=positions)
        assert int(model.omni.thinker.logits(hidden)[0, start - 1].argmax()) == first
