"""Complete cases: questions and answers of the page, the split, purity, conversations."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from thinktalk.eval.metrics import normalise
from thinktalk.media.video import load_video
from thinktalk.playroom import cases, films, senses, speech, talk, writing
from thinktalk.playroom.cases import Example, make
from thinktalk.playroom.talk import Split
from thinktalk.playroom.words import COUNTED_SOUNDS, NUMBERS

PAGE = [
    ("shape", ("red", "circle"), "what do you see?", "i see a red circle."),
    ("shape", ("orange", "circle"), "what do you see?", "i see an orange circle."),
    ("colour", ("blue", "star"), "what colour is the star?", "the star is blue."),
    (
        "how many", ("red", "circle", "four"),
        "how many circles are there?", "there are four circles.",
    ),
    ("how many", ("red", "cross", "one"), "how many crosses are there?", "there is one cross."),
    ("where", ("red", "square", "left"), "where is the square?", "the square is on the left."),
    ("where", ("red", "heart", "top"), "where is the heart?", "the heart is at the top."),
    ("where", ("red", "star", "middle"), "where is the star?", "the star is in the middle."),
    ("read", ("lion",), "what does it say?", "it says lion."),
    ("sound", ("bell",), "what sound is this?", "this is a bell."),
    ("sound", ("rain",), "what sound is this?", "this is rain."),
    ("how often", ("beep", "three"), "how many beeps do you hear?", "you hear three beeps."),
    ("how often", ("beep", "one"), "how many beeps do you hear?", "you hear one beep."),
    ("motion", ("red", "star", "moves left"), "what does the star do?", "the star moves left."),
    (
        "when", ("circle", "bell", "green"),
        "what colour was the circle when the bell rang?", "the circle was green.",
    ),
    (
        "when", ("star", "drum", "red"),
        "what colour was the star when the drum sounded?", "the star was red.",
    ),
]  # fmt: skip


def every(task: str) -> list[tuple[str, ...]]:
    return [*senses.shown("train", task), *senses.shown("test", task)]


def same(one: Any, other: Any) -> bool:
    """Equality through lists, dicts and arrays."""
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def parts(example: Example) -> list[dict[str, Any]]:
    contents = (m["content"] for m in example.messages)
    return [part for content in contents if isinstance(content, list) for part in content]


@pytest.mark.parametrize(("task", "shown", "question", "answer"), PAGE)
def test_questions_and_answers_of_the_page(
    task: str, shown: tuple[str, ...], question: str, answer: str
) -> None:
    case = senses._ask(np.random.default_rng(0), task, shown, "test")
    assert (case.question, case.answer) == (question, answer)
    assert shown in every(task)


def test_order_names_the_sounds_either_way() -> None:
    rng = np.random.default_rng(0)
    asked = [senses._ask(rng, "order", ("bell", "drum"), "test") for _ in range(40)]
    assert {case.answer for case in asked} == {"the bell came first."}
    assert {case.question for case in asked} == {
        "what came first, the bell or the drum?", "what came first, the drum or the bell?",
    }  # fmt: skip


def test_digits_are_asked_by_number() -> None:
    case = senses.sample(np.random.default_rng(0), split="test", task="digit")
    assert int(case.shown[0]) % 5 == 0 and case.question == "what digit is this?"
    digit = writing.digit_of(int(case.shown[0]))
    assert case.answer == f"this is the digit {talk.NUMBERS[digit]}."


def test_keys_are_those_of_the_page() -> None:
    wanted = {
        "shape": "picture|red|circle",
        "colour": "picture|red|circle",
        "look and talk": "picture|red|circle",
        "how many": "how many|red|circle|four",
        "where": "where|red|circle|left",
        "motion": "motion|red|circle|moves left",
        "how often": "how often|beep|four",
        "when": "when|circle|bell|red",
        "order": "order|bell|drum",
    }
    for task, key in wanted.items():
        assert senses.key(task, tuple(key.split("|")[1:])) == key
    assert all(senses.key(task, ("x",)) is None for task in ("digit", "read", "sound"))


@pytest.mark.parametrize("task", senses.TASKS)
def test_splits_are_disjoint_and_complete(task: str) -> None:
    train, test = senses.shown("train", task), senses.shown("test", task)
    if senses.key(task, train[0]) is None and task != "digit":
        assert train == test
        return
    assert not set(train) & set(test) and test
    sizes = {"how many": 432, "where": 240, "digit": 1797, "how often": 36, "motion": 336,
             "when": 384, "order": 56}  # fmt: skip
    assert len(train) + len(test) == sizes.get(task, 48)
    for split in cases.SPLITS:
        for number in range(30):
            rng = np.random.default_rng(number)
            case = cases.draw(rng, split=split, task=task)
            if split == "train" and case.key is None:
                continue
            assert case.shown in senses.shown(split, task)
            assert case.key is None or talk.is_held_out(case.key) == (split == "test")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speech and film files cost no time."""

    def hum(text: str, *, rng: np.random.Generator, **_: Any) -> np.ndarray:
        return (0.1 * np.sin(rng.random() + np.arange(1600 + len(text)))).astype(np.float32)

    monkeypatch.setattr(speech, "ask", hum)
    monkeypatch.setattr(films.Film, "mp4", lambda film: bytes(film.frames[0]))


