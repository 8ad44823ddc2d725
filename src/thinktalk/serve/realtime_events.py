"""The translation table: the engine's events in, OpenAI's Realtime events out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from thinktalk.live import api
from thinktalk.serve.realtime_config import Config
from thinktalk.serve.realtime_items import UNKNOWN_WORDS, message_item
from thinktalk.serve.realtime_reply import ReplyOnWire
from thinktalk.serve.realtime_state import State
from thinktalk.serve.schema import CALLER_MISTAKES, ApiError

# Codes of Failed -> the kind of command whose event_id belongs into the error.
COMMANDS = {
    "response_cancel_not_active": "cancel",
    "conversation_already_has_active_response": "respond",
    "input_audio_buffer_commit_empty": "commit",
    "item_create_duplicate_item_id": "create",
}


class Translator:
    """Called on the loop with every event of one engine session.

    in_conversation: False for a response out of band, whose items belong to no conversation, and
    which may have a config of its own.
    """

    def __init__(self, state: State, *, in_conversation: bool = True, config: Config | None = None):
        self.state, self.in_conversation, self.config = state, in_conversation, config
        self.generation = 0
        self.reply: ReplyOnWire | None = None
        self._speech_start_ms = 0

    def __call__(self, event: api.Event) -> None:
        if event.generation < self.generation and isinstance(event, api.TextDelta | api.AudioDelta):
            return
        self.generation = max(self.generation, event.generation)
        if not self.in_conversation and not isinstance(event, OF_REPLIES):
            return
        if handler := HANDLERS.get(type(event)):
            handler(self, event)

    # ---- the user's side

    def speech_started(self, event: api.SpeechStarted) -> None:
        self._speech_start_ms = event.audio_ms
        self.state.emit(
            "input_audio_buffer.speech_started", audio_start_ms=event.audio_ms, item_id=event.item
        )
        turns = self.state.config.turns
        if self.state.player is not None and turns is not None and turns.interrupt_response:
            self.state.player.clear()

    def speech_stopped(self, event: api.SpeechStopped) -> None:
        self.state.seconds[event.item] = (event.audio_ms - self._speech_start_ms) / 1000
        self.state.stopwatch = self.state.metrics.stopwatch("realtime")
        self.state.emit(
            "input_audio_buffer.speech_stopped", audio_end_ms=event.audio_ms, item_id=event.item
        )

    def turn_committed(self, event: api.TurnCommitted) -> None:
        state = self.state
        item = state.pending.pop(event.item, None)
        heard = item is None
        after = state.behind(event.previous)
        if item is None:
            item = message_item(event.item, event.role, [dict(UNKNOWN_WORDS)])
            state.seconds.setdefault(event.item, state.committed_s)
            state.emit("input_audio_buffer.committed", item_id=event.item, previous_item_id=after)
        state.items.add(item, after=after)
        state.emit("conversation.item.added", previous_item_id=after, item=item)
        state.emit("conversation.item.done", previous_item_id=after, item=item)
        if heard and state.config.transcribes:
            state.transcribe(event.item)

    def input_cleared(self, _: api.InputCleared) -> None:
        self.state.emit("input_audio_buffer.cleared")

    def input_transcript(self, event: api.InputTranscript) -> None:
        where = {"item_id": event.item, "content_index": 0}
        prefix = "conversation.item.input_audio_transcription."
        if not event.done:
            self.state.emit(prefix + "delta", delta=event.text, **where)
            return
        usage = {"type": "duration", "seconds": self.state.seconds.get(event.item, 0.0)}
        if event.item in self.state.items:
            item = self.state.items.by_id[event.item]
            part = next((p for p in item["content"] if p["type"] == "input_audio"), {})
            part["transcript"] = event.text
        self.state.emit(prefix + "completed", transcript=event.text, usage=usage, **where)

    # ---- the reply

    def response_started(self, event: api.ResponseStarted) -> None:
        if event.response in self.state.wanted:
            self.state.wanted.remove(event.response)
        self.reply = ReplyOnWire(
            self.state,
            event,
            config=self.state.configs.get(event.response, self.config or self.state.config),
            in_conversation=self.in_conversation,
        )

    def text_delta(self, event: api.TextDelta) -> None:
        if self.reply is not None:
            self.reply.text(event.text)

    def audio_delta(self, event: api.AudioDelta) -> None:
        if self.reply is not None:
            self.reply.sound(event)

    def tool_call(self, event: api.ToolCall) -> None:
        if self.reply is not None:
            self.reply.call(event)

    def response_done(self, event: api.ResponseDone) -> None:
        if event.status == "cancelled":
            self.state.outbox.drop_sound(event.response)
            if self.state.player is not None:
                self.state.player.clear()
        if self.reply is not None:
            self.reply.done(event)
        self.reply = None
        self.state.over(event.response)

    # ---- the conversation

    def truncated(self, event: api.Truncated) -> None:
        item = self.state.items.by_id.get(event.item)
        for part in item["content"] if item else ():
            part["transcript" if part["type"] == "output_audio" else "text"] = event.text
        asked = (event.item, event.audio_ms)
        if asked in self.state.truncates:
            self.state.truncates.remove(asked)
            self.state.emit(
                "conversation.item.truncated",
                item_id=event.item,
                content_index=0,
                audio_end_ms=event.audio_ms,
            )

    def item_deleted(self, event: api.ItemDeleted) -> None:
        state = self.state
        for name in [n for n in state.items.by_id if event.item in (n, state.aliases.get(n))]:
            state.items.remove(name)
            state.emit("conversation.item.deleted", item_id=name)

    def failed(self, event: api.Failed) -> None:
        kind = COMMANDS.get(event.code, "other")
        if kind == "respond" and self.state.wanted:
            self.state.over(self.state.wanted[0])
        status = CALLER_MISTAKES.get(event.code, 500 if event.fatal else 400)
        error = ApiError(status, event.message, code=event.code, param=event.param)
        self.state.fail(error, self.state.asked.pop(kind, None))
        if event.fatal and self.in_conversation:
            self.state.end(1011)

    def closed(self, _: api.Closed) -> None:
        self.state.end(1001)


OF_REPLIES = (
    api.ResponseStarted,
    api.TextDelta,
    api.AudioDelta,
    api.ToolCall,
    api.ResponseDone,
    api.Failed,
)
HANDLERS: Mapping[type[api.Event], Callable[[Translator, Any], None]] = {
    api.SpeechStarted: Translator.speech_started,
    api.SpeechStopped: Translator.speech_stopped,
    api.TurnCommitted: Translator.turn_committed,
    api.InputCleared: Translator.input_cleared,
    api.InputTranscript: Translator.input_transcript,
    api.ResponseStarted: Translator.response_started,
    api.TextDelta: Translator.text_delta,
    api.AudioDelta: Translator.audio_delta,
    api.ToolCall: Translator.tool_call,
    api.ResponseDone: Translator.response_done,
    api.Truncated: Translator.truncated,
    api.ItemDeleted: Translator.item_deleted,
    api.Failed: Translator.failed,
    api.Closed: Translator.closed,
}
