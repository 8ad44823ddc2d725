"""The ear that reads codec ids: what it learns from clips, and how it judges replies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import small_talk
import torch

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.train import ears
from thinktalk.train.candidates import draw_pairs
from thinktalk.train.ears import CodeEar, load_code_ear
from thinktalk.train.shards import open_source
from thinktalk.train.spelling import READER_FILE, ReaderTask, reading_batch, save_reader, spelled
from thinktalk.train.streams import Stream
from thinktalk.weights import LoadedModel

CONFIG = SpeechTokenizerConfig(hidden_size=32, fsq_levels=(4, 4, 4))
SOUNDS = {letter: 3 * number + 2 for number, letter in enumerate("abcdefgh ")}
TEXTS = ("abc def", "fed cab", "bad cafe", "dach bad", "had a bed", "each head", "a fad", "bach")


def said(text: str) -> list[int]:
    """Every letter has a code of its own, and lasts for three."""
    return [code for letter in text for code in [SOUNDS[letter]] * 3]


def stream(texts: Sequence[str]) -> tuple[Stream, np.ndarray]:
    codes = [said(text) for text in texts]
    starts = np.cumsum([0, *map(len, codes)])
    rows = [
        {"frame": 2 * int(start), "frames": 2 * len(ids), "text": f"{text.capitalize()}."}
        for start, ids, text in zip(starts, codes, texts, strict=False)
    ]
    mel = np.zeros((2 * int(starts[-1]), 80), np.float16)
    return Stream("anna", np.zeros(0, np.int16), mel, rows), np.concatenate(codes)


@pytest.fixture(scope="module")
def ear() -> CodeEar:
    """Trained for a moment on such clips."""
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(CONFIG).eval()
    one, ids = stream(TEXTS * 8)
    task = ReaderTask(tokenizer, [one], [ids])
    optimizer = torch.optim.Adam(task.module.parameters(), lr=3e-3)
    rng, losses = np.random.default_rng(0), []
    for _ in range(250):
        optimizer.zero_grad()
        loss, _ = task.loss(task.batch(rng, 8))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 1 < losses[0]
    assert task.evaluate()["letters"] < 0.1
    return CodeEar(tokenizer, task.reader.eval())


def judged(ear: CodeEar, takes: list[list[int]], text: str) -> list[ears.Candidate]:
    return ear.judge(takes, text, model=None, voice="")  # type: ignore[arg-type]


def test_it_reads_and_judges_by_fractions_of_a_word(ear: CodeEar) -> None:
    """A new text; right, with one letter blurred, with another word, and too short to say it."""
    right, wrong = said("cab had"), said("cab fed")
    blurred = list(right)
    blurred[12:15] = blurred[15:18]
    first, second, third, last = judged(ear, [right, blurred, wrong, right[:5]], "Cab, had!")
    assert first.heard == "cab had" and first.word_errors == 0 and first.errors < 0.2
    assert first.errors < second.errors < third.errors + 1
    assert third.heard == "cab fed" and third.word_errors == 1 and third.errors > 1
    assert last.errors == ears.MOST_ERRORS


def test_padding_of_a_batch_changes_nothing(ear: CodeEar) -> None:
    takes = [said("abc def"), said("abc")]
    together = judged(ear, takes, "abc")
    alone = [judged(ear, [take], "abc")[0] for take in takes]
    assert [one.heard for one in together] == [one.heard for one in alone]


def test_losses_are_those_of_ctc_by_hand() -> None:
    """One code, one letter: the path is that letter, so the loss is its cross-entropy."""
    tokenizer = SpeechTokenizer(CONFIG)
    one, ids = stream(["a", "b"] * 60)
    task = ReaderTask(tokenizer, [one], [ids])
    batch = reading_batch(tokenizer, [np.array([SOUNDS["a"]])], ["A."])
    scores = task.reader(batch["quantised"])[0, 0].log_softmax(-1)
    assert batch["letters"].tolist() == spelled("a") == [ord("a") + 1]
    loss = task.reader.losses(batch["quantised"], batch)
    assert loss.item() == pytest.approx(-scores[ord("a") + 1].item(), rel=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return small_talk.build(tmp_path_factory.mktemp("small"))


def test_pairs_without_sound(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ear of a checkpoint is found beside its encoder, and ranks what the Talker says."""
    with pytest.raises(ValueError, match="nobody reads its codes; train one by"):
        load_code_ear(model.folder)
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer(small_talk.TOKENIZER)
    save_reader(ears.new_reader(tokenizer.config), model.folder)
    try:
        monkeypatch.setattr("thinktalk.train.candidates.SPARE_IDS", 30)
        monkeypatch.setattr("thinktalk.train.candidates.LEAST_GAP", 1e-4)
        monkeypatch.setattr("thinktalk.train.candidates.MOST_OF_CHOSEN", 1e4)
        monkeypatch.setattr(ears, "render", None)  # nothing is rendered
        rows = [small_talk.coded("say it", "one two", [1], "Ethan")]
        ear = load_code_ear(model.folder)
        summary = draw_pairs(model, open_source(rows), tmp_path, ear=ear, samples=6, pairs=2)
    finally:
        (model.folder / READER_FILE).unlink()
    assert summary["pairs"] == 2
    source = open_source(tmp_path / "pairs.jsonl")
    best, next_best = (source.row(number) for number in range(2))
    assert best.rejected is not None and next_best.rejected is not None
    assert best.conversation.speech[1].codes != next_best.conversation.speech[1].codes
