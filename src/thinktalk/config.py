"""config.json -> frozen dataclasses, one per network, and back.

Reads the official Qwen2.5-Omni spelling (`dim`, `rope_scaling`, ...) and what transformers 4.57 and
5.x write (`hidden_size`, `rope_parameters`, ...). Writes the spelling that both of those load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

Json = Mapping[str, Any]
Solver = Literal["euler", "midpoint", "rk4"]


class _Section:
    """Shared reading and writing of one JSON object; subclasses are frozen dataclasses."""

    MODEL_TYPE: ClassVar[str]
    ALIASES: ClassVar[dict[str, str]] = {}  # spelling in the file -> field name
    FIXED: ClassVar[dict[str, Any]] = {}  # keys of the file with the only value that is implemented
    IGNORED: ClassVar[frozenset[str]] = frozenset()  # keys of the file without effect on inference

    @classmethod
    def from_dict(cls, section: Json) -> Self:
        """Raises ValueError naming the key for anything unknown or not implemented."""
        return cls(**cls._values(section))

    @classmethod
    def _values(cls, section: Json) -> dict[str, Any]:
        own = {f.name: f for f in fields(cls)}  # pyright: ignore[reportArgumentType]
        values: dict[str, Any] = {}
        for key, value in section.items():
            name = cls.ALIASES.get(key, key)
            if name in own:
                part = own[name].default_factory
                if isinstance(part, type) and issubclass(part, _Section):
                    values[name] = part.from_dict(value or {})
                elif value is not None:
                    values[name] = _freeze(value)
            elif key in cls.FIXED:
                if value is not None and _freeze(value) != cls.FIXED[key]:
                    raise ValueError(
                        f"config.json: {cls.MODEL_TYPE}.{key} is {value!r}, but only "
                        f"{cls.FIXED[key]!r} is implemented"
                    )
            elif key in ("rope_scaling", "rope_parameters"):
                values |= {k: v for k, v in _rope(cls.MODEL_TYPE, value).items() if k in own}
            elif key not in cls.IGNORED and key not in _GENERIC_KEYS:
                raise ValueError(
                    f"config.json: unknown key {key!r} in {cls.MODEL_TYPE}; remove it if it does "
                    "not change the network"
                )
        return values

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, in the spelling that transformers 4.57 and 5.x both read."""
        values: dict[str, Any] = {"model_type": self.MODEL_TYPE}
        for f in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, f.name)
            if isinstance(value, _Section):
                values[f.name] = value.to_dict()
            elif f.name == "mrope_section":
                rope = {"type": "default", "rope_type": "default", "mrope_section": list(value)}
                values["rope_scaling"] = rope
            else:
                values[f.name] = _thaw(value)
        return values


@dataclass(frozen=True)
class AudioConfig(_Section):
    """The Whisper-like encoder of 2 s windows."""

    MODEL_TYPE = "qwen2_5_omni_audio_encoder"
    FIXED = {"activation_function": "gelu", "scale_embedding": False}
    IGNORED = frozenset({"encoder_layerdrop", "num_hidden_layers", "activation_dropout"})

    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    output_dim: int = 3584
    num_mel_bins: int = 128
    max_source_positions: int = 1500
    n_window: int = 100  # half a window: positions after the stride-2 convolution

    @property
    def window_frames(self) -> int:
        """Mel frames (100/s) in one full window."""
        return 2 * self.n_window


