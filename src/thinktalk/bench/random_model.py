"""The name of a size in, a network of that size with random weights out.

For speed the values of weights do not matter, only that they neither explode nor die out. They are
made straight in the wanted dtype on the wanted device, so the peak of memory is the model itself.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from torch import nn

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
from thinktalk.media.image import Processor
from thinktalk.media.tokenizer import PIECES
from thinktalk.model.dit import DiT
from thinktalk.model.layers import rotary_frequencies
from thinktalk.model.omni import Omni, without_storage
from thinktalk.weights import (
    CONFIG,
    VOICES,
    LoadedModel,
    Voice,
    default_dtype,
    find,
    read_json,
    write_json,
)

VOICE_FRAMES = 400  # mel frames of a voice's recording, as the official ones have
VOICE_TOKEN = 1  # row of the embedding that opens the speech; any will do
SYSTEM = "You are Qwen, a virtual human who hears and speaks."  # one token a letter here


def random_model(
    size: str,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    dit_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    parts: Callable[[Omni], list[nn.Module]] | None = None,
) -> LoadedModel:
    """folder: where config, tokenizer and voice of the model are put, but no weights. dtype: of
    Thinker and Talker, by default as the checkpoint of that size would be loaded. parts: which
    modules get weights (default: all); the others stay without storage. Raises ValueError for a
    size that is not in SIZES."""
    config = config_of(size)
    omni = without_storage(config).eval()
    dtype = dtype or default_dtype(omni, {"thinker.lm_head.weight": "BF16"}, device=device)
    omni.thinker.to(dtype)
    omni.talker.to(dtype)
    omni.token2wav.code2wav_dit_model.to(dit_dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for part in [omni] if parts is None else parts(omni):
        fill(part, device=device, generator=generator)
    dit = config.token2wav_config.dit_config
    mel = torch.randn(1, VOICE_FRAMES, dit.mel_dim) - 4
    voices = {"Chelsie": Voice(VOICE_TOKEN, torch.randn(1, dit.enc_emb_dim), mel)}
    write_json(folder / CONFIG, config.to_dict())
    torch.save({name: vars(voice) for name, voice in voices.items()}, folder / VOICES)
    write_tokenizer(folder, config.thinker_config)
    return LoadedModel(omni, voices, folder)


@torch.no_grad()
def fill(module: nn.Module, *, device: torch.device, generator: torch.Generator) -> None:
    """Gives a module without storage random weights, and the buffers that follow from its config.

    Scales are one, biases zero; matrices keep the size of what goes through them.
    """
    module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(name.endswith("weight"))
        else:
            fan_in = 1 if "embed" in name else parameter[0].numel()
            parameter.normal_(std=0.5 * fan_in**-0.5, generator=generator)
    for part in module.modules():
        if isinstance(part, DiT):
            config = part.config
            part.rotary_embed.inv_freq.copy_(
                rotary_frequencies(config.head_dim, theta=config.rope_theta, device=device)
            )
        if reset := getattr(part, "reset_buffers", None):
            reset()


# ---- sizes


def config_of(size: str) -> OmniConfig:
    if size not in SIZES:
        raise ValueError(f"no size is called {size!r}; choose one of {', '.join(SIZES)}")
    return SIZES[size]()


def of_7b() -> OmniConfig:
    """The defaults of the configuration are those of the official 7B model."""
    return OmniConfig()


def of_3b() -> OmniConfig:
    width = 2048
    text = DecoderConfig(
        vocab_size=151936, hidden_size=width, intermediate_size=11008, num_hidden_layers=36,
        num_attention_heads=16, num_key_value_heads=2,
    )  # fmt: skip
    talker = TalkerConfig(
        embedding_size=width, intermediate_size=4864, num_attention_heads=14,
        num_key_value_heads=2, head_dim=64, mrope_section=(16, 16, 0),
    )  # fmt: skip
    thinker = ThinkerConfig(
        audio_config=AudioConfig(output_dim=width),
        vision_config=VisionConfig(out_hidden_size=width),
        text_config=text,
    )
    return OmniConfig(thinker, talker)


def of_spark() -> OmniConfig:
    return OmniConfig.from_dict(read_json(find("spark") / CONFIG))


def of_tiny() -> OmniConfig:
    """For trials: seconds on any machine, and no number of it means anything."""
    width, heads = 64, {"num_attention_heads": 4, "num_key_value_heads": 2}
    decoder = {"intermediate_size": 128, "num_hidden_layers": 2, "mrope_section": (2, 3, 3)}
    decoder |= heads | {"max_position_embeddings": 8192}
    ids = ThinkerConfig(
        audio_token_index=1003, image_token_index=1009, video_token_index=1010,
        audio_start_token_id=1004, audio_end_token_id=1005, vision_start_token_id=1006,
        vision_end_token_id=1007, pad_token_id=1000, bos_token_id=1001, eos_token_id=1002,
    )  # fmt: skip
    thinker = replace(
        ids,
        audio_config=AudioConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
            output_dim=width,
        ),
        vision_config=VisionConfig(
            depth=2, hidden_size=32, intermediate_size=56, num_heads=2, out_hidden_size=width,
            fullatt_block_indexes=(1,),
        ),
        text_config=DecoderConfig(vocab_size=1024, hidden_size=width, **decoder),
    )  # fmt: skip
    talker = TalkerConfig(
        embedding_size=width, hidden_size=width, head_dim=16, tts_text_pad_token_id=1011,
        tts_text_start_token_id=1012, tts_text_end_token_id=1013, **decoder,
    )  # fmt: skip
    dit = DiTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=16, emb_dim=32,
        look_ahead_layers=(1,), look_backward_layers=(0, 2), enc_emb_dim=24, enc_dim=16,
        enc_channels=(32, 32, 32, 32, 96), enc_attention_channels=8, enc_se_channels=8,
    )  # fmt: skip
    vocoder = BigVGANConfig(upsample_initial_channel=64)
    return OmniConfig(thinker, talker, Token2WavConfig(dit, vocoder))


SIZES = {"7B": of_7b, "3B": of_3b, "spark": of_spark, "tiny": of_tiny}


# ---- a tokenizer that has a text for every id


def write_tokenizer(folder: Path, config: ThinkerConfig) -> None:
    """One token a byte, the special ones with the ids of the config, and a word for any other."""
    special = {
        "<|endoftext|>": config.pad_token_id,
        "<|im_start|>": config.bos_token_id,
        "<|im_end|>": config.eos_token_id,
        "<|AUDIO|>": config.audio_token_index,
        "<|audio_bos|>": config.audio_start_token_id,
        "<|audio_eos|>": config.audio_end_token_id,
        "<|vision_bos|>": config.vision_start_token_id,
        "<|vision_eos|>": config.vision_end_token_id,
        "<|IMAGE|>": config.image_token_index,
        "<|VIDEO|>": config.video_token_index,
    }
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | special
    taken = set(vocabulary.values())
    others = (i for i in range(config.text_config.vocab_size) if i not in taken)
    vocabulary |= {f"Ġw{i}": i for i in others}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = json.dumps({"tokenizer_class": "Qwen2TokenizerFast"})
    (folder / "tokenizer_config.json").write_text(tokenizer_config + "\n")
    write_json(folder / "preprocessor_config.json", Processor().to_dict())
