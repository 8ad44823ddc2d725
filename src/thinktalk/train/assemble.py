"""Finished stages in, a complete folder in the official layout out."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from thinktalk.media.chat import DEFAULT_SYSTEM_PROMPT, SPEECH_SYSTEM_PROMPT
from thinktalk.model.omni import Omni
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.playroom import talk
from thinktalk.train import spark
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.speaking import spread_unused
from thinktalk.train.speech import VOICE_FRAMES
from thinktalk.train.streams import Stream
from thinktalk.train.vocabulary import train_bpe, write_tokenizer
from thinktalk.train.voice import ENCODER_FILE, save_speech_encoder, voice_print
from thinktalk.weights import LoadedModel, Voice, load, save, write_json

NUM_VOCABULARY_CASES = 20_000
MIN_PIXELS, MAX_PIXELS = 56 * 56, 224 * 224  # of an image
VIDEO_MAX_PIXELS, VIDEO_FPS = 112 * 112, 4.0  # nothing small is shown in films, but quick things

# The official template, for tools that render chats themselves; ours is media/chat.py.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|vision_bos|><|IMAGE|><|vision_eos|>' }}"
    "{%- elif part['type'] == 'audio' %}{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' }}"
    "{%- elif part['type'] == 'video' %}{{- '<|vision_bos|><|VIDEO|><|vision_eos|>' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_companions(folder: Path) -> None:
    """Tokenizer, preprocessor and chat template files of spark; deterministic."""
    tokenizer = train_bpe(_texts(), num_tokens=spark.NUM_TEXT_TOKENS, special=spark.SPECIAL_IDS)
    write_tokenizer(tokenizer, folder, special=spark.SPECIAL_IDS)
    write_json(folder / "preprocessor_config.json", _preprocessor())
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(
        folder / "generation_config.json",
        {
            "eos_token_id": spark.SPECIAL_IDS["<|im_end|>"],
            "pad_token_id": spark.SPECIAL_IDS["<|endoftext|>"],
            # how the live engine asks for what was said
            "transcription": {"system": "transcribe.", "request": ""},
        },
    )


def assemble(run: Path, streams: list[Stream], out: Path) -> None:
    """Writes the model that all stages in `run` trained to `out`, in float32 so that no lesson
    begins with what was rounded.

    run/text holds the files of `write_companions`. Raises ValueError for a stage that never ran.
    """
    omni = Omni(spark.spark_config())
    adopt(omni.thinker, run / "seeing", prefix="thinker.")  # with the rest as `thinker` left it
    adopt(omni.talker, run / "talker", prefix="talker.")
    spread_unused(omni.talker, num_codes=omni.config.token2wav_config.dit_config.num_embeds)
    adopt(omni.token2wav.code2wav_dit_model, run / "dit")
    adopt(omni.token2wav.code2wav_bigvgan_model, run / "vocoder")
    tokenizer = SpeechTokenizer(spark.SPEECH_TOKENIZER)
    adopt(tokenizer, run / "tokenizer", prefix="tokenizer.")
    out.mkdir(parents=True, exist_ok=True)
    save_speech_encoder(tokenizer, out)
    save(LoadedModel(omni.eval(), voices(streams), run / "text"), out)


def finish(model: Path, out: Path) -> None:
    """Writes a checkpoint as spark is shipped: in bfloat16, with its speech encoder."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model / ENCODER_FILE, out / ENCODER_FILE)
    save(load(model), out, dtype=torch.bfloat16, token2wav_dtype=torch.bfloat16)


def voices(streams: list[Stream]) -> dict[str, Voice]:
    """A voice for every stream, Chelsie first as in the official file."""
    found = {}
    for stream in sorted(streams, key=lambda s: s.voice):
        print_ = voice_print(np.asarray(stream.mel[:VOICE_FRAMES], np.float32))
        found[stream.voice] = Voice(
            spark.VOICE_TOKENS[stream.voice],
            torch.from_numpy(print_.cond),
            torch.from_numpy(print_.ref_mel),
        )
    return found


def adopt(module: nn.Module, folder: Path, *, prefix: str = "") -> None:
    """Loads the best weights of a stage into the module; training-only heads stay behind."""
    weights: dict[str, Tensor] = {
        name.removeprefix(prefix): value
        for name, value in best_weights(folder).items()
        if name.startswith(prefix)
    }
    module.load_state_dict(weights)


def _texts() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for _ in range(NUM_VOCABULARY_CASES):
        case = talk.sample(rng, split="train")
        yield from (text for _, text in case.turns)
        yield case.answer
        yield from (case.heard or "", case.system or "")
    for fixed in (SPEECH_SYSTEM_PROMPT, DEFAULT_SYSTEM_PROMPT, "system\n", "user\n", "assistant\n"):
        yield from [fixed] * 200


def _preprocessor() -> dict:
    return {
        "chunk_length": 300,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128,
        "hop_length": 160,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": MAX_PIXELS,
        "merge_size": 2,
        "min_pixels": MIN_PIXELS,
        "n_fft": 400,
        "n_samples": 4800000,
        "nb_max_frames": 30000,
        "padding_side": "right",
        "padding_value": 0.0,
        "patch_size": 14,
        "processor_class": "Qwen2_5OmniProcessor",
        "return_attention_mask": True,
        "sampling_rate": 16000,
        "temporal_patch_size": 2,
        "video_fps": VIDEO_FPS,
        "video_max_pixels": VIDEO_MAX_PIXELS,
        "video_min_pixels": MIN_PIXELS,
    }