@pytest.mark.parametrize("task", cases.TASKS)
def test_a_case_is_a_function_of_its_number(task: str) -> None:
    split: Split = cases.SPLITS[cases.TASKS.index(task) % 2]
    one, other = (make(seed=3, split=split, number=7, task=task) for _ in range(2))
    assert one.case == other.case and same(one.row(), other.row())


@pytest.mark.usefixtures("quick")
def test_other_seeds_splits_and_numbers_are_other_cases() -> None:
    rows = [
        make(seed=seed, split=split, number=number, task="where").row()
        for seed in (1, 2) for split in cases.SPLITS for number in (0, 1)
    ]  # fmt: skip
    for place, row in enumerate(rows):
        assert not any(same(row, other) for other in rows[:place])


@pytest.mark.usefixtures("quick")
def test_tasks_have_cases_of_their_own() -> None:
    drawn = make(seed=3, split="train", number=11)
    named = make(seed=3, split="train", number=11, task=drawn.case.task)
    assert same(drawn.row(), named.row())
    pictures = [
        make(seed=3, split="test", number=n, task=task).row()["images"][0]
        for n in range(3) for task in ("shape", "colour", "look and talk")
    ]  # fmt: skip
    for place, picture in enumerate(pictures):
        assert not any(same(picture, other) for other in pictures[:place])


@pytest.mark.parametrize("task", ["shape", "sound", "when"])
def test_what_is_shown_does_not_depend_on_how_it_is_asked(task: str) -> None:
    typed, spoken = (
        make(seed=1, split="test", number=2, task=task, asked=how) for how in ("typed", "spoken")
    )
    unseen = make(seed=1, split="test", number=2, task=task, asked="spoken", voices="unseen")
    assert typed.case == spoken.case == unseen.case
    assert same(parts(typed)[0], parts(spoken)[0]) and same(parts(spoken)[0], parts(unseen)[0])
    assert parts(typed)[-1] == {"type": "text", "text": typed.case.question}
    assert parts(spoken)[-1]["audio"].dtype == np.float32
    assert not same(parts(spoken)[-1], parts(unseen)[-1])


def test_question_inside_a_film_is_heard_nowhere_else() -> None:
    plain, inside = (
        make(seed=2, split="test", number=3, task="order", asked=how) for how in ("typed", "inside")
    )
    assert [part["type"] for part in parts(inside)] == ["video"]
    assert inside.films[0].events[1][0] > 0 and plain.case == inside.case
    heard = load_video(parts(inside)[0]["video"]).sound
    assert heard is not None
    onset_s = inside.films[0].events[1][0]
    behind = heard[round((onset_s + 1.2) * 16_000) :]
    assert np.abs(behind).max() > 0.1 * np.abs(heard).max()
    # what is no film cannot hold it
    picture = make(seed=2, split="test", number=3, task="shape", asked="inside")
    assert [part["type"] for part in parts(picture)] == ["image", "audio"]


