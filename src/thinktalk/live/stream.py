"""A whole conversation in, events as they happen: `generate` as a stream, without a thread."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thinktalk.live.api import AudioDelta, Closed, Failed, ResponseDone, TextDelta, ToolCall
from thinktalk.live.engine import Engine
from thinktalk.media.chat import as_messages
from thinktalk.options import DEFAULT_VOICE, GREEDY, OFFICIAL_SPEECH, Sampling, Settings
from thinktalk.weights import LoadedModel

Streamed = TextDelta | AudioDelta | ToolCall | ResponseDone


def stream(
    model: LoadedModel,
    messages: str | Sequence[Any],
    *,
    voice: str = DEFAULT_VOICE,
    speak: bool = True,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    max_text_tokens: int = 1024,
    max_codec_ids: int = 4096,
    seed: int = 0,
    text: Sampling = GREEDY,
    speech: Sampling = OFFICIAL_SPEECH,
) -> Iterator[Streamed]:
    """Yields the answer to what `generate` takes while it is made: TextDelta(text),
    AudioDelta(samples), ToolCall(name, arguments), and at the end ResponseDone.

    The same text, codec ids and sound as generate with the same options. Raises ValueError as
    generate does.
    """
    first, *others = as_messages(messages)
    if first.get("role") in ("system", "developer"):
        system = _words(first.get("content"))
    else:
        others = [first, *others]
    settings = Settings(
        voice=voice,
        speak=speak,
        system=system,
        tools=tuple(tools or ()),
        max_text_tokens=max_text_tokens,
        max_codec_ids=max_codec_ids,
        seed=seed,
        text=text,
        speech=speech,
    )
    context = model.config.thinker_config.text_config.max_position_embeddings
    engine = Engine(model, max_sessions=1, cache_positions=context, thread=False)
    session = engine.open(settings)
    session.add_message(others)
    session.respond()
    try:
        for event in session.events():
            if isinstance(event, Failed):
                raise ValueError(event.message)
            if isinstance(event, Streamed):
                yield event
            if isinstance(event, ResponseDone | Closed):
                return
    finally:
        engine.close()


def _words(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part if isinstance(part, str) else part["text"] for part in content)
