"""The playroom's questions, canonical answers and the split rule."""

import hashlib

import numpy as np
import pytest

from thinktalk.eval.metrics import normalise
from thinktalk.playroom import talk
from thinktalk.playroom.sentences import MAX_WORDS, MIN_WORDS, sentence
from thinktalk.playroom.words import with_articles


def draw(task: str | None, split: talk.Split, count: int, seed: int = 0) -> list[talk.Case]:
    rng = np.random.default_rng(seed)
    return [talk.sample(rng, split=split, task=task) for _ in range(count)]


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("greet", "how are you?", "i am fine, thank you."),
        ("name", "what is my name?", "your name is anna."),
        ("name", "my name is anna.", "nice to meet you, anna."),
        ("persona", "what is your name?", "my name is ben."),
        ("add", "what is three plus four?", "three plus four is seven."),
        ("subtract", "what is nine minus two?", "nine minus two is seven."),
        ("multiply", "what is two times five?", "two times five is ten."),
        ("opposite", "what is the opposite of hot?", "the opposite of hot is cold."),
        ("german", "what is the german word for dog?", "the german word for dog is hund."),
        ("german", "what is the german word for white?", "the german word for white is weiß."),
        ("capital", "what is the capital of france?", "the capital of france is paris."),
        ("count", "count from two to six.", "two, three, four, five, six."),
        ("tool", "four", "it is four o'clock."),
    ],
)
def test_canonical_answers_of_the_page(task: str, question: str, answer: str) -> None:
    both = talk.cases("train", task) + talk.cases("test", task)
    found = {(case.question, case.answer) for case in both}
    assert (question, answer) in found


def test_open_tasks_answer_with_the_sentence_itself() -> None:
    for case in draw("repeat", "test", 20):
        assert case.question == f"say: {case.answer}"
    for case in draw("pace", "test", 20):
        assert case.question == f"say {'slowly' if case.pace == 1.4 else 'quickly'}: {case.answer}"
        assert case.pace in (1.4, 0.8)
    for case in draw("dictation", "test", 20):
        assert (case.question, case.answer) == ("what did i say?", f"you said: {case.heard}")
    for case in draw("transcribe", "test", 20):
        assert (case.system, case.question, case.answer) == ("transcribe.", "", case.heard)
    for case in draw("who", "test", 20):
        assert case.answer == f"this is a {case.gender}." and case.heard


def test_tool_case_is_a_call_then_an_answer() -> None:
    calls = {case.answer for case in talk.cases("test", "tool") if len(case.turns) == 1}
    assert calls == {talk.TOOL_CALL}
    (case,) = (c for c in talk.cases("test", "tool") if c.question == "four")
    assert [role for role, _ in case.turns] == ["user", "assistant", "tool"]
    assert case.tools == (talk.GET_TIME,) and case.speech == "it is four o'clock."
    assert talk.ask_time(None, "what time is it?").speech == ""


def test_sums_stay_between_zero_and_twenty() -> None:
    sizes = {task: len(talk.cases("test", task)) for task in ("add", "subtract", "multiply")}
    # 0..20: 21 * 22 / 2 ordered sums; products: 41 with a zero, the rest counted by hand as the
    # sum over a of 20 // a.
    assert sizes["add"] == sizes["subtract"] == 231
    assert sizes["multiply"] == 41 + sum(20 // a for a in range(1, 21))


def test_split_rule_is_the_hash_of_the_page() -> None:
    for key in ("count|two|six", "sentence|the red bird is happy", "count|zero|twenty"):
        digest = hashlib.sha256(key.encode("utf-8")).hexdigest()
        assert talk.is_held_out(key) == (int(digest, 16) % 10 == 0)
    assert talk.sentence_key("The red  Bird is happy.") == "sentence|the red bird is happy"
    assert talk.sentence_key("der bär, grün!") == "sentence|der bär grün"


def test_splits_are_disjoint_and_complete() -> None:
    train = {case.key for case in talk.cases("train", "count")}
    test = {case.key for case in talk.cases("test", "count")}
    assert not train & test and len(train | test) == 21 * 20 // 2 and 5 < len(test) < 40
    for task in ("count", "repeat", "pace", "dictation", "transcribe"):
        assert all(talk.is_held_out(case.key or "") for case in draw(task, "test", 30))
        assert not any(talk.is_held_out(case.key or "") for case in draw(task, "train", 100))


def test_draws_are_deterministic_and_cover_every_task() -> None:
    assert draw(None, "train", 50) == draw(None, "train", 50)
    assert draw(None, "train", 50) != draw(None, "train", 50, seed=1)
    assert {case.task for case in draw(None, "train", 400)} == set(talk.TASKS)
    assert {case.task for case in draw(None, "test", 400)} == set(talk.TASKS)


def test_train_questions_vary_and_test_questions_do_not() -> None:
    train = {case.question for case in draw("capital", "train", 600)}
    assert any(q.isupper() for q in train) and any(q.islower() for q in train)
    assert any(q[-1] == "?" for q in train) and any(q[-1].isalpha() for q in train)
    assert {case.question for case in draw("capital", "test", 200)} <= {
        f"what is the capital of {country}?" for country in talk.CAPITALS
    }


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown playroom task 'sing'.*repeat"):
        talk.sample(np.random.default_rng(0), split="test", task="sing")


def test_sentences_are_short_and_use_every_word() -> None:
    rng = np.random.default_rng(0)
    said = [sentence(rng) for _ in range(6000)]
    lengths = {len(text.split()) for text in said}
    assert lengths == set(range(MIN_WORDS, MAX_WORDS + 1))
    assert all(text.endswith(".") and text == text.lower() for text in said)
    used = {word for text in said for word in text.rstrip(".").split()}
    assert used <= set(talk.vocabulary())
    assert set(talk.vocabulary()) - used == {"o'clock"}


def test_vocabulary_covers_every_answer() -> None:
    words = {normalise(word) for word in talk.vocabulary()}
    answers = {word for text in talk.all_answers() for word in normalise(text).split()}
    assert answers <= words
    assert {"grün", "crosses", "nairobi", "beeps", "colour", "shrinks"} <= words


def test_articles_follow_the_next_word() -> None:
    fitted = with_articles("a orange bird and an red one is a one a old".split())
    assert " ".join(fitted) == "an orange bird and a red one is a one an old"
