"""Tiny random checkpoints of both official geometries: every part small, every part active.

"7b": the Talker's heads together are wider than its hidden size, three rotary axes.
"3b": they are as wide as it, and its rotary positions have no width axis.
The ids of the special tokens follow the 256 bytes; codec ids are the official ones.
"""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from thinktalk.config import (
    AudioConfig,
    BigVGANConfig,
    DecoderConfig,
    DiTConfig,
    OmniConfig,
    TalkerConfig,
    ThinkerConfig,
    Token2WavConfig,
    VisionConfig,
)
from thinktalk.model.omni import Omni
from thinktalk.weights import LoadedModel, Voice, save

GEOMETRIES = ("7b", "3b")
SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|AUDIO|> <|audio_bos|> <|audio_eos|> <|vision_bos|>"
    " <|vision_eos|> <|vision_pad|> <|IMAGE|> <|VIDEO|>"
).split()
TOKEN_IDS = {token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)}
VOCAB_SIZE = 320  # the rows behind the tokenizer's hold the Talker's text ids and the voices
VOICE_IDS = {"Chelsie": 292, "Ethan": 290}
IMAGE_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16}

# How Qwen2's tokenizer cuts text before the byte pairs are merged (its tokenizer.json).
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(folder: Path, geometry: str, *, seed: int = 0) -> LoadedModel:
    """Writes a complete checkpoint, tokenizer and preprocessor included, into `folder`."""
    write_companions(folder)
    model = LoadedModel(tiny_omni(geometry, seed=seed), tiny_voices(geometry, seed=seed), folder)
    save(model, folder)
    return model


def tiny_config(geometry: str) -> OmniConfig:
    assert geometry in GEOMETRIES, geometry
    width = 64  # of the Thinker, in which the encoders and the Talker's input agree
    talker = {"hidden_size": 48, "mrope_section": (2, 3, 3)}
    if geometry == "3b":
        talker = {"hidden_size": 64, "mrope_section": (4, 4, 0)}
    return OmniConfig(
        thinker_config=ThinkerConfig(
            audio_config=AudioConfig(
                d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
                output_dim=width,
            ),
            vision_config=VisionConfig(
                depth=4, hidden_size=32, intermediate_size=56, num_heads=2, out_hidden_size=width,
                fullatt_block_indexes=(1, 3),
            ),
            text_config=DecoderConfig(
                vocab_size=VOCAB_SIZE, hidden_size=width, intermediate_size=128,
                num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                mrope_section=(2, 3, 3),
            ),
            audio_token_index=TOKEN_IDS["<|AUDIO|>"],
            image_token_index=TOKEN_IDS["<|IMAGE|>"],
            video_token_index=TOKEN_IDS["<|VIDEO|>"],
            audio_start_token_id=TOKEN_IDS["<|audio_bos|>"],
            audio_end_token_id=TOKEN_IDS["<|audio_eos|>"],
            vision_start_token_id=TOKEN_IDS["<|vision_bos|>"],
            vision_end_token_id=TOKEN_IDS["<|vision_eos|>"],
            pad_token_id=TOKEN_IDS["<|endoftext|>"],
            bos_token_id=TOKEN_IDS["<|im_start|>"],
            eos_token_id=TOKEN_IDS["<|im_end|>"],
        ),
        talker_config=TalkerConfig(
            embedding_size=width, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            tts_text_pad_token_id=280, tts_text_start_token_id=281, tts_text_end_token_id=282,
            **talker,
        ),
        token2wav_config=Token2WavConfig(
            dit_config=DiTConfig(
                hidden_size=64, num_hidden_layers=6, num_attention_heads=4, head_dim=16, emb_dim=32,
                look_ahead_layers=(2,), look_backward_layers=(0, 4), enc_emb_dim=24, enc_dim=16,
                enc_channels=(32, 32, 32, 32, 96), enc_attention_channels=8, enc_se_channels=8,
            ),
            bigvgan_config=BigVGANConfig(upsample_initial_channel=128),
        ),
    )  # fmt: skip


def tiny_omni(geometry: str, *, seed: int = 0) -> Omni:
    """Random weights of a size that makes every branch matter (default ones are nearly dead)."""
    omni = Omni(tiny_config(geometry)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in omni.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(scaled(name, noise))
    return omni


def scaled(name: str, noise: Tensor) -> Tensor:
    """Normal noise of a parameter's shape -> its random value."""
    if noise.dim() == 1:  # norms near one, biases near zero, the DiT's mels near -4 like real ones
        is_scale = name.endswith("weight")
        centre = 1.0 if is_scale else -4.0 if name.endswith("dit_model.proj_out.bias") else 0.0
        return centre + 0.1 * noise
    if "embed_tokens" in name or "codec_embed" in name:
        return noise
    fan_in = 2 * noise.shape[0] if ".ups." in name else noise[0].numel()
    gain = 0.4 if ".resblocks." in name else 0.25 if "conv_post" in name else 1.6
    if ".ups." in name or "conv_pre" in name:
        gain = 0.9
    return gain * noise / fan_in**0.5


def tiny_voices(geometry: str, *, seed: int = 0) -> dict[str, Voice]:
    config = tiny_config(geometry).token2wav_config.dit_config
    generator = torch.Generator().manual_seed(seed + 1)
    voices = {}
    for name, bos_token in VOICE_IDS.items():
        cond = torch.randn(1, config.enc_emb_dim, generator=generator)
        ref_mel = torch.randn(1, 400, config.mel_dim, generator=generator) - 4.0
        voices[name] = Voice(bos_token, cond, ref_mel)
    return voices


def write_companions(folder: Path) -> None:
    """Tokenizer and preprocessor files with the official names and keys."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "model_max_length": 32768,
        "extra_special_tokens": {
            "audio_token": "<|AUDIO|>",
            "image_token": "<|IMAGE|>",
            "video_token": "<|VIDEO|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
        },
    }
    preprocessor_config = {
        "processor_class": "Qwen2_5OmniProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 128, "n_fft": 400, "hop_length": 160, "sampling_rate": 16000,
        "chunk_length": 300, "n_samples": 4800000, "nb_max_frames": 30000, "padding_value": 0.0,
        "padding_side": "right", "return_attention_mask": True, "dither": 0.0,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        **IMAGE_PIXELS,
    }  # fmt: skip
    for name, values in (
        ("tokenizer_config.json", tokenizer_config),
        ("preprocessor_config.json", preprocessor_config),
    ):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def byte_tokenizer() -> Tokenizer:
    """One token per byte and the special tokens, cut and decoded like Qwen2's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    assert tokenizer.token_to_id("<|VIDEO|>") == TOKEN_IDS["<|VIDEO|>"]
    return tokenizer