@dataclass(frozen=True)
class VisionConfig(_Section):
    """The vision transformer with windowed attention and a 2x2 merger."""

    MODEL_TYPE = "qwen2_5_omni_vision_encoder"
    FIXED = {"hidden_act": "silu"}
    IGNORED = frozenset({"embed_dim", "in_chans", "spatial_patch_size", "tokens_per_second"})

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112  # pixels

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch: channels x frames x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class DecoderConfig(_Section):
    """A Qwen2 decoder; the Thinker's text model is one, the Talker holds another."""

    MODEL_TYPE = "qwen2_5_omni_text"
    FIXED = {"hidden_act": "silu", "use_sliding_window": False, "tie_word_embeddings": False}
    IGNORED = frozenset({"sliding_window", "max_window_layers", "layer_types"})

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)  # frequencies that follow t, h, w

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | self.FIXED

    def __post_init__(self) -> None:
        if 2 * sum(self.mrope_section) != self.head_size:
            raise ValueError(
                f"config.json: mrope_section {list(self.mrope_section)} of {self.MODEL_TYPE} must "
                f"add up to half of the head size {self.head_size}"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def embedding_dim(self) -> int:
        """Width of the rows of the embedding table."""
        return self.hidden_size


@dataclass(frozen=True)
class ThinkerConfig(_Section):
    """Encoders, text decoder and the token ids that mark media in the text."""

    MODEL_TYPE = "qwen2_5_omni_thinker"
    ALIASES = {
        "audio_token_id": "audio_token_index",
        "image_token_id": "image_token_index",
        "video_token_id": "video_token_index",
    }
    FIXED = {"tie_word_embeddings": False}
    IGNORED = frozenset({"ignore_index", "user_token_id", "vision_token_id"})

    audio_config: AudioConfig = field(default_factory=AudioConfig)
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    text_config: DecoderConfig = field(default_factory=DecoderConfig)
    audio_token_index: int = 151646
    image_token_index: int = 151655
    video_token_index: int = 151656
    audio_start_token_id: int = 151647
    audio_end_token_id: int = 151648
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    pad_token_id: int = 151643
    bos_token_id: int = 151644
    eos_token_id: int = 151645
    position_id_per_seconds: int = 25
    seconds_per_chunk: int = 2

    @property
    def media_token_ids(self) -> tuple[int, int, int]:
        """Ids of the placeholders whose embedding rows the encoders fill: audio, image, video."""
        return self.audio_token_index, self.image_token_index, self.video_token_index


# The Talker's section of the file repeats these keys of the Thinker's.
_COPIED_TO_TALKER = tuple(
    """
    audio_token_index image_token_index video_token_index audio_start_token_id audio_end_token_id
    vision_start_token_id vision_end_token_id position_id_per_seconds seconds_per_chunk
    """.split()
)


@dataclass(frozen=True)
class TalkerConfig(DecoderConfig):
    """The decoder that turns Thinker states and text into codec ids, and its special ids."""

    MODEL_TYPE = "qwen2_5_omni_talker"
    IGNORED = DecoderConfig.IGNORED | {
        *_COPIED_TO_TALKER, *ThinkerConfig.ALIASES, "spatial_merge_size"
    }  # fmt: skip

    vocab_size: int = 8448
    hidden_size: int = 896
    num_hidden_layers: int = 24
    num_attention_heads: int = 12
    head_dim: int = 128
    embedding_size: int = 3584  # width of the Thinker's states and of the codec embedding
    tts_text_start_token_id: int = 151860  # in the file only: the voice's token takes its place
    tts_text_end_token_id: int = 151861
    tts_text_pad_token_id: int = 151859
    tts_codec_start_token_id: int = 8293
    tts_codec_end_token_id: int = 8294
    tts_codec_pad_token_id: int = 8292
    tts_codec_mask_token_id: int = 8296

    @property
    def head_size(self) -> int:
        return self.head_dim

    @property
    def embedding_dim(self) -> int:
        return self.embedding_size

    @property
    def stop_ids(self) -> tuple[int, int]:
        """Codec ids that end the speech (the reference stops at both)."""
        return self.tts_codec_pad_token_id, self.tts_codec_end_token_id


@dataclass(frozen=True)
class DiTConfig(_Section):
    """The flow-matching transformer from codec ids to mel, and its speaker encoder."""

    MODEL_TYPE = "qwen2_5_omni_dit"
    ALIASES = {"dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
    IGNORED = frozenset({"dropout", "enc_global_context", "enc_lin_neurons"})

    hidden_size: int = 1024
    num_hidden_layers: int = 22
    num_attention_heads: int = 16
    head_dim: int = 64
    ff_mult: int = 2
    emb_dim: int = 512
    num_embeds: int = 8193  # the table has one row more
    repeats: int = 2  # mel frames per codec id
    mel_dim: int = 80
    block_size: int = 24  # mel frames
    look_ahead_layers: tuple[int, ...] = (10,)
    look_backward_layers: tuple[int, ...] = (0, 20)
    max_position_embeddings: int = 32768
    rope_theta: float = 1e4
    enc_emb_dim: int = 192  # width of the voice's `cond`
    enc_dim: int = 128
    enc_channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 64
    enc_res2net_scale: int = 2
    enc_se_channels: int = 64
    solver: Solver = "euler"  # of the windowed synthesis; the reference ignores this key

    @property
    def codes_per_block(self) -> int:
        return self.block_size // self.repeats


@dataclass(frozen=True)
class BigVGANConfig(_Section):
    """The vocoder from mel to samples."""

    MODEL_TYPE = "qwen2_5_omni_bigvgan"
    FIXED = {"use_bias_at_final": False}

    mel_dim: int = 80
    upsample_initial_channel: int = 1536
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    upsample_rates: tuple[int, ...] = (5, 3, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 7, 4, 4, 4, 4)

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class Token2WavConfig(_Section):
    MODEL_TYPE = "qwen2_5_omni_token2wav"

    dit_config: DiTConfig = field(default_factory=DiTConfig)
    bigvgan_config: BigVGANConfig = field(default_factory=BigVGANConfig)


@dataclass(frozen=True)
class OmniConfig(_Section):
    """A whole checkpoint's config.json."""

    MODEL_TYPE = "qwen2_5_omni"
    IGNORED = frozenset({"enable_audio_output", "enable_talker", "quantization_config"})

    thinker_config: ThinkerConfig = field(default_factory=ThinkerConfig)
    talker_config: TalkerConfig = field(default_factory=TalkerConfig)
    token2wav_config: Token2WavConfig = field(default_factory=Token2WavConfig)

    @classmethod
    def from_dict(cls, section: Json) -> Self:
        if section.get("model_type", cls.MODEL_TYPE) != cls.MODEL_TYPE:
            raise ValueError(
                f"config.json: model_type is {section['model_type']!r}; thinktalk runs "
                f"{cls.MODEL_TYPE!r} checkpoints only"
            )
        return super().from_dict(section)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        # the Talker of the reference keeps its own copy of the Thinker's marker ids
        thinker = values["thinker_config"]
        copied = {key: thinker[key] for key in _COPIED_TO_TALKER}
        copied["spatial_merge_size"] = thinker["vision_config"]["spatial_merge_size"]
        values["talker_config"] |= copied
        return values | {
            "architectures": ["Qwen2_5OmniForConditionalGeneration"],
            "enable_audio_output": True,
        }


@dataclass(frozen=True)
class SpeechTokenizerConfig(_Section):
    """Mel to codec ids and back: ours, the official encoder was never published."""

    MODEL_TYPE = "thinktalk_speech_tokenizer"

    mel_dim: int = 80
    hidden_size: int = 192
    encoder_layers: int = 4
    decoder_layers: int = 4
    kernel_size: int = 7
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    frames_per_code: int = 2
    cond_dim: int = 160  # width of the voice's `cond`

    def __post_init__(self) -> None:
        if min(self.fsq_levels) < 3:
            raise ValueError(f"fsq_levels is {list(self.fsq_levels)}; use 3 or more of each")
        if self.frames_per_code % 2:
            raise ValueError(f"frames_per_code is {self.frames_per_code}; use an even number")

    @property
    def num_codes(self) -> int:
        return math.prod(self.fsq_levels)


# What transformers writes into every section whatever the network: defaults of generation, labels,
# bookkeeping and training. None of it changes the forward computation.
_GENERIC_KEYS = frozenset(
    """
    _attn_implementation_autoset _name_or_path add_cross_attention architectures attention_dropout
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id id2label init_std initializer_range
    is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache
    """.split()
)


def _rope(model_type: str, rope: Json | None) -> dict[str, Any]:
    """`rope_scaling` (4.x) or `rope_parameters` (5.x) -> rope_theta and mrope_section."""
    if rope is None:
        return {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope", "axial"):
        raise ValueError(f"config.json: rope type {kind!r} in {model_type} is not implemented")
    return {k: _freeze(rope[k]) for k in ("rope_theta", "mrope_section") if k in rope}


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    return [_thaw(v) for v in value] if isinstance(value, tuple) else value
