"""Playroom conversations -> token ids, labels and mel windows for the Thinker.

Half of the conversations are typed and drawn anew for every batch; the other half come from a
packed corpus of spoken questions. Every row is one conversation, padded on the right.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinktalk.config import ThinkerConfig
from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT
from thinktalk.media.prompt import Processor, build_prompt
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.playroom import talk
from thinktalk.playroom.dataset import Corpus
from thinktalk.train.examples import IGNORED
from thinktalk.train.packing import grown

SPEECH_PROMPT_SHARE = 0.6  # of conversations without a system prompt of their own


@dataclass(frozen=True)
class Dialogue:
    """ids int64 [P + R]: prompt and reply with its stop id; mels: log-mel [128,F] of every clip."""

    ids: NDArray[np.int64]
    prompt_length: int
    mels: list[NDArray[np.float32]]


class Dialogues:
    """Draws dialogues: typed ones from the playroom's rules, spoken ones from a corpus."""

    def __init__(
        self, tokenizer: Tokenizer, config: ThinkerConfig, processor: Processor, spoken: Corpus
    ):
        self.tokenizer, self.config = tokenizer, config
        self.processor, self.spoken = processor, spoken

    def typed(self, rng: np.random.Generator, *, task: str | None = None) -> Dialogue:
        """A case that needs no sound: of the task, or of any task that offers no tools."""
        while True:
            case = talk.sample(rng, split="train", task=task)
            if case.heard is None and (task is not None or not case.tools):
                return self.from_case(case, rng)

    def from_case(self, case: talk.Case, rng: np.random.Generator) -> Dialogue:
        """A case that needs no sound, typed."""
        messages: list[dict[str, Any]] = [
            {"role": role, "content": text} for role, text in case.turns
        ]
        return self.dialogue(messages, case.answer, rng, system=case.system, tools=case.tools)

    def heard(self, row: dict[str, Any], rng: np.random.Generator) -> Dialogue:
        """A row of the corpus of spoken questions."""
        clips = [self.spoken.clip(clip) for clip in row["clips"]]
        messages = []
        for message in row["messages"]:
            content = message["content"]
            if not isinstance(content, str):
                content = [
                    {"type": "audio", "audio": clips[part["audio"]]}
                    if part["type"] == "audio"
                    else part
                    for part in content
                ]
            messages.append({"role": message["role"], "content": content})
        return self.dialogue(
            messages,
            row["answer"],
            rng,
            tools=row["case"].get("tools"),
        )

    def dialogue(
        self,
        messages: list[dict[str, Any]],
        answer: str,
        rng: np.random.Generator,
        *,
        system: str | None = None,
        tools: Any = None,
    ) -> Dialogue:
        has_system = messages[0]["role"] == "system"
        if system is None and not has_system and rng.random() < SPEECH_PROMPT_SHARE:
            system = SPEECH_SYSTEM_PROMPT
        prompt = build_prompt(
            messages,
            tokenizer=self.tokenizer,
            config=self.config,
            processor=self.processor,
            system=system,
            tools=tools,
        )
        reply = [*self.tokenizer.encode(answer), self.config.eos_token_id]
        ids = np.concatenate((prompt.ids, np.array(reply, np.int64)))
        return Dialogue(ids, len(prompt.ids), prompt.mels)


def collate(dialogues: list[Dialogue], *, pad_id: int) -> dict[str, torch.Tensor]:
    """ids and labels int64 [B,T]; windows [N,128,200] with lengths [N] of all clips in order.

    labels: the next id where the reply is learned, else IGNORED. lengths int64 [B].
    """
    longest = grown(max(len(d.ids) for d in dialogues))
    ids = np.full((len(dialogues), longest), pad_id, np.int64)
    labels = np.full_like(ids, IGNORED)
    for row, d in enumerate(dialogues):
        ids[row, : len(d.ids)] = d.ids
        labels[row, d.prompt_length - 1 : len(d.ids) - 1] = d.ids[d.prompt_length :]
    return {
        "ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "lengths": torch.tensor([len(d.ids) for d in dialogues]),
    }
