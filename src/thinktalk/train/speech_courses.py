"""The stages of speech for the table in tuning.py: what each needs of a job, and what it gives."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.bigvgan import BigVGAN
from thinktalk.model.dit import DiT
from thinktalk.model.omni import Omni
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.model.talker import Talker
from thinktalk.train import speech_stages as stages
from thinktalk.train.feed import Batches
from thinktalk.train.job import Course, Job, put_back
from thinktalk.train.omni import choose_learners
from thinktalk.train.preference import Pairs, PreferenceTask
from thinktalk.train.recordings import streams_of
from thinktalk.train.rows import Row
from thinktalk.train.shards import Source, chained
from thinktalk.train.speaking import spread_unused
from thinktalk.train.speech import DiTTask, TokenizerTask, VocoderTask, conditions
from thinktalk.train.spelling import READER_FILE, ReaderTask, new_reader, save_reader
from thinktalk.train.streams import Stream, codec_ids
from thinktalk.train.survey import BAD_ROW_ERRORS
from thinktalk.train.talker import TalkerTask
from thinktalk.train.trainer import Stage, Task
from thinktalk.train.voice import ENCODER_FILE, load_speech_encoder, save_speech_encoder
from thinktalk.weights import LoadedModel, read_json, write_json

DIT, VOCODER = "token2wav.code2wav_dit_model.", "token2wav.code2wav_bigvgan_model."
ADDED_TO_VOICES = "voices.added.weight"
USUAL_LEVELS = (8, 5, 5, 5), (8, 6, 5), (4, 4, 4, 3), (4, 4, 4)
SHAPE = "tokenizer.json"  # what a speech tokenizer that is trained looks like

Tensors = Mapping[str, Tensor]
Ints = NDArray[np.int64]


# ---- the Talker


def prepare_talker(job: Job, stage: stages.TalkerStage) -> tuple[Task, Batches]:
    omni, learns = job.model.omni, stage.learns
    if stage.fresh:
        omni.talker = Talker(omni.config.talker_config)
    if stage.joint:
        learns = (*learns, "thinker.*")
    choose_learners(omni, replace(stage, learns=learns))
    if stage.even_voices and job.weights is None:
        sources, weights = by_speaker(job.sources)
        job = replace(job, sources=sources, weights=weights)
    task = TalkerTask(
        omni.talker,
        omni.thinker,
        num_codes=num_codes(omni),
        levels=_levels(job.model),
        voices=[voice.bos_token for voice in job.model.voices.values()],
        joint=stage.joint,
        text_weight=stage.text_weight,
        deaf=stage.deaf,
        spelling=stage.spelling,
        held_out=job.held_out(stage, speech="needed"),
    )
    return task, job.loader(stage, speech="welcome" if stage.joint else "needed")


def put_back_talker(job: Job, weights: Tensors) -> LoadedModel:
    """Also what was added to the embeddings of the voices' tokens."""
    model = put_back(job, weights)
    spread_unused(model.omni.talker, num_codes=num_codes(model.omni))
    if ADDED_TO_VOICES in weights:
        tokens = sorted({voice.bos_token for voice in model.voices.values()})
        table = model.omni.thinker.model.embed_tokens.weight.data
        table[tokens] += weights[ADDED_TO_VOICES].to(table)
    return model


def prepare_preference(job: Job, stage: stages.PreferenceStage) -> tuple[Task, Batches]:
    omni = job.model.omni
    choose_learners(omni, stage)
    pairs, held = ([Pairs(source) for source in sources] for sources in (job.sources, job.held))
    job = replace(job, sources=pairs, held=held)
    task = PreferenceTask(
        omni.talker,
        omni.thinker,
        num_codes=num_codes(omni),
        beta=stage.beta,
        anchor=stage.anchor,
        plain=stage.plain,
        held_out=job.held_out(stage, speech="needed"),
    )
    return task, job.loader(stage, speech="needed")


def num_codes(omni: Omni) -> int:
    """Ids that the DiT has an embedding for and the Talker may say."""
    return omni.config.token2wav_config.dit_config.num_embeds