@pytest.mark.usefixtures("quick")
def test_look_and_talk_shows_the_picture_once() -> None:
    example = make(seed=1, split="test", number=1, task="look and talk", asked="spoken")
    assert [message["role"] for message in example.messages] == ["user", "assistant", "user"]
    assert [part["type"] for part in parts(example)] == ["image", "audio", "audio"]
    colour, shape = example.case.shown
    assert example.messages[1]["content"].endswith(f"{colour} {shape}.")
    assert example.case.answer == f"it is {colour}."


def shows(message: dict[str, Any]) -> bool:
    return message["role"] == "user" and message["content"][0]["type"] == "image"


@pytest.mark.usefixtures("quick")
def test_training_conversations_are_longer_and_keep_the_picture_in_place() -> None:
    lengths, beforehand = Counter(), 0
    for number in range(150):
        example = make(seed=5, split="train", number=number, task="look and talk")
        roles = [message["role"] for message in example.messages]
        turns = [role for n, role in enumerate(roles) if n == 0 or role != roles[n - 1]]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        lengths[len(turns)] += 1
        beforehand += len(roles) - len(turns)
        holds = [n for n, m in enumerate(example.messages) if shows(m)]
        assert len(holds) == 1
        replies = (m["content"] for m in example.messages[holds[0] :] if m["role"] == "assistant")
        answer = next(replies)
        assert answer.startswith("i see a") and example.case.shown[0] in answer
    assert set(lengths) == {3, 5, 7} and lengths[3] > 100
    assert 30 < beforehand < 60
    test = [make(seed=5, split="test", number=n, task="colour") for n in range(20)]
    assert all(len(example.messages) == 1 for example in test)


@pytest.mark.usefixtures("quick")
def test_training_asks_in_every_way() -> None:
    found = Counter()
    for number in range(60):
        example = make(seed=6, split="train", number=number, task="when")
        found["+".join(part["type"] for part in parts(example)[-2:])] += 1
    assert {"video+text", "video+audio"} <= set(found)
    assert any(key.endswith("video") for key in found)  # asked inside
    joined = [make(seed=6, split="train", number=n, task="sound") for n in range(40)]
    kinds = {tuple(p["type"] for p in parts(example)[-2:]) for example in joined}
    assert {("audio",), ("audio", "audio"), ("audio", "text")} <= kinds


@pytest.mark.usefixtures("quick")
def test_some_spoken_questions_break_off_and_get_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(split: talk.Split) -> list[cases.Example]:
        return [make(seed=2, split=split, number=n, task="add", asked="spoken") for n in range(80)]

    whole = [*asked("train")]
    cut = [example for example in whole if not example.case.answer]
    assert 0 < len(cut) < 20 and not any(example.row()["speech"] for example in cut)
    assert all(example.row()["messages"][-1]["content"] == "" for example in cut)
    assert all(example.case.answer for example in asked("test"))
    monkeypatch.setattr(cases, "CUT_SHARE", 0.0)
    for example, uncut in zip(whole, asked("train"), strict=True):
        if not example.case.answer:
            assert uncut.case.answer and example.case.turns == uncut.case.turns
    monkeypatch.setattr(cases, "CUT_SHARE", 1.0)
    assert make(seed=2, split="train", number=0, task="repeat", asked="spoken").case.answer


@pytest.mark.usefixtures("quick")
def test_there_is_silence_around_train_recordings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def length(split: talk.Split, number: int) -> int:
        example = make(seed=2, split=split, number=number, task="greet", asked="spoken")
        return sum(len(part["audio"]) for part in parts(example) if part["type"] == "audio")

    usual = {split: [length(split, n) for n in range(20)] for split in cases.SPLITS}
    monkeypatch.setattr(cases, "SILENT_SHARE", 0.0)
    without = {split: [length(split, n) for n in range(20)] for split in cases.SPLITS}
    assert usual["test"] == without["test"]
    added = np.array(usual["train"]) - np.array(without["train"])
    assert set(np.sign(added)) == {0, 1} and added.max() > cases.SILENCE_S[0] * speech.INPUT_HZ


