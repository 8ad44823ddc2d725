"""Responses over the Realtime dialect: words or speech, function calls, what one of them overrides,
and those apart from the conversation; a scripted engine stands in for the model."""

import json

from realtime_client import Client, is_subsequence, message
from scripted_engine import ScriptedEngine
from scripted_steps import Call, Say, Sing, until

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "the weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}


def test_text_for_a_while(engine: ScriptedEngine, client: Client) -> None:
    """A conversation with a voice may be asked for text, once or until further notice."""
    client.send("conversation.item.create", item=message("hi"))
    asked = [
        (["audio"], None, True),
        (["audio"], ["text"], False),
        (["text"], None, False),
        (["text"], ["audio"], True),
        (["audio"], None, True),
    ]
    for modalities, override, spoken in asked:
        assert client.setup(output_modalities=modalities)["output_modalities"] == modalities
        before = len(client.sound())
        response = {} if override is None else {"output_modalities": override}
        client.send("response.create", response=response)
        done = client.until("response.done")["response"]
        assert done["output_modalities"] == (override or modalities)
        kind = "output_audio" if spoken else "output_text"
        assert done["output"][0]["content"][0]["type"] == kind
        assert (len(client.sound()) > before) == spoken
        audio_ids = done["usage"]["output_token_details"]["audio_tokens"]
        assert (audio_ids > 0) == spoken, "the engine made no sound that nobody hears"
    assert len(engine.opened) == 1


def test_function_calls(engine: ScriptedEngine, client: Client) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Bern"}}\n</tool_call>'
    engine.script = lambda _: (
        Say("Let me see. "),
        Sing(40),
        Say(call[:9]),
        Say(call[9:]),
        Call("get_weather", {"place": "Bern"}),
    )
    session = client.setup(tools=[WEATHER], tool_choice="auto")
    assert session["tools"] == [WEATHER]
    client.send("conversation.item.create", item=message("how is the weather?"))
    client.send("response.create")
    output = client.until("response.done")["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    assert output[0]["content"][0]["transcript"] == "Let me see. "
    assert output[1]["name"] == "get_weather"
    assert json.loads(output[1]["arguments"]) == {"place": "Bern"}
    kinds = client.kinds()
    assert is_subsequence(
        [
            "response.output_item.done",
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.done",
        ],
        kinds,
    )
    result = {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "rain"}
    engine.script = lambda session: (Say(f"it is {session.items[-1].content['content']}"),)
    client.send("conversation.item.create", item=result, previous_item_id=output[1]["id"])
    added = client.until("conversation.item.added")
    assert added["previous_item_id"] == output[1]["id"]
    client.send("response.create")
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == "it is rain"
    session = engine.opened[-1]
    assert [item.role for item in session.items] == ["user", "assistant", "tool", "assistant"]


def test_a_call_alone_has_no_message(engine: ScriptedEngine, client: Client) -> None:
    engine.script = lambda _: (
        Say("<tool_call>{}</tool_call>"),
        Call("get_weather", {}),
    )
    client.setup(tools=[WEATHER])
    client.send("response.create")
    output = client.until("response.done")["response"]["output"]
    assert [item["type"] for item in output] == ["function_call"]


def test_a_response_overrides_and_the_session_comes_back(
    engine: ScriptedEngine, client: Client
) -> None:
    engine.script = lambda session: (Say(str(session.settings.system)),)
    client.setup(instructions="usual")
    asked = {"instructions": "special", "max_output_tokens": 7, "output_modalities": ["text"]}
    client.send("response.create", response=asked)
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": "special"}]
    assert done["max_output_tokens"] == 7
    client.send("response.create")
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == "usual"


def test_a_response_out_of_band(engine: ScriptedEngine, client: Client) -> None:
    engine.script = lambda session: (Say(f"{len(session.items)} {session.settings.system}"),)
    client.send("conversation.item.create", item=message("one") | {"id": "one"})
    client.until("conversation.item.done")
    client.send("response.create", response={"conversation": "none"})
    done = client.until("response.done")["response"]
    assert done["conversation_id"] is None
    assert done["output"][0]["content"][0]["transcript"] == "1 None"
    inputs = [{"type": "item_reference", "id": "one"}, message("two")]
    asked = {"conversation": "none", "input": inputs, "instructions": "other"}
    client.send("response.create", response=asked)
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == "2 other"
    assert len(client.of("conversation.item.added")) == 1
    until(lambda: len(engine.sessions) == 1)
