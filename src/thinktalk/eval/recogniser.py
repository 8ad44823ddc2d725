"""The independent ear: a wave in, playroom words out, by pocketsphinx.

The dictionary holds the playroom's words and nothing else (German words as flite says them). Two
language models, made here from train sentences: "bigram" (Witten-Bell) helps much, because the
playroom's sentences are alike; "unigram" only knows how frequent words are and keeps it honest.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import Literal

import numpy as np
import pocketsphinx

from thinktalk.eval.metrics import normalise, word_error_rate
from thinktalk.playroom import dataset, speech, talk
from thinktalk.playroom.words import GERMAN, to_ascii

Model = Literal["bigram", "unigram"]
SAMPLE_HZ = 16_000
SILENCE_S = 0.15  # put around a wave: the decoder needs a bit of background to start from
LM_SEED, LM_SENTENCES = 20_000, 12_000

# The recogniser's spelling of a playroom word, where it differs.
SPELLINGS = {"colour": "color", "oclock": "o'clock"}
# flite's phones that the recogniser writes differently.
PHONES = {"ax": "AH"}


class Recogniser:
    """Transcribes one wave at a time; deterministic, and independent of earlier waves."""

    def __init__(self, model: Model, *, vocabulary: Sequence[str] | None = None) -> None:
        words = sorted({w for text in vocabulary or talk.vocabulary() for w in spell(text).split()})
        sentences = [spell(text).split() for text in _train_texts()]
        sentences = [s for s in sentences if set(s) <= set(words)]
        with tempfile.TemporaryDirectory() as folder:
            dictionary, grammar = Path(folder) / "words.dict", Path(folder) / "words.arpa"
            dictionary.write_text(_dictionary(words), encoding="utf-8")
            grammar.write_text(_arpa(sentences, words, model=model), encoding="utf-8")
            self._decoder = pocketsphinx.Decoder(
                hmm=pocketsphinx.get_model_path("en-us/en-us"),
                dict=str(dictionary),
                lm=str(grammar),
                samprate=SAMPLE_HZ,
                loglevel="FATAL",
            )

    def transcribe(self, samples: np.ndarray, *, sample_hz: int) -> str:
        """The words heard in a wave (float, full scale 1), in `spell`'s spelling; "" for none."""
        if not len(samples):
            return ""
        samples = speech.resample(samples, source_hz=sample_hz, target_hz=SAMPLE_HZ)
        samples = np.pad(samples, round(SILENCE_S * SAMPLE_HZ))
        peak = float(np.abs(samples).max())
        pcm = np.round(samples / max(peak, 1e-6) * 0.6 * 32767).astype("<i2").tobytes()
        # The front end carries its estimate of the noise from wave to wave: it starts anew here.
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr if heard else ""


def ear_for(
    texts: Sequence[str] | None,
) -> tuple[Callable[..., str], Callable[[str], str]]:
    """transcribe() of a recogniser for the words of the texts, for the playroom's where there are
    none, and the spelling that it uses."""
    if texts is None:
        return Recogniser("bigram").transcribe, spell
    if not texts:
        raise ValueError(
            "no row has a text, so there are no words to recognise; choose another ear"
        )
    return Recogniser("unigram", vocabulary=texts).transcribe, spell


def heard_error_rate(heard: Sequence[str], wanted: Sequence[str]) -> float:
    """Word error rate of transcripts against the texts that were to be said."""
    return word_error_rate(heard, [spell(text) for text in wanted])


def spell(text: str) -> str:
    """A text in the recogniser's spelling: lower case, no marks, ä as ae, "color"."""
    words = to_ascii(normalise(text)).split()
    return " ".join(SPELLINGS.get(word, word) for word in words)


def _dictionary(words: Iterable[str]) -> str:
    """The pronunciation lines of `words`: the recogniser's own, or flite's where it has none."""
    known: dict[str, list[str]] = {}
    path = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"))
    wanted, german = set(words), {to_ascii(word) for word in GERMAN.values()} - set(GERMAN)
    for line in path.read_text(encoding="utf-8").splitlines():
        head, _, phones = line.partition(" ")
        if (word := head.partition("(")[0]) in wanted - german:
            known.setdefault(word, []).append(phones)
    for word in wanted - set(known):
        known[word] = [" ".join(PHONES.get(p, p.upper()) for p in speech.pronounce(word))]
    lines = []
    for word in sorted(known):
        for number, phones in enumerate(known[word]):
            lines.append(f"{word}{f'({number + 1})' if number else ''} {phones}\n")
    return "".join(lines)


def _arpa(sentences: list[list[str]], words: list[str], *, model: Model) -> str:
    """A language model in ARPA format; every word gets at least one count.

    Witten-Bell: P(w | h) = (c(h, w) + T(h) P(w)) / (c(h) + T(h)) with T(h) the number of different
    words seen after h, so that the back-off weight of h is T(h) / (c(h) + T(h)).
    """
    singles = Counter({word: 1 for word in words})
    pairs: Counter[tuple[str, str]] = Counter()
    for sentence in sentences:
        marked = ["<s>", *sentence, "</s>"]
        singles.update(marked[1:])
        pairs.update(pairwise(marked))
    if model == "unigram":
        pairs.clear()
    total = sum(singles.values())
    share = {word: count / total for word, count in singles.items()}
    after, kinds = Counter[str](), Counter[str]()
    for (history, _), count in pairs.items():
        after[history] += count
        kinds[history] += 1
    backoff = {h: kinds[h] / (after[h] + kinds[h]) for h in after}
    lines = ["\\data\\", f"ngram 1={len(share) + 1}"]
    lines += [f"ngram 2={len(pairs)}"] if pairs else []
    lines += ["", "\\1-grams:", f"-99 <s> {log10(backoff.get('<s>', 1.0)):.5f}"]
    for word in sorted(share):
        lines.append(f"{log10(share[word]):.5f} {word} {log10(backoff.get(word, 1.0)):.5f}")
    if pairs:
        lines += ["", "\\2-grams:"]
    for (history, word), count in sorted(pairs.items()):
        chance = (count + kinds[history] * share[word]) / (after[history] + kinds[history])
        lines.append(f"{log10(chance):.5f} {history} {word}")
    return "\n".join([*lines, "", "\\end\\", ""])


@lru_cache(maxsize=1)
def _train_texts() -> tuple[str, ...]:
    """Train replies in the training mixture, seeded: what the language models are made from."""
    return tuple(text for text, _, _ in dataset.reply_sentences(seed=LM_SEED, count=LM_SENTENCES))
