"""Text as it comes in, text that may be shown out: stop strings end it, tool calls are hidden."""

from __future__ import annotations

from collections.abc import Sequence

CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"


class StopFilter:
    """Lets text through up to the first stop string, which never shows, not even in part."""

    def __init__(self, stops: Sequence[str]):
        self.stops = stops
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to come before a stop string."""
        if self.stopped:
            return ""
        self._held += text
        places = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._taken(min(places))
        return self._taken(len(self._held) - _overlap(self._held, self.stops))

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return "" if self.stopped else self._taken(len(self._held))

    def _taken(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text


class CallFilter:
    """Hides tool calls. visible: all text that was let through; active=False hides nothing."""

    def __init__(self, *, active: bool = True):
        self.active = active
        self.visible = ""
        self.hidden = ""
        self._held = ""
        self._inside = False

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a call."""
        if not self.active:
            return self._shown(text)
        self._held += text
        out = ""
        while True:
            mark = CALL_END if self._inside else CALL_BEGIN
            place = self._held.find(mark)
            if place < 0:
                break
            out += self._pass(place)
            self.hidden += mark
            self._held = self._held[len(mark) :]
            self._inside = not self._inside
        out += self._pass(len(self._held) - _overlap(self._held, (mark,)))
        return self._shown(out)

    def finish(self, *, calls: int) -> str:
        """What was held back; all that was hidden, too, if none of it was a call after all."""
        out, self._held = self._held, ""
        if self._inside:
            self.hidden, out = self.hidden + out, ""
        if not calls:
            out = self.hidden + out
        return self._shown(out)

    def _pass(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        if self._inside:
            self.hidden += text
            return ""
        return text

    def _shown(self, text: str) -> str:
        """White space before or between calls is no text."""
        if self.active and not self.visible:
            text = text.lstrip()
        self.visible += text
        return text


def _overlap(text: str, marks: Sequence[str]) -> int:
    """How many characters at the text's end may be the beginning of a mark."""
    longest = min(len(text), max(map(len, marks), default=1) - 1)
    for count in range(longest, 0, -1):
        if any(mark.startswith(text[-count:]) for mark in marks):
            return count
    return 0
