"""What a caller asks of a session without a detector: each command's events, errors and effect."""

import numpy as np
import pytest
from live_stage import CALL, DELTAS, Stage, answered, in_order, names, of_kind, push
from omni_cases import sound

from thinktalk.live import api
from thinktalk.live.session import LiveSession

# ---- push-to-talk


def test_a_turn_from_push_to_reply(stage: Stage, session: LiveSession) -> None:
    push(session, sound(0.5))
    session.push_text("And words.")
    session.commit(item="mine")
    events = stage.told(session)
    told = ["TurnCommitted", "ResponseStarted", "ResponseDone"]
    assert names(events, without=DELTAS) == told and in_order(events)
    committed, started, done = (e for e in events if not isinstance(e, tuple(DELTAS)))
    assert isinstance(committed, api.TurnCommitted) and isinstance(started, api.ResponseStarted)
    assert committed.item == "mine" and committed.previous is None and committed.role == "user"
    assert isinstance(done, api.ResponseDone)
    assert (started.response, started.item) == (done.response, done.item)
    assert {e.item for e in of_kind(events, api.AudioDelta)} == {done.item}
    assert stage.text_of(session).startswith(
        "<|im_start|>user\n<|audio_bos|><|audio_eos|>And words.<|im_end|>\n<|im_start|>assistant\n"
    )
    # what was known before the commit was in the caches by then, or is counted as new
    usage = done.usage
    assert usage.input_audio == 12 and usage.input_text > 200 and usage.input_image == 0
    assert (usage.output_text, usage.output_audio) == (6, 14) and usage.cached == 0


def test_sound_and_words_keep_their_order(stage: Stage, session: LiveSession) -> None:
    """Words that come while sound is open follow it, before a window is full, too."""
    session.push_text("One ")
    push(session, sound(0.1))
    session.push_text("two ")
    stage.run(1)
    push(session, sound(0.1))
    session.push_text("three")
    session.commit(respond=False)
    stage.run()
    body = "One <|audio_bos|><|audio_eos|>two three"
    assert stage.text_of(session) == f"<|im_start|>user\n{body}<|im_end|>\n"


def test_nothing_to_commit(stage: Stage, session: LiveSession) -> None:
    session.commit()
    stage.failure(session, "input_audio_buffer_commit_empty")
    push(session, sound(0.02))  # less than makes a token
    session.commit()
    stage.failure(session, "input_audio_buffer_commit_empty")
    push(session, sound(0.02))
    session.commit()
    assert names(stage.told(session))[-1] == "ResponseDone", "the 20 ms before it count, too"


def test_names_are_the_callers_and_unique(stage: Stage, session: LiveSession) -> None:
    push(session, sound(2.5))  # a window is heard before the name is known
    stage.run()
    session.commit(item="a", respond=False)
    session.push_text("Again.")
    session.commit(item="a", respond=False)
    committed, failed = stage.told(session)
    assert isinstance(committed, api.TurnCommitted) and committed.item == "a"
    assert isinstance(failed, api.Failed) and failed.code == "item_create_duplicate_item_id"
    session.commit(item="b", respond=False)
    [committed] = stage.told(session)
    assert isinstance(committed, api.TurnCommitted)
    assert (committed.item, committed.previous) == ("b", "a")
    assert session.add_message({"role": "user", "content": "x"}, item="a") == "a"
    stage.failure(session, "item_create_duplicate_item_id")


def test_clear(stage: Stage, session: LiveSession) -> None:
    push(session, sound(2.5))
    session.push_text("Not this.")
    stage.run()
    session.clear()
    assert names(stage.told(session)) == ["InputCleared"]
    assert stage.text_of(session) == ""
    session.commit()
    stage.failure(session, "input_audio_buffer_commit_empty")
    stage.check(session)


def test_pushes_in_the_middle_of_a_reply(stage: Stage) -> None:
    """They belong to the next turn, and change nothing of the reply."""
    replies = []
    for pushes in (False, True):
        session = stage.open(max_text_tokens=12, max_codec_ids=26)
        session.push_text("Tell me.")
        session.commit()
        stage.run(4)
        if pushes:
            push(session, sound(2.3))
            stage.run(3)
            session.push_text("And this?")
            session.add_message({"role": "user", "content": "Between."}, item="between")
            session.commit(item="next")
            stage.run(2)
        events = stage.told(session)
        stage.check(session)
        replies.append(stage.replies(events))
    [alone], [beside, second] = replies
    assert alone.ids == beside.ids and np.array_equal(alone.wave, beside.wave)
    assert second.done.status == "incomplete"
    order = [item.role for item in stage.memory(session).items]
    assert order == ["system", "user", "assistant", "user", "user", "assistant"]
    assert stage.memory(session).items[3].id == "between"


# ---- replies


