"""Short sentences to say, repeat or write down: a random generator in, 2 to 8 words out.

Two thirds are built from templates that read like English, one third is any words of the page in
any order, so that no word and no neighbourhood of words is missing from the speech.
"""

import numpy as np

from thinktalk.playroom.words import (
    ADJECTIVES,
    ANIMALS,
    CAPITALS,
    COLOURS,
    COUNTED_SOUNDS,
    FUNCTION_WORDS,
    GERMAN_ANIMALS,
    GERMAN_COLOURS,
    GERMAN_NUMBERS,
    MOTIONS,
    NAMES,
    NUMBERS,
    OPPOSITES,
    PLACES,
    PLURALS,
    SHAPES,
    SOUNDS,
    WHERE,
    with_articles,
)

MIN_WORDS, MAX_WORDS = 2, 8
RANDOM_SHARE = 0.3  # share of sentences that are words in any order

CITIES = tuple(CAPITALS.values())
COUNTRIES = tuple(CAPITALS)
SLOTS = {
    "colour": COLOURS,
    "adjective": ADJECTIVES,
    "quality": (*COLOURS, *ADJECTIVES),
    "shape": SHAPES,
    "animal": ANIMALS,
    "noun": (*SHAPES, *ANIMALS, *(s for s in SOUNDS if s != "rain")),
    "plural": tuple(PLURALS.values()),
    "sounds": tuple(COUNTED_SOUNDS.values()),
    "number": NUMBERS,
    "motion": MOTIONS,
    "where": tuple(WHERE.values()),
    "place": PLACES,
    "name": NAMES,
    "city": CITIES,
    "country": COUNTRIES,
    "the": ("the", "a"),
    "tier": GERMAN_ANIMALS,
    "farbe": GERMAN_COLOURS,
    "zahl": GERMAN_NUMBERS,
    "time": ("day", "night", "morning"),
}
TEMPLATES = (
    "{the} {quality} {noun} is {quality}",
    "{the} {noun} is {quality}",
    "{the} {noun} is {quality} and {quality}",
    "{the} {quality} {noun}",
    "{the} {quality} {noun} and {the} {quality} {noun}",
    "{the} {noun} and {the} {noun}",
    "{the} {noun} and {the} {noun} are {quality}",
    "{the} {colour} {shape} is {where}",
    "{the} {animal} is {where}",
    "{the} {quality} {noun} {motion}",
    "{the} {shape} {motion}",
    "{name} is {adjective}",
    "{name} is {adjective} and {name} is {adjective}",
    "{name} and {name} are {adjective}",
    "{name} is in {city}",
    "my name is {name}",
    "{name} is from {country}",
    "{city} is {adjective} and {city} is {adjective}",
    "{number} {colour} {plural}",
    "{number} {plural} and {number} {plural}",
    "there are {number} {plural}",
    "there is {the} {colour} {shape} {where}",
    "i see {the} {quality} {animal}",
    "you hear {number} {sounds}",
    "i hear {the} {adjective} {animal}",
    "{number} {number} {number}",
    "{number} and {number} and {number}",
    "the {time} is {adjective}",
    "the {tier} is {farbe}",
    "{farbe} {tier} and {farbe} {tier}",
    "{zahl} {zahl} {zahl} {zahl}",
    "the rain is {adjective}",
    "the sound of {the} {adjective} {noun}",
    "good morning {name}",
    "say hello to {the} {animal}",
    "the first {noun} is {quality}",
    "the {place} {shape} is {colour}",
    "{country} and {country} are {adjective}",
)
SENTENCE_WORDS = tuple(
    dict.fromkeys(
        word
        for slot in (*SLOTS.values(), tuple(OPPOSITES), SOUNDS, FUNCTION_WORDS)
        for entry in slot
        for word in entry.split()
    )
)


def sentence(rng: np.random.Generator) -> str:
    """One sentence in lower case, ending in a full stop."""
    while True:
        if rng.random() < RANDOM_SHARE:
            length = int(rng.integers(MIN_WORDS, MAX_WORDS + 1))
            words = [str(w) for w in rng.choice(SENTENCE_WORDS, size=length)]
        else:
            words = _fill(rng, TEMPLATES[rng.integers(len(TEMPLATES))])
        if MIN_WORDS <= len(words) <= MAX_WORDS:
            return " ".join(with_articles(words)) + "."


def _fill(rng: np.random.Generator, template: str) -> list[str]:
    """The template's words, every slot filled at random."""
    words: list[str] = []
    for part in template.split():
        options = SLOTS[part[1:-1]] if part.startswith("{") else (part,)
        words += options[rng.integers(len(options))].split()
    return words
