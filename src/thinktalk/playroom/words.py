"""The playroom's words, facts and phrases: what may be said, written or asked about.

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

# Paraphrases; the first of each list is canonical and the only one that tests use.
PHRASES = {
    "add": (
        "what is {a} plus {b}?", "how much is {a} plus {b}?", "{a} plus {b}?",
        "tell me what {a} plus {b} is.", "please add {a} and {b}.", "what do {a} and {b} make?",
    ),
    "subtract": (
        "what is {a} minus {b}?", "how much is {a} minus {b}?", "{a} minus {b}?",
        "tell me what {a} minus {b} is.", "please take {b} from {a}.",
    ),
    "multiply": (
        "what is {a} times {b}?", "how much is {a} times {b}?", "{a} times {b}?",
        "tell me what {a} times {b} is.", "please multiply {a} by {b}.",
    ),
    "opposite": (
        "what is the opposite of {a}?", "tell me the opposite of {a}.", "the opposite of {a}?",
        "which word is the opposite of {a}?", "what's the opposite of {a}?",
    ),
    "german": (
        "what is the german word for {a}?", "how do you say {a} in german?",
        "what is {a} in german?", "tell me the german word for {a}.",
    ),
    "capital": (
        "what is the capital of {a}?", "tell me the capital of {a}.", "the capital of {a}?",
        "which city is the capital of {a}?", "what's the capital of {a}?",
    ),
    "count": (
        "count from {a} to {b}.", "please count from {a} to {b}.", "can you count from {a} to {b}?",
        "count up from {a} to {b}.",
    ),
    "repeat": (
        "say: {a}", "please say: {a}", "repeat: {a}", "say this: {a}", "repeat after me: {a}",
    ),
    "slowly": ("say slowly: {a}", "please say slowly: {a}", "slowly say: {a}"),
    "quickly": ("say quickly: {a}", "please say quickly: {a}", "quickly say: {a}"),
    "dictation": (
        "what did i say?", "what did i just say?", "tell me what i said.", "what were my words?",
    ),
    "who": (
        "is this a man or a woman?", "who is speaking, a man or a woman?",
        "am i a man or a woman?", "tell me, is this a man or a woman?",
    ),
    "tool": ("what time is it?", "tell me the time.", "what is the time?", "how late is it?"),
    "my name": ("my name is {a}.", "i am {a}.", "hello, my name is {a}.", "call me {a}."),
    "ask name": ("what is my name?", "tell me my name.", "do you know my name?", "who am i?"),
    "persona": ("your name is {a}.", "you are {a}.", "your name is {a}. you are a helpful friend."),
    "ask persona": (
        "what is your name?", "tell me your name.", "who are you?", "what's your name?",
    ),
    "shape": (
        "what do you see?", "what is this?", "what can you see?", "tell me what you see.",
        "what is in the picture?", "what does the picture show?", "look, what do you see?",
    ),
    "colour": (
        "what colour is the {a}?", "which colour is the {a}?", "what is the colour of the {a}?",
        "tell me the colour of the {a}.", "what colour does the {a} have?",
    ),
    "how many": (
        "how many {a} are there?", "how many {a} do you see?", "how many {a} can you see?",
        "how many {a} are in the picture?", "tell me how many {a} there are.",
        "please count the {a}.",
    ),
    "where": (
        "where is the {a}?", "where do you see the {a}?", "tell me where the {a} is.",
        "where in the picture is the {a}?", "at what place is the {a}?",
    ),
    "digit": (
        "what digit is this?", "which digit is this?", "what digit do you see?",
        "which digit do you see?", "what number is this?", "read the digit.",
    ),
    "read": (
        "what does it say?", "what is written here?", "what word is this?", "read the word.",
        "which word do you see?", "what does the picture say?", "please read this.",
    ),
    "sound": (
        "what sound is this?", "which sound is this?", "what do you hear?", "what was that?",
        "what was that sound?", "tell me what you hear.",
    ),
    "how often": (
        "how many {a} do you hear?", "how many {a} did you hear?", "how many {a} can you hear?",
        "tell me how many {a} you hear.", "please count the {a} you hear.",
    ),
    "motion": (
        "what does the {a} do?", "what is the {a} doing?", "how does the {a} move?",
        "what happens to the {a}?", "tell me what the {a} does.",
    ),
    "when": (
        "what colour was the {a} when the {b} {c}?", "which colour was the {a} when the {b} {c}?",
        "what was the colour of the {a} when the {b} {c}?",
        "when the {b} {c}, what colour was the {a}?",
        "what colour did the {a} have when the {b} {c}?",
        "tell me what colour the {a} was when the {b} {c}.",
    ),
    "order": (
        "what came first, the {a} or the {b}?", "which came first, the {a} or the {b}?",
        "which sound came first, the {a} or the {b}?", "which was first, the {a} or the {b}?",
        "what did you hear first, the {a} or the {b}?",
    ),
    "what there": ("what is {a}?", "what do you see {a}?", "tell me what is {a}."),  # train only
    "what so": ("what {a}?", "what is it that {a}?", "tell me what {a}."),  # train only
    "its colour": (
        "what colour is it?", "which colour is it?", "what is its colour?",
        "and what colour is it?", "tell me its colour.",
    ),
    "its shape": ("what shape is it?", "which shape is it?", "and what shape is it?"),
}  # fmt: skip
GREETINGS = {
    "hello, how can i help you?": ("hello.", "hi.", "hello there.", "hi there!", "hey."),
    "good morning to you.": ("good morning.", "a good morning to you.", "good morning, my friend."),
    "i am fine, thank you.": (
        "how are you?", "how are you doing?", "hello, how are you?", "are you well?",
    ),
    "goodbye, see you soon.": ("goodbye.", "bye.", "goodbye, my friend.", "bye bye.", "see you."),
}  # fmt: skip


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