@dataclass(frozen=True)
class Chosen:
    """Some rows of a source; name: of their speaker."""

    source: Source
    rows: Sequence[int]
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        return self.source.row(self.rows[index])

    def place(self, index: int) -> str:
        return self.source.place(self.rows[index])

    def stamp(self) -> str:
        return f"{self.name} of {self.source.stamp()}"


def by_speaker(sources: Sequence[Source]) -> tuple[list[Source], list[float]]:
    """The rows of every speaker as sources of their own, and weights with which all are drawn
    equally often.

    So no speaker becomes the one of the texts that others rarely say. Rows that cannot be read, and
    those where nobody speaks, go with the first speaker: they are reported where all rows are.
    """
    source, rows, rest = chained(sources), defaultdict(list), []
    for index in range(len(source)):
        try:
            speech = source.row(index).conversation.speech
        except BAD_ROW_ERRORS:
            speech = {}
        speakers = [said.speaker for said in speech.values()]
        (rows[speakers[-1]] if speakers else rest).append(index)
    rows[min(rows, default="nobody")] += rest
    parts: list[Any] = [Chosen(source, rows[name], name) for name in sorted(rows)]
    return parts, [1.0] * len(parts)


# ---- the speech tokenizer


def prepare_tokenizer(job: Job, stage: stages.TokenizerStage) -> tuple[Task, None]:
    tokenizer = _tokenizer(job, stage)
    return TokenizerTask(tokenizer, _streams(job), reads=stage.reads), None


def _tokenizer(job: Job, stage: stages.TokenizerStage) -> SpeechTokenizer:
    """The checkpoint's with a new decoder, for only the encoder is kept; or a new one."""
    model, dit = job.model, job.model.config.token2wav_config.dit_config
    if (model.folder / ENCODER_FILE).exists() and not stage.fresh:
        tokenizer = load_speech_encoder(model.folder)
    else:
        levels = stage.levels if any(stage.levels) else fitting_levels(dit.num_embeds)
        config = replace(SpeechTokenizerConfig(), fsq_levels=levels, frames_per_code=dit.repeats)
        tokenizer = SpeechTokenizer(config)
    if tokenizer.config.num_codes > dit.num_embeds:
        raise ValueError(
            f"levels {list(tokenizer.config.fsq_levels)} make {tokenizer.config.num_codes} codes, "
            f"but the DiT of {model.folder} knows {dit.num_embeds}; give fewer levels"
        )
    write_json(job.kept / SHAPE, tokenizer.config.to_dict())
    return tokenizer.train()


def fitting_levels(num_codes: int) -> tuple[int, ...]:
    """The largest of some usual quantisers (Mentzer et al. 2023) with at most so many codes."""
    for levels in USUAL_LEVELS:
        if math.prod(levels) <= num_codes:
            return levels
    raise ValueError(f"no usual quantiser has only {num_codes} codes; give levels")


def keep_model(job: Job, weights: Tensors) -> LoadedModel:
    return job.model


def write_encoder(job: Job, weights: Tensors, folder: Path) -> None:
    """The encoder beside the official files."""
    ours = {name.removeprefix("tokenizer."): tensor for name, tensor in weights.items()}
    ours = {name: tensor for name, tensor in ours.items() if not name.startswith("reader.")}
    tokenizer = SpeechTokenizer(SpeechTokenizerConfig.from_dict(read_json(job.kept / SHAPE)))
    tokenizer.load_state_dict(ours)
    save_speech_encoder(tokenizer, folder)
    (folder / READER_FILE).unlink(missing_ok=True)  # it read other codes


def prepare_reader(job: Job, stage: Stage) -> tuple[Task, None]:
    encoder, streams = load_speech_encoder(job.model.folder), _streams(job)
    return ReaderTask(encoder, streams, _codes(job, streams, encoder)), None


def write_reader(job: Job, weights: Tensors, folder: Path) -> None:
    reader = new_reader(load_speech_encoder(job.model.folder).config)
    reader.load_state_dict(dict(weights))
    save_reader(reader, folder)


# ---- DiT and vocoder


