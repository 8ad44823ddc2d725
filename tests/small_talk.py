"""A small checkpoint of this project's kind, with a speech encoder, and spoken rows for it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import VOICE_IDS, scaled, tiny_config, write_companions

from thinktalk.config import OmniConfig, SpeechTokenizerConfig
from thinktalk.media.encode import write_wav
from thinktalk.model.omni import Omni
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.playroom import speech
from thinktalk.train.voice import save_speech_encoder
from thinktalk.weights import LoadedModel, Voice, save

TOKENIZER = SpeechTokenizerConfig(hidden_size=48, encoder_layers=1, decoder_layers=1)


def small_config() -> OmniConfig:
    """tiny.py's, with our codes and our cond, and less of everything."""
    config = tiny_config("7b")
    thinker, talker, token2wav = (
        config.thinker_config, config.talker_config, config.token2wav_config,
    )  # fmt: skip
    return OmniConfig(
        replace(thinker, text_config=replace(thinker.text_config, num_hidden_layers=2)),
        replace(talker, num_hidden_layers=2),
        replace(
            token2wav,
            dit_config=replace(
                token2wav.dit_config,
                num_embeds=TOKENIZER.num_codes,
                enc_emb_dim=TOKENIZER.cond_dim,
                num_hidden_layers=3,
                look_ahead_layers=(1,),
                look_backward_layers=(0,),
            ),
            bigvgan_config=replace(
                token2wav.bigvgan_config,
                upsample_initial_channel=64,
                upsample_rates=(5, 4, 3, 2, 2),
                upsample_kernel_sizes=(11, 8, 7, 4, 4),
                resblock_kernel_sizes=(3,),
                resblock_dilation_sizes=((1, 3, 5),),
            ),
        ),
    )


def build(folder: Path) -> LoadedModel:
    """Writes the checkpoint: untrained, but of a size that makes every part matter."""
    write_companions(folder)
    omni = Omni(small_config()).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in omni.named_parameters():
            parameter.copy_(scaled(name, torch.randn(parameter.shape, generator=generator)))
    voices = {
        name: Voice(
            token,
            torch.randn(1, TOKENIZER.cond_dim, generator=generator),
            torch.randn(1, 400, 80, generator=generator) - 5.0,
        )
        for name, token in VOICE_IDS.items()
    }
    model = LoadedModel(omni, voices, folder)
    save(model, folder)
    torch.manual_seed(0)
    save_speech_encoder(SpeechTokenizer(TOKENIZER), folder)
    return model


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def coded(question: str, answer: str, codes: Sequence[int], speaker: str) -> dict[str, Any]:
    """A row with a typed question and the codes of the answer."""
    reply = {"role": "assistant", "content": answer, "codes": list(codes), "speaker": speaker}
    return {"messages": [{"role": "user", "content": question}, reply]}


def speak_rows(folder: Path, sentences: Sequence[str], voices: Sequence[str]) -> Path:
    """Real speech: every sentence in every voice, as rows with nothing but the words."""
    rows = []
    for voice in voices:
        for number, text in enumerate(sentences):
            name = f"{voice}_{number}.wav"
            write_wav(folder / name, speech.speak(text, voice=voice), speech.REPLY_HZ)
            rows.append({"text": text, "speech": name, "speaker": voice})
    return write_rows(folder / "spoken.jsonl", rows)
