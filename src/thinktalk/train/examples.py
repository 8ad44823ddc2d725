"""Rows in; tokenised conversations out, with what shall be learned and said.

Shapes: T tokens of a conversation. Labels stand where a token is predicted, one place before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from thinktalk.config import OmniConfig
from thinktalk.generate import load_processor, load_tokenizer
from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT, Control, Medium, Piece, render
from thinktalk.media.prompt import Processor, Prompt, assemble
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.model.audio import num_tokens as num_audio_tokens
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.model.tmrope import prompt_positions
from thinktalk.train.codes import CodeReader
from thinktalk.train.features import FeatureCache
from thinktalk.train.parts import MediaReader
from thinktalk.train.rows import Conversation, Row, Speech
from thinktalk.train.survey import SILENT
from thinktalk.train.voice import ENCODER_FILE, load_speech_encoder
from thinktalk.weights import LoadedModel

Ints = NDArray[np.int64]

IGNORED = -100  # label of a token that is not learned
TALKER_START_ROWS = 2  # the voice, and the first reply row
TURN_START, TURN_END = Control("<|im_start|>"), Control("<|im_end|>")
DOCUMENT_END = Control("<|endoftext|>")
PROBE = "Two 12, zwölf; 二\n\tÉ"  # how a tokenizer cuts it tells tokenizers apart


@dataclass(frozen=True)
class Spoken:
    """A reply that is spoken.

    start, end: where its text stands in the ids, the stop id left out; codes: int64 [n]; voice: the
    token that opens it.
    """

    start: int
    end: int
    codes: Ints
    voice: int


@dataclass(frozen=True)
class Example:
    """A conversation to learn from.

    prompt: its ids and media; labels int64 [T]: the next id, or IGNORED; positions int64 [3,T].
    rejected: the worse one of a pair. wanted: the label of a row that has one.
    """

    prompt: Prompt
    labels: Ints
    positions: Ints
    spoken: tuple[Spoken, ...] = ()
    rejected: bool = False
    wanted: bool | None = None

    @property
    def ids(self) -> Ints:
        return self.prompt.ids


@dataclass(frozen=True)
class ExampleMaker:
    """Makes examples for one checkpoint.

    voices: the token of every speaker. speech: whether the speech of replies is a target, where it
    is there or in every row. prompts: whether rows without a reply are accepted. system: for rows
    without a system prompt of their own; by default what the model gets when it is used: the one
    for speech where a reply has any, be it a target or not. encoder: makes codec ids of recordings.
    """

    config: OmniConfig
    tokenizer: Tokenizer
    processor: Processor
    voices: Mapping[str, int] = field(default_factory=dict)
    speech: Literal["ignored", "welcome", "needed"] = "welcome"
    prompts: bool = False
    system: str | None = None
    audio_in_video: bool = True
    max_tokens: int | None = None  # by default the context of the model
    encoder: SpeechTokenizer | None = None
    cache: FeatureCache | None = None

    def make(self, row: Row) -> list[Example]:
        """The row's example; of a pair the chosen and the rejected one. ValueError if it is bad."""
        chosen = self._example(row.conversation, row)
        if row.rejected is None:
            return [replace(chosen, wanted=row.label)]
        return [chosen, replace(self._example(row.rejected, row), rejected=True)]

    def measure(self, row: Row) -> int:
        """Positions that Thinker and Talker will compute for the row, without decoding its media.

        SILENT where speech is needed and nobody speaks. Raises ValueError for what can be told from
        the row and the headers of its media.
        """
        sides = [row.conversation, *([row.rejected] if row.rejected else [])]
        if self.speech == "needed" and not any(self._is_spoken(side) for side in sides):
            return SILENT
        return sum(self._measured(side, row) for side in sides)

    def stamp(self) -> str:
        """Changes when `measure` may change."""
        ids = self.tokenizer.encode(PROBE), self.tokenizer.vocab_size
        rest = self.voices, self.speech, self.prompts, self.system, self.max_tokens
        codes = self._codes.num_codes, self.encoder is None
        return repr((self._media.settings(), codes, ids, rest))

    @cached_property
    def _media(self) -> MediaReader:
        config = self.config.thinker_config
        return MediaReader(
            self.tokenizer, config, self.processor, self.audio_in_video, cache=self.cache
        )

    @cached_property
    def _codes(self) -> CodeReader:
        num_codes = self.config.token2wav_config.dit_config.num_embeds
        return CodeReader(num_codes, encoder=self.encoder, cache=self.cache)

    def _example(self, conversation: Conversation, row: Row) -> Example:
        parts: list[Prompt] = []
        learned: list[NDArray[np.bool_]] = []
        spoken: list[Spoken] = []
        count = 0
        for pieces, reply in self._segments(conversation, row):
            start = count
            for run in _runs(pieces):
                part = self._media.part(run) if isinstance(run, Medium) else self._text(run)
                parts.append(part)
                on = reply is not None and conversation.learned[reply]
                learned.append(np.full(len(part.ids), on and not isinstance(run, Medium)))
                count += len(part.ids)
            if (speech := self._said(conversation, reply)) is not None:
                codes, voice = self._codes.read(speech), self.voices[speech.speaker]
                spoken.append(Spoken(start, count - 1, codes, voice))
        prompt = _joined(parts)
        self._check_length(count)
        on = np.concatenate(learned) & ~np.isin(prompt.ids, self._markers)
        labels = np.full(count, IGNORED, np.int64)
        labels[:-1][on[1:]] = prompt.ids[1:][on[1:]]
        return Example(prompt, labels, self._positions(prompt), tuple(spoken))

    def _measured(self, conversation: Conversation, row: Row) -> int:
        count = talker = 0
        for pieces, reply in self._segments(conversation, row):
            start = count
            for run in _runs(pieces):
                is_medium = isinstance(run, Medium)
                count += self._media.count(run) if is_medium else len(self._text(run).ids)
            if (speech := self._said(conversation, reply)) is not None:
                if count - 1 == start:
                    raise ValueError("a spoken turn has no text; write what is said")
                talker += start + TALKER_START_ROWS + self._codes.count(speech)
        self._check_length(count)
        return count + talker

    def _segments(
        self, conversation: Conversation, row: Row
    ) -> list[tuple[list[Piece], int | None]]:
        """The rendered conversation, cut before and behind every reply: pieces, message number.

        A reply ends with the token that ends its turn. Without any other turn it is a document, of
        which nothing but its words is left.
        """
        roles = [message["role"] for message in conversation.messages]
        if not self.prompts and not any(conversation.learned):
            raise ValueError("there is no reply to learn; add an assistant turn")
        spoken = self._is_spoken(conversation)
        if self.speech == "needed" and not spoken:
            raise ValueError("no reply that is learned has speech; add speech or codes")
        heard = spoken or (self.speech == "ignored" and len(conversation.speech) > 0)
        system = SPEECH_SYSTEM_PROMPT if self.system is None and heard else self.system
        pieces = render(conversation.messages, system=system, tools=row.tools, reply=False)
        replies = iter(number for number, role in enumerate(roles) if role == "assistant")
        segments: list[tuple[list[Piece], int | None]] = [([], None)]
        for number, piece in enumerate(pieces):
            segments[-1][0].append(piece)
            if piece == "assistant\n" and number and pieces[number - 1] == TURN_START:
                segments.append(([], next(replies)))
            elif piece == TURN_END and segments[-1][1] is not None:
                segments.append(([], None))
        if set(roles) != {"assistant"}:
            return segments
        texts = [(pieces, reply) for pieces, reply in segments if reply is not None]
        return [([*pieces[:-1], DOCUMENT_END], reply) for pieces, reply in texts]

    def _is_spoken(self, conversation: Conversation) -> bool:
        said = (self._said(conversation, number) for number in conversation.speech)
        return any(speech is not None for speech in said)

    def _said(self, conversation: Conversation, reply: int | None) -> Speech | None:
        """The speech of a reply, where it is a target."""
        if self.speech == "ignored" or reply is None or not conversation.learned[reply]:
            return None
        speech = conversation.speech.get(reply)
        if speech is not None and speech.speaker not in self.voices:
            known = ", ".join(self.voices) or "none"
            raise ValueError(
                f"the speaker {speech.speaker!r} is unknown; the voices are {known}. Add one with "
                "`thinktalk voice add`"
            )
        return speech

    def _text(self, run: list[Piece]) -> Prompt:
        return assemble(
            run,
            tokenizer=self.tokenizer,
            config=self.config.thinker_config,
            processor=self.processor,
        )

    def _positions(self, prompt: Prompt) -> Ints:
        positions, _ = prompt_positions(
            torch.from_numpy(prompt.ids),
            config=self.config.thinker_config,
            audio_tokens=[num_audio_tokens(mel.shape[1]) for mel in prompt.mels],
            image_grids=[grid for _, grid in prompt.images],
            video_grids=[grid for _, grid, _ in prompt.videos],
            seconds_per_pair=[seconds for *_, seconds in prompt.videos],
            video_has_audio=prompt.video_has_audio,
        )
        return positions.numpy()

    def _check_length(self, count: int) -> None:
        context = self.config.thinker_config.text_config.max_position_embeddings
        most = min(self.max_tokens or context, context)
        if count > most:
            raise ValueError(f"it has {count} tokens, but may have {most}; shorten it")

    @property
    def _markers(self) -> list[int]:
        """Ids of media and of what stands around them: nobody writes them, so none is learned."""
        config = self.config.thinker_config
        around = (config.audio_start_token_id, config.audio_end_token_id)
        around += (config.vision_start_token_id, config.vision_end_token_id)
        return [*config.media_token_ids, *around]


