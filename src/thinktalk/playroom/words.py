"""The playroom's words and facts: every word that may be said, written or asked about.

The lists are binding (outsiders write test cases from them). Nothing here is random.
"""

from collections.abc import Sequence

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
PLACES = ("left", "right", "top", "bottom", "middle")
WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
MOTIONS = (
    "moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "stays still",
)  # fmt: skip
SOUNDS = ("beep", "bell", "buzzer", "click", "siren", "whistle", "drum", "rain")
COUNTED_SOUNDS = {sound: sound + "s" for sound in SOUNDS if sound not in ("click", "rain")}
ANIMALS = ("dog", "cat", "bird", "fish", "horse", "cow", "mouse", "lion", "bear", "frog")
OPPOSITE_PAIRS = (
    ("big", "small"), ("hot", "cold"), ("up", "down"), ("fast", "slow"), ("happy", "sad"),
    ("open", "closed"), ("day", "night"), ("young", "old"), ("wet", "dry"), ("loud", "quiet"),
)  # fmt: skip
OPPOSITES = dict(OPPOSITE_PAIRS) | {b: a for a, b in OPPOSITE_PAIRS}
ADJECTIVES = tuple(w for w in OPPOSITES if w not in ("up", "down", "day", "night"))
GERMAN_COLOURS = ("rot", "grün", "blau", "gelb", "orange", "lila", "schwarz", "weiß")
GERMAN_NUMBERS = (
    "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn",
)  # fmt: skip
GERMAN_ANIMALS = (
    "hund", "katze", "vogel", "fisch", "pferd", "kuh", "maus", "löwe", "bär", "frosch",
)  # fmt: skip
GERMAN = (
    dict(zip(COLOURS, GERMAN_COLOURS, strict=True))
    | dict(zip(NUMBERS[1:11], GERMAN_NUMBERS, strict=True))
    | dict(zip(ANIMALS, GERMAN_ANIMALS, strict=True))
)
CAPITALS = {
    "france": "paris", "germany": "berlin", "italy": "rome", "spain": "madrid",
    "japan": "tokyo", "china": "beijing", "england": "london", "russia": "moscow",
    "egypt": "cairo", "greece": "athens", "poland": "warsaw", "kenya": "nairobi",
}  # fmt: skip
NAMES = ("anna", "ben", "carla", "david", "emma", "frank", "grace", "henry")

# Words of the page's questions and answers that stand in none of the lists above.
FUNCTION_WORDS = (
    "the", "a", "an", "is", "are", "and", "am", "it", "i", "you", "my", "your", "of", "in", "on",
    "at", "to", "from", "for", "this", "there", "what", "how", "many", "when", "where", "or",
    "does", "do", "did", "was", "were", "can", "help", "hello", "good", "morning", "goodbye",
    "fine", "thank", "see", "soon", "nice", "meet", "name", "plus", "minus", "times", "opposite",
    "german", "word", "capital", "count", "say", "says", "said", "slowly", "quickly", "man",
    "woman", "time", "colour", "shape", "digit", "sound", "sounded", "rang", "hear", "came",
    "first", "moves", "stays", "still",
)  # fmt: skip


def with_articles(words: Sequence[str]) -> list[str]:
    """The words with every "a" / "an" made to fit the word that follows."""
    fitted = list(words)
    for here, following in zip(range(len(words)), words[1:], strict=False):
        if words[here] in ("a", "an"):
            vowel = following[0] in "aeiou" and following != "one"
            fitted[here] = "an" if vowel else "a"
    return fitted


def to_ascii(text: str) -> str:
    """The spelling that synthesis and recognition use: ä ö ü ß become ae oe ue ss."""
    for letter, spelling in (("ä", "ae"), ("ö", "oe"), ("ü", "ue"), ("ß", "ss")):
        text = text.replace(letter, spelling)
    return text
