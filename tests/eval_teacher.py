"""A model that knows every answer, for the tests of the measurements."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thinktalk.eval import tasks
from thinktalk.media.chat import parse_tool_calls
from thinktalk.playroom import cases, speech, talk
from thinktalk.playroom.cases import Example
from thinktalk.playroom.talk import Case

Messages = list[dict[str, Any]]


def no_tick() -> None:
    """The tests need no progress bar."""


class Teacher:
    """Takes the place of `generate`; looks over the shoulder of whoever makes the cases.

    answer changes what it says, sound how it sounds; asked: all conversations it was given.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.answer: Callable[[str], str] = lambda text: text
        self.sound: Callable[[np.ndarray], np.ndarray] = lambda samples: samples
        self.asked: list[Messages] = []
        self.cases: list[Case] = []
        self._make, self._example = cases.make, None
        monkeypatch.setattr(cases, "make", self._watch)
        monkeypatch.setattr(tasks, "generate", self._generate)

    def parts(self) -> Iterator[Any]:
        for messages in self.asked:
            for message in messages:
                content = message["content"]
                yield from [content] if isinstance(content, str) else content

    def _watch(self, **options: Any) -> Example:
        self._example = self._make(**options)
        self.cases.append(self._example.case)
        return self._example

    def _generate(
        self, model: Any, messages: Messages, *, voice: str, speak: bool, **_: Any
    ) -> Any:
        self.asked.append(messages)
        text, pace = self._right(messages)
        text = self.answer(text)
        audio = np.zeros(0, np.float32)
        if speak and text != talk.TOOL_CALL:
            audio = self.sound(speech.speak(text, voice=voice, stretch=pace))
        return SimpleNamespace(
            text=text, audio=audio, sample_rate=24_000, tool_calls=parse_tool_calls(text)
        )

    def _right(self, messages: Messages) -> tuple[str, float]:
        """The canonical answer and its pace."""
        assert self._example is not None
        question = messages[-1]["content"]
        for name, stretch in talk.STRETCH.items():
            if isinstance(question, str) and question.startswith(f"say {name}: "):
                return question.partition(": ")[2], stretch
        if len(messages) < len(self._example.messages):  # the first of several turns
            return self._example.messages[len(messages)]["content"], 1.0
        return self._example.case.answer, 1.0


class Echo(nn.Module):
    """A vocoder that knows the wave which its mel was made from, at another gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.wave = np.zeros(0, np.float32)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        assert mel.shape == (1, 80, len(self.wave) // 240), mel.shape
        return self.gain * torch.from_numpy(self.wave)[None]