def test_only_one_reply_at_a_time(stage: Stage, session: LiveSession) -> None:
    session.respond()
    stage.run(1)
    session.respond()
    session.say("No.")
    events = stage.told(session)
    failed = of_kind(events, api.Failed)
    code = "conversation_already_has_active_response"
    assert [f.code for f in failed] == [code, code] and len(stage.replies(events)) == 1


def test_a_reply_of_its_own_length(stage: Stage, session: LiveSession) -> None:
    session.respond(max_text_tokens=2, max_codec_ids=5)
    said = stage.reply(session)
    assert (len(said.text_ids), len(said.codec_ids)) == (2, 5)
    assert (said.done.status, said.done.reason) == ("incomplete", "max_output_tokens")


def test_say(stage: Stage, session: LiveSession) -> None:
    """Exactly the given words, all of them, whatever the limit of a thought; spoken as usual."""
    words = "Good morning, dear listeners!"
    response = session.say(words)
    said = stage.reply(session)
    assert said.text == said.done.text == words and said.done.response == response
    assert said.text_ids == stage.engine.kit.tokenizer.encode(words)
    assert len(said.codec_ids) == 14 and np.abs(said.wave).max() > 0.01
    assert stage.text_of(session) == f"<|im_start|>assistant\n{words}<|im_end|>\n"
    answered(stage, session)
    assert stage.text_of(session).startswith(f"<|im_start|>assistant\n{words}<|im_end|>\n")


def test_say_nothing(stage: Stage, session: LiveSession) -> None:
    session.say("")
    said = stage.reply(session)
    assert said.text == "" and said.done.status == "completed" and not len(said.wave)


@pytest.mark.parametrize("ticks", [0, 1, 4, 12, 25])
def test_cancel_at_any_stage(stage: Stage, ticks: int) -> None:
    session = stage.open(max_text_tokens=20, max_codec_ids=60)
    session.push_text("What?")
    session.commit()
    stage.run(ticks)
    heard = stage.so_far(session)
    session.cancel()
    events = stage.told(session)
    assert in_order(heard + events) and not of_kind(events, *DELTAS[1:])
    [done], [cut] = of_kind(events, api.ResponseDone), of_kind(events, api.Truncated)
    assert (done.status, done.reason) == ("cancelled", "client_cancelled")
    samples = sum(len(e.samples) for e in of_kind(heard, api.AudioDelta))
    assert cut.audio_ms == done.audio_ms == samples // 24 and (samples > 0) == (ticks == 25)
    assert done.generation == 1 and cut.item == done.item
    assert done.text.startswith(cut.text)
    stage.check(session)
    session.cancel()
    stage.failure(session, "response_cancel_not_active")
    assert answered(stage, session).status == "incomplete"


def test_cancel_forgets_the_replies_that_wait(stage: Stage, session: LiveSession) -> None:
    for words in ("One?", "Two?", "Three?"):
        session.push_text(words)
        session.commit()
    stage.run(2)
    session.cancel()
    assert len(stage.replies(stage.told(session))) == 1
    assert [item.role for item in stage.memory(session).items].count("user") == 3


def test_replies_in_order(stage: Stage, session: LiveSession) -> None:
    """Every commit has its reply, one after the other; each answers all that stands before it."""
    for words in ("One?", "Two?", "Three?"):
        session.push_text(words)
        session.commit()
    told = names(stage.told(session), without=DELTAS)
    reply = ["ResponseStarted", "ResponseDone"]
    assert told == ["TurnCommitted", reply[0], *["TurnCommitted"] * 2, reply[1], *reply, *reply]
    roles = [item.role for item in stage.memory(session).items]
    assert roles == ["system", "user", "assistant", "user", "user", "assistant", "assistant"]
    stage.check(session)


def test_tools(stage: Stage) -> None:
    """A call is told with its arguments; its result is a message, which the next reply sees."""
    tool = {"type": "function", "function": {"name": "move", "parameters": {"type": "object"}}}
    session = stage.open(tools=(tool,))
    session.say("Wait. " + CALL)
    events = stage.told(session)
    [call] = of_kind(events, api.ToolCall)
    assert (call.name, call.arguments) == ("move", {"steps": 2})
    assert names(events)[-2:] == ["ToolCall", "ResponseDone"]
    session.push_tool_result(call.call_id, "arrived")
    [committed] = stage.told(session)
    assert isinstance(committed, api.TurnCommitted) and committed.role == "tool"
    assert committed.previous == call.item
    session.respond()
    assert len(stage.reply(session).text_ids) == 6
    assert stage.text_of(session).startswith(
        f"<|im_start|>assistant\nWait. {CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\narrived"
        "\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_no_call_from_a_cancelled_reply(stage: Stage, session: LiveSession) -> None:
    session.say(CALL)
    stage.run(10)
    session.cancel()
    assert not of_kind(stage.told(session), api.ToolCall)