def prepare_dit(job: Job, stage: stages.DiTStage) -> tuple[Task, None]:
    model, config = job.model, job.model.config.token2wav_config.dit_config
    encoder = load_speech_encoder(model.folder)
    if encoder.config.num_codes > config.num_embeds:
        raise ValueError(
            f"the speech encoder of {model.folder} has {encoder.config.num_codes} codes, but its "
            f"DiT knows {config.num_embeds}; train a tokenizer with fewer levels"
        )
    streams = _streams(job)
    dit = model.omni.token2wav.code2wav_dit_model
    if stage.fresh:
        dit = DiT(config)
    dit.requires_grad_(True)
    task = DiTTask(
        dit.train(),
        streams,
        _codes(job, streams, encoder),
        conds=known_conditions(streams, model),
        fresh=stage.fresh,
    )
    return task, None


def _codes(job: Job, streams: Sequence[Stream], encoder: SpeechTokenizer) -> list[Ints]:
    """The ids of every stream, made by the first leg."""
    weights = [weight.detach().numpy() for weight in encoder.parameters()]
    rows = [source.stamp() for source in job.sources]
    whole = job.cache.digest(repr(("streams", encoder.config, rows)), weights)

    def ids_of(stream: Stream) -> Ints:
        key = job.cache.digest(repr((whole, stream.voice)))
        return job.cache.get(key, lambda: {"ids": codec_ids(stream, encoder)})["ids"]

    return [ids_of(stream) for stream in streams]


def known_conditions(streams: Sequence[Stream], model: LoadedModel) -> Tensor:
    """[speakers, enc_emb_dim]: those of the checkpoint's voices, for others made as for them."""
    width = model.config.token2wav_config.dit_config.enc_emb_dim
    computed = conditions(list(streams))
    conds = []
    for stream, own in zip(streams, computed, strict=True):
        if stream.voice in model.voices:
            conds.append(model.voices[stream.voice].cond[0])
        elif len(own) == width:
            conds.append(own)
        else:
            raise ValueError(
                f"{stream.voice} is no voice of {model.folder}, and how its cond is made is "
                "unknown; add the voice first: thinktalk voice add"
            )
    return torch.stack(conds)


def prepare_vocoder(job: Job, stage: stages.VocoderStage) -> tuple[Task, None]:
    vocoder = job.model.omni.token2wav.code2wav_bigvgan_model
    if stage.fresh:
        vocoder = BigVGAN(vocoder.config)
    vocoder.requires_grad_(True)
    return VocoderTask(vocoder.train(), _streams(job), judged=stage.judged), None


def put_back_dit(job: Job, weights: Tensors) -> LoadedModel:
    return put_back(job, {DIT + name: tensor for name, tensor in weights.items()})


def put_back_vocoder(job: Job, weights: Tensors) -> LoadedModel:
    names = {name: name.removeprefix("vocoder.") for name in weights}
    return put_back(job, {VOCODER + names[name]: weights[name] for name in weights})


# ---- what several of them share


def _streams(job: Job) -> list[Stream]:
    """Raises ValueError for options that mean nothing here."""
    if job.held or job.weights is not None:
        raise ValueError(
            "crops are drawn evenly over the speakers, and the last 2 % of each are held out: "
            "leave out --held and the weights of --data"
        )
    return streams_of(job.sources, job.kept, workers=job.workers, max_bad_share=job.max_bad_share)


def _levels(model: LoadedModel) -> tuple[int, ...]:
    """Of the checkpoint's own quantiser, as far as it is known."""
    if not (model.folder / ENCODER_FILE).exists():
        return ()
    return load_speech_encoder(model.folder).config.fsq_levels


COURSES: dict[str, Course] = {
    "tokenizer": Course((stages.tokenizer,), prepare_tokenizer, keep_model, write_encoder),
    "reader": Course((stages.reader,), prepare_reader, keep_model, write_reader),
    "dit": Course((stages.dit,), prepare_dit, put_back_dit),
    "vocoder": Course((stages.vocoder,), prepare_vocoder, put_back_vocoder),
    "talker": Course((stages.talker,), prepare_talker, put_back_talker),
    "talker-dpo": Course((stages.talker_dpo,), prepare_preference, put_back_talker),
    "talker-voice": Course((stages.talker_voice,), prepare_talker, put_back_talker),
}
