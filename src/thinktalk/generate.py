"""The whole system offline, in one readable function: messages in, text and speech out.

This is the specification; the live engine does the same work in another order. Steps: the prompt
becomes embeddings, the Thinker writes, the Talker turns its states into codec ids, and Token2Wav
turns those into sound.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT, SpokenIds, ToolCall, parse_tool_calls
from thinktalk.media.encode import write_wav
from thinktalk.media.mel import VOICE_HZ
from thinktalk.media.prompt import Processor, Prompt, build_prompt
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.model.audio import num_tokens
from thinktalk.model.cache import row_plan, single_row
from thinktalk.model.omni import Omni
from thinktalk.model.talker import opening_codec_ids, prompt_rows, usable_codec_ids
from thinktalk.model.tmrope import prompt_positions
from thinktalk.options import DEFAULT_VOICE, GREEDY, OFFICIAL_SPEECH, Sampling
from thinktalk.sampling import choose, draw
from thinktalk.weights import LoadedModel, Voice

Rearrange = Callable[[Tensor, Tensor], Tensor]  # (ids [T], positions [3,T]) -> positions [3,T]


@dataclass(frozen=True)
class Answer:
    """What the model said.

    text: without special tokens. audio: float32 [samples], empty where nothing is spoken.
    text_ids and codec_ids: what Thinker and Talker chose, their stop ids left out.
    tool_calls: the calls that the text contains; from the first of them on nothing is spoken.
    """

    text: str
    audio: NDArray[np.float32]
    text_ids: list[int]
    codec_ids: list[int]
    tool_calls: list[ToolCall]
    sample_rate: int = VOICE_HZ

    def save(self, path: str | Path) -> None:
        """Writes the sound as a 16-bit WAV file. Raises ValueError where nothing was spoken."""
        if not len(self.audio):
            raise ValueError(
                f"{path}: there is no sound to save; the reply is empty or speak=False"
            )
        write_wav(path, self.audio, self.sample_rate)


def generate(
    model: LoadedModel,
    messages: str | Sequence[Any],
    *,
    voice: str = DEFAULT_VOICE,
    speak: bool = True,
    exact: bool = False,
    system: str | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    audio_in_video: bool = True,
    max_text_tokens: int = 1024,
    max_codec_ids: int = 4096,
    seed: int = 0,
    text: Sampling = GREEDY,
    speech: Sampling = OFFICIAL_SPEECH,
    on_text: Callable[[str], None] | None = None,
    positions: Rearrange | None = None,
) -> Answer:
    """Answers a list of texts and media (paths, URLs, arrays), or chat messages in the official
    format.

    exact: the reference's computation (whole-clip mel maximum, full-sequence DiT with its 36
    evaluations, its noise) instead of the windowed one that the live engine equals.
    max_text_tokens, max_codec_ids: where the reply and its speech end at the latest; a reply also
    ends where the model's context is full.
    on_text: called with every piece of text as soon as it is certain; never with an empty one.
    positions: gives the prompt's tokens other positions, for experiments; the reply keeps its own.
    Raises ValueError, before any model work, for an unknown voice and for media that cannot be
    read or do not fit.
    """
    chosen = _voice(model, voice) if speak else None
    _positive(max_text_tokens=max_text_tokens, max_codec_ids=max_codec_ids)
    omni, tokenizer = model.omni, load_tokenizer(model.folder)
    prompt = build_prompt(
        messages,
        tokenizer=tokenizer,
        config=omni.config.thinker_config,
        processor=load_processor(model.folder),
        exact=exact,
        audio_in_video=audio_in_video,
        system=system if system is not None or not speak else SPEECH_SYSTEM_PROMPT,
        tools=tools,
    )
    with torch.inference_mode():
        thought = Thought(omni, prompt, max_text_tokens=max_text_tokens, rearrange=positions)
        ids = think(thought, sampling=text, seed=seed)
        text_ids, num_spoken = write(ids, tokenizer=tokenizer, on_text=on_text)
        codec_ids: list[int] = []
        audio = np.zeros(0, np.float32)
        if chosen is not None:
            del thought.reply_rows[num_spoken:]
            codec_ids += talk(
                thought, voice=chosen, sampling=speech, seed=seed, max_codec_ids=max_codec_ids
            )
            audio = render(omni, codec_ids, voice=chosen, seed=seed, exact=exact)
    reply = tokenizer.decode(text_ids)
    return Answer(reply, audio, text_ids, codec_ids, parse_tool_calls(reply))


class Thought:
    """A prompt inside the Thinker, and what its reply leaves for the Talker.

    Holds the cache of one row. embeddings and hidden [T,C]: the prompt's, placeholders filled.
    reply_rows, each [1,C]: state plus embedding of every reply token that was fed back, in order.
    """

    def __init__(
        self,
        omni: Omni,
        prompt: Prompt,
        *,
        max_text_tokens: int,
        rearrange: Rearrange | None = None,
    ):
        thinker, config = omni.thinker, omni.config.thinker_config
        self.omni = omni
        device = thinker.lm_head.weight.device
        self.ids = torch.from_numpy(prompt.ids).to(device)
        mels = [torch.from_numpy(mel).to(device) for mel in prompt.mels]
        images = [_patches(patches, grid, device) for patches, grid in prompt.images]
        videos = [_patches(patches, grid, device) for patches, grid, _ in prompt.videos]
        self.positions, self.next_position = prompt_positions(
            self.ids.cpu(),
            config=config,
            audio_tokens=[num_tokens(mel.shape[1]) for mel in mels],
            image_grids=[grid for _, grid in prompt.images],
            video_grids=[grid for _, grid, _ in prompt.videos],
            seconds_per_pair=[seconds for _, _, seconds in prompt.videos],
            video_has_audio=prompt.video_has_audio,
        )
        if rearrange is not None:
            self.positions = rearrange(self.ids.cpu(), self.positions)
        self.embeddings = thinker.embed_prompt(
            self.ids,
            audio=thinker.encode_audio(mels),
            images=thinker.encode_patches(images),
            videos=thinker.encode_patches(videos),
        )
        context = config.text_config.max_position_embeddings
        self.limit = min(max_text_tokens, context - len(self.ids))
        self.cache, self.table = single_row(
            config.text_config,
            capacity=len(self.ids) + self.limit,
            dtype=self.embeddings.dtype,
            device=device,
        )
        self.hidden = thinker(
            self.embeddings[None],
            positions=self.positions.to(device)[:, None],
            cache=self.cache,
            plan=row_plan(self.table, start=0, num_tokens=len(self.ids)),
        )[0]
        self.reply_rows: list[Tensor] = []

    def feed(self, token: Tensor) -> Tensor:
        """One more text token int64 [1] -> its hidden state [1,C]; keeps the row for the Talker."""
        done = len(self.reply_rows)
        embedding = self.omni.thinker.embed(token)
        hidden = self.omni.thinker(
            embedding[None],
            positions=_everywhere(self.next_position + done, embedding.device),
            cache=self.cache,
            plan=row_plan(self.table, start=len(self.ids) + done, num_tokens=1),
        )[0]
        self.reply_rows.append(hidden + embedding)
        return hidden


def think(thought: Thought, *, sampling: Sampling, seed: int) -> Iterator[int]:
    """Yields text ids until the stop id or the limit.

    As in the reference, the last id is not fed back and so leaves no row for the Talker, be it the
    stop id or the one at the limit. A reply of a single id, which the reference cannot speak, is.
    """
    thinker, config = thought.omni.thinker, thought.omni.config.thinker_config
    hidden = thought.hidden[-1:]
    seen = torch.zeros(1, config.text_config.vocab_size, dtype=torch.bool, device=hidden.device)
    seen[0, thought.ids] = True
    for step in range(thought.limit):
        uniform = torch.tensor([draw(seed, "text", step)], device=hidden.device)
        token = choose(thinker.logits(hidden), sampling, seen=seen, uniform=uniform)
        seen[0, token] = True
        if token.item() == config.eos_token_id:
            return
        yield int(token.item())
        if step == 0 or step + 1 < thought.limit:
            hidden = thought.feed(token)


def write(
    ids: Iterable[int], *, tokenizer: Tokenizer, on_text: Callable[[str], None] | None
) -> tuple[list[int], int]:
    """Tells the text of ids as they come -> all of them, and how many of them are to be spoken."""
    text_ids: list[int] = []
    decoder, spoken = tokenizer.incremental_decoder(), SpokenIds()
    for token in ids:
        text_ids.append(token)
        piece = decoder.push(token)
        spoken.push(piece)
        _tell(on_text, piece)
    _tell(on_text, decoder.finish())
    spoken.finish()
    return text_ids, spoken.count


def talk(
    thought: Thought, *, voice: Voice, sampling: Sampling, seed: int, max_codec_ids: int
) -> Iterator[int]:
    """Yields codec ids until a stop id or the limit; nothing where there are no rows to speak.

    Position k of the speech sees the k-th reply row, then the embeddings of the text's end and of
    padding for as long as it goes on.
    """
    if not thought.reply_rows:
        return
    omni, config = thought.omni, thought.omni.config.talker_config
    talker, device = omni.talker, thought.ids.device
    tracks, positions = hand_over(thought, voice=voice)
    reply, pad = text_track(thought)
    cache, table = single_row(
        config, capacity=len(tracks) + max_codec_ids, dtype=tracks.dtype, device=device
    )
    hidden = talker(
        tracks[None],
        positions=positions.to(device)[:, None],
        cache=cache,
        plan=row_plan(table, start=0, num_tokens=len(tracks)),
    )[:, -1]
    next_position = int(positions.max()) + 1
    seen = opening_codec_ids(config, device=device)[None]
    usable = usable_codec_ids(
        config, num_codes=omni.config.token2wav_config.dit_config.num_embeds, device=device
    )
    for step in range(max_codec_ids):
        uniform = torch.tensor([draw(seed, "speech", step)], device=device)
        token = choose(talker.logits(hidden), sampling, seen=seen, usable=usable, uniform=uniform)
        seen[0, token] = True
        if int(token.item()) in config.stop_ids:
            return
        yield int(token.item())
        if step + 1 == max_codec_ids:
            return
        row = reply[step] if step < len(reply) else pad
        hidden = talker(
            (talker.embed_codec(token) + row)[None],
            positions=_everywhere(next_position + step, device),
            cache=cache,
            plan=row_plan(table, start=len(tracks) + step, num_tokens=1),
        )[:, -1]


def text_track(thought: Thought) -> tuple[list[Tensor], Tensor]:
    """What the steps of a speech see of the text, [1,E] each: the reply rows behind the first, then
    the text's end; and the padding behind those."""
    config = thought.omni.config.talker_config
    end, pad = (
        thought.omni.thinker.embed(torch.tensor([token], device=thought.ids.device))
        for token in (config.tts_text_end_token_id, config.tts_text_pad_token_id)
    )
    return [*thought.reply_rows[1:], end], pad