def maker_for(
    model: LoadedModel,
    *,
    speech: Literal["ignored", "welcome", "needed"] = "welcome",
    cache: FeatureCache | None = None,
) -> ExampleMaker:
    """The maker for a checkpoint: its tokenizer, processor, voices and, if it has one, encoder."""
    has_encoder = (model.folder / ENCODER_FILE).exists()
    return ExampleMaker(
        model.config,
        load_tokenizer(model.folder),
        load_processor(model.folder),
        voices={name: voice.bos_token for name, voice in model.voices.items()},
        speech=speech,
        encoder=load_speech_encoder(model.folder) if has_encoder else None,
        cache=cache,
    )


def _runs(pieces: list[Piece]) -> list[list[Piece] | Medium]:
    """Media one by one, and what stands between them."""
    runs: list[list[Piece] | Medium] = []
    for piece in pieces:
        if isinstance(piece, Medium):
            runs.append(piece)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _joined(parts: list[Prompt]) -> Prompt:
    return Prompt(
        ids=np.concatenate([part.ids for part in parts]),
        mels=[mel for part in parts for mel in part.mels],
        images=[image for part in parts for image in part.images],
        videos=[video for part in parts for video in part.videos],
        video_has_audio=[has for part in parts for has in part.video_has_audio],
    )
