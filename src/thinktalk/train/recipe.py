"""Stages in, a trained spark out: which task each stage runs, on what, and in which order.

A run folder holds one folder per stage (state.pt, log.jsonl); the data folder holds the packed
corpora of the playroom. Every stage resumes where its last leg stopped.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.bigvgan import BigVGAN
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.train import stages
from thinktalk.train.speech import TokenizerTask, VocoderTask
from thinktalk.train.streams import open_streams
from thinktalk.train.trainer import Stage, Task, best_weights, train


def _tokenizer(data: Path, run: Path) -> Task:
    return TokenizerTask(SpeechTokenizer(SpeechTokenizerConfig()), open_streams(data / REPLIES))


def _vocoder(data: Path, run: Path) -> Task:
    config = stages.spark_config().token2wav_config.bigvgan_config
    return VocoderTask(BigVGAN(config), open_streams(data / REPLIES))


REPLIES = "replies_train"

RECIPE: dict[str, tuple[Callable[[], Stage], Callable[[Path, Path], Task]]] = {
    "tokenizer": (stages.tokenizer, _tokenizer),
    "vocoder": (stages.vocoder, _vocoder),
}


def run_stage(
    name: str,
    *,
    data: Path,
    run: Path,
    device: str = "cpu",
    minutes: float = math.inf,
    steps: int | None = None,
) -> bool:
    """Trains one stage of spark for at most `minutes`; True when the stage is done."""
    if name not in RECIPE:
        raise ValueError(f"unknown stage {name!r}: choose one of {', '.join(RECIPE)}")
    make_stage, make_task = RECIPE[name]
    stage = make_stage()
    if steps is not None:
        stage = replace(stage, steps=steps)
    torch.manual_seed(stage.seed)
    return train(stage, make_task(data, run), run / name, device=device, minutes=minutes)


def trained(module: nn.Module, folder: Path) -> nn.Module:
    """The module with the weights of a finished stage, frozen."""
    module.load_state_dict(best_weights(folder))
    return module.eval().requires_grad_(False)