def hand_over(thought: Thought, *, voice: Voice) -> tuple[Tensor, Tensor]:
    """What the Talker hears before it speaks: tracks [T+2,E] and positions [3,T+2].

    The T prompt positions, then one with the voice and one with the first reply row.
    """
    thinker, talker, device = thought.omni.thinker, thought.omni.talker, thought.ids.device
    media_ids = torch.tensor(thinker.config.media_token_ids, device=device)
    prompt = prompt_rows(thought.embeddings, thought.hidden, torch.isin(thought.ids, media_ids))
    opening = thinker.embed(torch.tensor(voice.bos_token, device=device))
    start = talker.start_rows(opening, thought.reply_rows[0][0])
    after = thought.next_position + torch.arange(2)
    positions = torch.cat((thought.positions, after.expand(3, 2)), dim=1)
    return torch.cat((prompt, start)), positions


def render(
    omni: Omni, codec_ids: list[int], *, voice: Voice, seed: int, exact: bool
) -> NDArray[np.float32]:
    """Codec ids -> float32 samples at 24 kHz."""
    token2wav = omni.token2wav
    device = token2wav.code2wav_bigvgan_model.conv_pre.weight.device
    ids = torch.tensor([codec_ids], dtype=torch.int64, device=device)
    synthesize = token2wav.synthesize_exact if exact else token2wav.synthesize
    wave = synthesize(ids, cond=voice.cond.to(device), ref_mel=voice.ref_mel.to(device), seed=seed)
    return wave[0].float().cpu().numpy()


@lru_cache(maxsize=8)
def load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@lru_cache(maxsize=8)
def load_processor(folder: Path) -> Processor:
    return Processor.from_folder(folder)


def _voice(model: LoadedModel, name: str) -> Voice:
    if name not in model.voices:
        remedy = f"choose one of {', '.join(model.voices)}"
        if not model.voices:
            remedy = "the checkpoint has none: add its spk_dict.pt, or use speak=False"
        raise ValueError(f"unknown voice {name!r}; {remedy}")
    return model.voices[name]


def _tell(listener: Callable[[str], None] | None, piece: str) -> None:
    if listener is not None and piece:
        listener(piece)


def _positive(**limits: int) -> None:
    for name, value in limits.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _patches(patches: NDArray[np.float32], grid: tuple[int, int, int], device: torch.device):
    return torch.from_numpy(patches).to(device), torch.tensor(grid, device=device)


def _everywhere(position: int, device: torch.device) -> Tensor:
    """The same position on all three axes, for one token of one row: [3,1,1]."""
    return torch.full((3, 1, 1), position, device=device)
