"""The independent ear on flite's own speech, and its dictionary and language models."""

from math import log10

import numpy as np
import pytest

from thinktalk.eval import recogniser
from thinktalk.eval.recogniser import Recogniser, heard_error_rate, spell
from thinktalk.playroom import speech, talk

SENTENCES = [
    "the red bird is happy.",
    "three plus four is seven.",
    "the german word for dog is hund.",
    "the german word for green is grün.",
    "what colour is the star?",
    "hello, how can i help you?",
    "the capital of france is paris.",
    "it is four o'clock.",
]


@pytest.fixture(scope="module")
def ear() -> Recogniser:
    return Recogniser("bigram")


@pytest.mark.parametrize("voice", list(speech.REPLY_VOICES))
def test_ear_understands_flite(ear: Recogniser, voice: str) -> None:
    waves = [speech.speak(text, voice=voice) for text in SENTENCES]
    heard = [ear.transcribe(wave, sample_hz=speech.REPLY_HZ) for wave in waves]
    assert heard_error_rate(heard, SENTENCES) < 0.06
    assert ear.transcribe(0.1 * waves[0], sample_hz=speech.REPLY_HZ) == heard[0]


def test_each_wave_stands_for_itself(ear: Recogniser) -> None:
    def scores(texts: list[str]) -> list[tuple[str, float]]:
        found = []
        for text in texts:
            heard = ear.transcribe(speech.speak(text, voice="Ethan"), sample_hz=24_000)
            found.append((heard, ear._decoder.hyp().best_score))
        return found

    assert scores(SENTENCES[:3]) == scores(SENTENCES[2::-1])[::-1]


def test_ear_does_not_make_up_speech(ear: Recogniser) -> None:
    noise = np.random.default_rng(0).standard_normal(24_000).astype(np.float32) * 0.05
    assert len(ear.transcribe(noise, sample_hz=24_000).split()) <= 2
    assert ear.transcribe(np.zeros(0, np.float32), sample_hz=24_000) == ""
    buzzer = speech.speak("the red bird is happy.", voice="Chelsie")[::-1].copy()
    assert heard_error_rate([ear.transcribe(buzzer, sample_hz=24_000)], SENTENCES[:1]) > 0.6


def test_unigram_ear_is_harder_to_please(ear: Recogniser) -> None:
    strict = Recogniser("unigram")
    rates = {}
    for name, model in (("bigram", ear), ("unigram", strict)):
        waves = [speech.speak(text, voice="Chelsie") for text in SENTENCES]
        heard = [model.transcribe(wave, sample_hz=24_000) for wave in waves]
        rates[name] = heard_error_rate(heard, SENTENCES)
    assert rates["bigram"] <= rates["unigram"] < 0.5


def test_spelling_is_the_recognisers() -> None:
    assert spell("What colour is the GRÜN star?") == "what color is the gruen star"
    assert spell("It is four o'clock.") == "it is four o'clock"


def test_dictionary_has_every_word_and_germans_phones() -> None:
    words = {word for text in talk.vocabulary() for word in spell(text).split()}
    lines = recogniser._dictionary(words).splitlines()
    sounds = {line.split()[0]: line.split()[1:] for line in lines}
    assert {head.partition("(")[0] for head in sounds} == words
    assert sounds["hund"] == [p.upper().replace("AX", "AH") for p in speech.pronounce("hund")]
    assert sounds["color"] == ["K", "AH", "L", "ER"]
    known = set("AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T "
                "TH UH UW V W Y Z ZH".split())  # fmt: skip
    assert {phone for phones in sounds.values() for phone in phones} <= known


def test_language_model_is_witten_bell_by_hand() -> None:
    sentences = [["a", "b"], ["a", "c"]]
    lines = recogniser._arpa(sentences, ["a", "b", "c"], model="bigram").splitlines()
    table = {tuple(line.split()[1:3]): float(line.split()[0]) for line in lines if "-" in line[:1]}
    # Counts: a 2+1, b 1+1, c 1+1, </s> 2: 9 in all. After "a": 2 words seen, 2 kinds.
    assert table["a", "b"] == pytest.approx(log10((1 + 2 * 2 / 9) / 4), abs=1e-4)
    single = next(line for line in lines if line.split()[1:2] == ["a"] and len(line.split()) == 3)
    assert float(single.split()[0]) == pytest.approx(log10(3 / 9), abs=1e-4)
    assert float(single.split()[2]) == pytest.approx(log10(2 / 4), abs=1e-4)
    assert "\\2-grams:" not in recogniser._arpa(sentences, ["a", "b", "c"], model="unigram")
