"""One response on the wire, from response.created to response.done, in OpenAI's order."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from thinktalk.live import api
from thinktalk.media.encode import to_pcm16
from thinktalk.serve import g711
from thinktalk.serve.filters import CallFilter
from thinktalk.serve.realtime_config import Config
from thinktalk.serve.realtime_items import call_item, message_item
from thinktalk.serve.realtime_state import State
from thinktalk.serve.schema import realtime_usage

STATUS_REASONS = {
    "turn_detected": "turn_detected",
    "client_cancelled": "client_cancelled",
    "closed": "client_cancelled",
    "max_output_tokens": "max_output_tokens",
    "context_full": "max_output_tokens",  # OpenAI has no word of its own for it
}
NO_SOUND = np.zeros(0, np.float32)


class ReplyOnWire:
    """One response from response.created to response.done.

    Its message item is opened by the first words or sound, so that a reply which only calls a
    function has none.
    """

    def __init__(
        self, state: State, event: api.ResponseStarted, *, config: Config, in_conversation: bool
    ):
        """in_conversation: False for a response out of band, whose items belong nowhere."""
        self.state, self.config, self.in_conversation = state, config, in_conversation
        self.response, self.item = event.response, event.item
        self.metadata = state.metadata.get(event.response)
        self.modality = config.modality
        self.filter = CallFilter(active=bool(self.config.tools))
        self.output: list[dict[str, Any]] = []
        self.index: int | None = None  # of the message in the output
        self.num_calls = 0
        self.is_closed = False  # the message
        law = None if state.player else g711.LAWS.get(self.config.output_format)
        self.telephone = g711.Telephone(law) if law else None
        self.watch = self.state.stopwatch or self.state.metrics.stopwatch("realtime")
        self.state.stopwatch = None
        self.state.emit("response.created", response=self._wire("in_progress"))

    def text(self, text: str) -> None:
        if text := self.filter.push(text):
            self.watch.stage("first_text")
            self._say(text)

    def sound(self, event: api.AudioDelta) -> None:
        if self.modality == "text":
            return  # begun before the session fell silent
        self.watch.sound(len(event.samples))
        self.state.spoke = True
        if self.state.player is not None:
            self._open_message()
            self.state.player.play(self.response, self.item, event.samples)
        elif self.telephone:
            self._send_sound(self.telephone.push(event.samples))
        else:
            self._send_sound(to_pcm16(event.samples))

    def call(self, event: api.ToolCall) -> None:
        """A whole function call at once."""
        self.num_calls += 1
        self._close_message("completed")
        name = f"{self.item}_call{self.num_calls}"
        self.state.aliases[name] = self.item
        arguments = json.dumps(dict(event.arguments), ensure_ascii=False)
        item = call_item(name, name=event.name, call_id=event.call_id, arguments=arguments)
        index = self._open_item(item | {"status": "in_progress", "arguments": ""})
        where = self._where(name, index) | {"call_id": event.call_id}
        prefix = "response.function_call_arguments."
        self.state.emit(prefix + "delta", delta=arguments, **where)
        self.state.emit(prefix + "done", name=event.name, arguments=arguments, **where)
        self._close_item(item, index)

    def done(self, event: api.ResponseDone) -> None:
        self._close_message(event.status)
        self.watch.stage("done")
        if self.state.player is not None:
            self.state.player.finish(self.response)
        response = self._wire(event.status, event)
        self.state.emit("response.done", response=response)
        self.state.emit("rate_limits.updated", rate_limits=self.state.rate_limits())

    def _say(self, text: str) -> None:
        self._open_message()
        kind = "output_text" if self.modality == "text" else "output_audio_transcript"
        self.state.emit(f"response.{kind}.delta", delta=text, **self._part_place())

    def _send_sound(self, data: bytes) -> None:
        if data:
            self._open_message()
            delta = base64.b64encode(data).decode()
            self.state.outbox.put(
                "response.output_audio.delta",
                reply=self.response,
                delta=delta,
                **self._part_place(),
            )

    def _open_message(self) -> None:
        if self.index is None:
            item = message_item(self.item, "assistant", [], status="in_progress")
            self.index = self._open_item(item)
            self.state.emit(
                "response.content_part.added", part=self._part(""), **self._part_place()
            )

    def _close_message(self, status: str) -> None:
        """Ends the message, if there is one that is not ended yet."""
        if self.is_closed:
            return
        if rest := self.filter.finish(calls=self.num_calls):
            self._say(rest)
        self.is_closed = True
        if self.index is None:
            return
        state, place, text = self.state, self._part_place(), self.filter.visible
        part = {"type": "output_text", "text": text}
        if self.modality == "audio":
            if self.telephone and status != "cancelled":
                self._send_sound(self.telephone.push(NO_SOUND, last=True))
            state.emit("response.output_audio.done", **place)
            state.emit("response.output_audio_transcript.done", transcript=text, **place)
            part = {"type": "output_audio", "transcript": text}
        else:
            state.emit("response.output_text.done", text=text, **place)
        state.emit("response.content_part.done", part=self._part(text), **place)
        status = "completed" if status == "completed" else "incomplete"
        self._close_item(message_item(self.item, "assistant", [part], status=status), self.index)

    def _open_item(self, item: dict[str, Any]) -> int:
        """Announces an item of the output; returns its place there."""
        index = len(self.output)
        self.output.append(item)
        self.state.emit(
            "response.output_item.added", response_id=self.response, output_index=index, item=item
        )
        if self.in_conversation:
            after = self.state.items.add(item, after=self._last())
            self.state.emit("conversation.item.added", previous_item_id=after, item=item)
        return index

    def _close_item(self, item: dict[str, Any], index: int) -> None:
        self.output[index] = item
        self.state.emit(
            "response.output_item.done", response_id=self.response, output_index=index, item=item
        )
        if self.in_conversation and item["id"] in self.state.items:
            names = list(self.state.items.by_id)
            place = names.index(item["id"])
            self.state.items.by_id[item["id"]] = item
            before = names[place - 1] if place else None
            self.state.emit("conversation.item.done", previous_item_id=before, item=item)

    def _last(self) -> str | None:
        return self.output[-2]["id"] if len(self.output) > 1 else self.state.items.last

    def _part(self, text: str) -> dict[str, str]:
        if self.modality == "text":
            return {"type": "text", "text": text}
        return {"type": "audio", "transcript": text}

    def _where(self, item: str, index: int) -> dict[str, Any]:
        return {"response_id": self.response, "item_id": item, "output_index": index}

    def _part_place(self) -> dict[str, Any]:
        assert self.index is not None
        return self._where(self.item, self.index) | {"content_index": 0}

    def _wire(self, status: str, event: api.ResponseDone | None = None) -> dict[str, Any]:
        details: dict[str, Any] | None = None
        if event is not None and event.status != "completed":
            details = {"type": event.status}
            if event.reason in STATUS_REASONS:
                details["reason"] = STATUS_REASONS[event.reason]
            elif event.status == "failed":
                details["error"] = {"type": "server_error", "code": event.reason or "error"}
        return {
            "object": "realtime.response",
            "id": self.response,
            "status": status,
            "status_details": details,
            "output": list(self.output) if event is not None else [],
            "conversation_id": self.state.conversation if self.in_conversation else None,
            "output_modalities": [self.modality],
            "max_output_tokens": self.config.max_output_tokens,
            "audio": {"output": self.config.wire_output()},
            "usage": None if event is None else realtime_usage(event.usage),
            "metadata": self.metadata,
        }