@pytest.mark.usefixtures("quick")
def test_rows_have_the_training_schema() -> None:
    seen: set[str] = set()
    for number in range(120):
        example = make(seed=8, split="train", number=number)
        row, case = example.row(), example.case
        seen.add(case.task)
        contents = [m["content"] for m in row["messages"]]
        for kind in ("image", "audio", "video"):
            tags = sum(
                content.count(f"<{kind}>")
                if isinstance(content, str)
                else sum(part["type"] == kind for part in content)
                for content in contents
            )
            assert tags == len(row[f"{kind}s"])
        assert not any("<video><audio>" in c for c in contents if isinstance(c, str))
        assert row["messages"][-1] == talk.chat_message("assistant", case.answer)
        assert (row["task"], row["answer"], row["key"]) == (case.task, case.answer, case.key)
        assert row["speech"] == (case.speech or None) and row["speaker"] in ("Chelsie", "Ethan")
        for image in row["images"]:
            assert image.dtype == np.uint8 and image.shape[2] == 3
        for audio in row["audios"]:
            assert np.array_equal(audio, np.round(audio * 32768) / np.float32(32768))
        assert all(isinstance(video, bytes) for video in row["videos"])
        assert len(row["videos"]) == len(example.films)
        assert all(isinstance(film, films.Film) for film in example.films)
    assert len(seen) > 20 and seen <= set(cases.TASKS)


def test_answers_are_playroom_words() -> None:
    words = {normalise(word) for word in talk.vocabulary()}
    for task in senses.TASKS:
        for number in range(40):
            rng = np.random.default_rng(number)
            case = cases.draw(rng, split="test", task=task)
            said = [text for _, text in case.turns] + [case.answer]
            assert {w for text in said for w in normalise(text).split()} <= words


@pytest.mark.parametrize("split", cases.SPLITS)
def test_any_playroom_speech_is_transcribed(split: Split) -> None:
    rng = np.random.default_rng(0)
    drawn = [cases.draw(rng, split=split, task="transcribe") for _ in range(300)]
    assert all(talk.is_held_out(case.key or "") == (split == "test") for case in drawn)
    assert all(case.answer == case.heard == case.answer.lower() for case in drawn)
    about = [case for case in drawn if "digit" in case.answer or "came first" in case.answer]
    assert about and len(about) < 60


def test_tests_are_spread_evenly_and_unknown_tasks_refused() -> None:
    drawn = Counter(
        cases.draw(np.random.default_rng(n), split="test").task
        for n in range(len(cases.TASKS) * 20)
    )
    assert set(drawn) == set(cases.TASKS) and max(drawn.values()) < 60
    with pytest.raises(ValueError, match="unknown playroom task 'sing'"):
        make(seed=0, split="test", number=0, task="sing")


def test_some_sounds_are_counted_in_writing() -> None:
    """Typed train questions alone; every name stands as often as it would sound."""
    told = Counter()
    for number in range(120):
        example = make(seed=9, split="train", number=number, task="how often", asked="typed")
        if any(part["type"] == "audio" for part in parts(example)):
            told["heard"] += 1
            continue
        told["written"] += 1
        text = example.messages[-1]["content"][-1]["text"].lower()
        names = [word.strip(".,?") for word in text.split()]
        kind, number_word, *_ = example.case.shown
        count = sum(names.count(name) for name in COUNTED_SOUNDS if kind in (name, "sound"))
        spare = count - NUMBERS.index(number_word)
        assert spare in (0, 1), (text, example.case.answer)  # "how many beep sounds"
    assert 15 < told["written"] < 60
    for number in range(12):
        others = (
            make(seed=9, split="test", number=number, task="how often", asked="typed"),
            make(seed=9, split="train", number=number, task="how often", asked="spoken"),
        )
        assert all(any(part["type"] == "audio" for part in parts(other)) for other in others)
