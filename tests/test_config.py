"""config.json of every author is read, ours is read by all, and what we cannot do is named."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from test_omni import official_config
from tiny import GEOMETRIES, tiny_config

from thinktalk.config import OmniConfig, SpeechTokenizerConfig

Json = dict[str, Any]

# what old transformers wrote into sections, whatever the network (4.50); a part of it
GENERIC: Json = {
    "_attn_implementation_autoset": True, "_name_or_path": "", "add_cross_attention": False,
    "architectures": None, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "id2label": {"0": "LABEL_0"}, "is_decoder": False, "max_length": 20, "pruned_heads": {},
    "return_dict": True, "temperature": 1.0, "tie_word_embeddings": True, "top_k": 50,
    "top_p": 1.0, "torch_dtype": None, "torchscript": False, "use_bfloat16": False,
}  # fmt: skip
ROPE: Json = {
    "rope_theta": 1000000.0,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
}
MEDIA_IDS: Json = {
    "audio_token_index": 151646, "audio_start_token_id": 151647, "audio_end_token_id": 151648,
    "image_token_index": 151655, "video_token_index": 151656, "vision_start_token_id": 151652,
    "vision_end_token_id": 151653, "position_id_per_seconds": 25, "seconds_per_chunk": 2,
}  # fmt: skip
OFFICIAL_7B: Json = {
    "architectures": ["Qwen2_5OmniModel"], "enable_audio_output": True, "enable_talker": True,
    "model_type": "qwen2_5_omni", "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "thinker_config": {
        "_name_or_path": "Qwen2.5-Omni-7B/thinker", "model_type": "qwen2_5_omni_thinker",
        "init_std": 0.02, "ignore_index": -100, "user_token_id": 872, "vision_token_id": 151654,
        "bos_token_id": 151644, "eos_token_id": 151645, "pad_token_id": 151643, **MEDIA_IDS,
        "audio_config": {
            **GENERIC, "model_type": "qwen2_5_omni_audio_encoder", "num_mel_bins": 128,
            "d_model": 1280, "encoder_layers": 32, "num_hidden_layers": 32,
            "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layerdrop": 0.0,
            "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
            "activation_function": "gelu", "scale_embedding": False, "n_window": 100,
            "max_source_positions": 1500, "output_dim": 3584, "init_std": 0.02,
        },
        "vision_config": {
            **GENERIC, "model_type": "qwen2_5_omni_vision_encoder", "depth": 32,
            "hidden_size": 1280, "embed_dim": 1280, "num_heads": 16, "hidden_act": "silu",
            "intermediate_size": 3420, "in_channels": 3, "in_chans": 3, "patch_size": 14,
            "spatial_patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "tokens_per_second": 25, "window_size": 112, "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "text_config": {
            "model_type": "qwen2_5_omni_text", "hidden_act": "silu", "hidden_size": 3584,
            "intermediate_size": 18944, "vocab_size": 152064, "num_attention_heads": 28,
            "num_hidden_layers": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
            "max_window_layers": 28, "rms_norm_eps": 1e-6, "use_cache": True, **ROPE,
            "use_sliding_window": False, "sliding_window": 32768, "attention_dropout": 0.0,
            "tie_word_embeddings": False,
        },
    },
    "talker_config": {
        "_name_or_path": "Qwen2.5-Omni-7B/talker", "model_type": "qwen2_5_omni_talker",
        "embedding_size": 3584, "hidden_size": 896, "intermediate_size": 18944, "head_dim": 128,
        "num_attention_heads": 12, "num_hidden_layers": 24, "num_key_value_heads": 4,
        "vocab_size": 8448, "hidden_act": "silu", "rms_norm_eps": 1e-6, "initializer_range": 0.02,
        "max_position_embeddings": 32768, "max_window_layers": 28, "sliding_window": 32768,
        "use_sliding_window": False, "use_cache": True, "spatial_merge_size": 2, **ROPE,
        "tts_codec_end_token_id": 8294, "tts_codec_mask_token_id": 8296,
        "tts_codec_pad_token_id": 8292, "tts_codec_start_token_id": 8293,
        "tts_text_end_token_id": 151861, "tts_text_pad_token_id": 151859,
        "tts_text_start_token_id": 151860, **MEDIA_IDS,
    },
    "token2wav_config": {
        "_attn_implementation_autoset": True, "model_type": "qwen2_5_omni_token2wav",
        "dit_config": {
            **GENERIC, "model_type": "qwen2_5_omni_dit", "dim": 1024, "depth": 22, "heads": 16,
            "head_dim": 64, "ff_mult": 2, "emb_dim": 512, "num_embeds": 8193, "mel_dim": 80,
            "repeats": 2, "dropout": 0.1, "enc_dim": 128, "enc_emb_dim": 192,
            "enc_channels": [256, 256, 256, 256, 768], "enc_kernel_sizes": [5, 3, 3, 3, 1],
            "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 64,
            "enc_res2net_scale": 2, "enc_se_channels": 64, "enc_global_context": True,
            "enc_lin_neurons": 192, "torch_dtype": "float32",
        },
        "bigvgan_config": {
            **GENERIC, "model_type": "qwen2_5_omni_bigvgan", "mel_dim": 80,
            "upsample_initial_channel": 1536, "upsample_rates": [5, 3, 2, 2, 2, 2],
            "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4], "resblock_kernel_sizes": [3, 7, 11],
            "resblock_dilation_sizes": [[1, 3, 5]] * 3, "use_bias_at_final": False,
        },
    },
}  # fmt: skip
SECTIONS = {
    "qwen2_5_omni": "",
    "qwen2_5_omni_thinker": "thinker_config",
    "qwen2_5_omni_audio_encoder": "thinker_config.audio_config",
    "qwen2_5_omni_vision_encoder": "thinker_config.vision_config",
    "qwen2_5_omni_text": "thinker_config.text_config",
    "qwen2_5_omni_talker": "talker_config",
    "qwen2_5_omni_token2wav": "token2wav_config",
    "qwen2_5_omni_dit": "token2wav_config.dit_config",
    "qwen2_5_omni_bigvgan": "token2wav_config.bigvgan_config",
}


def section(config: Json, path: str) -> Json:
    for name in filter(None, path.split(".")):
        config = config[name]
    return config


def changed(path: str, **values: Any) -> Json:
    config = copy.deepcopy(OFFICIAL_7B)
    section(config, path).update(values)
    return config


def five(config: Json) -> Json:
    """The spelling of transformers 5: rope_parameters, long names, layer types, dtype."""
    config = copy.deepcopy(config)
    for path in ("thinker_config.text_config", "talker_config"):
        decoder = section(config, path)
        rope = decoder.pop("rope_scaling") | {"rope_theta": decoder.pop("rope_theta")}
        decoder["rope_parameters"] = rope
        decoder["layer_types"] = ["full_attention"] * decoder["num_hidden_layers"]
        decoder["sliding_window"] = None
    vision = section(config, "thinker_config.vision_config")
    vision["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
    dit = section(config, "token2wav_config.dit_config")
    for old, new in (("dim", "hidden_size"), ("depth", "num_hidden_layers")):
        dit[new] = dit.pop(old)
    dit["num_attention_heads"] = dit.pop("heads")
    dit["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
    dit.setdefault("block_size", 24)  # the official file leaves it out
    for path in ("thinker_config", "talker_config"):
        for medium in ("audio", "image", "video"):
            ids = section(config, path)
            ids[f"{medium}_token_id"] = ids.pop(f"{medium}_token_index")
    config["dtype"] = config.pop("torch_dtype", None)
    return config


# ---- reading


@pytest.mark.parametrize("spelling", [dict, five])
def test_official(spelling: Callable[[Json], Json]) -> None:
    """All values of the 7B model, which are our defaults."""
    assert OmniConfig.from_dict(spelling(OFFICIAL_7B)) == OmniConfig()


@pytest.mark.parametrize("spelling", [dict, five])
def test_every_value_is_read(spelling: Callable[[Json], Json]) -> None:
    """Other values than the defaults, in every field."""
    config = tiny_config("3b")
    assert OmniConfig.from_dict(spelling(renamed(config.to_dict()))) == config


def renamed(config: Json) -> Json:
    """Ours with the DiT as officially spelt."""
    dit = section(config, "token2wav_config.dit_config")
    dit["dim"], dit["depth"] = dit.pop("hidden_size"), dit.pop("num_hidden_layers")
    dit["heads"] = dit.pop("num_attention_heads")
    return config


def test_facts_that_follow() -> None:
    config = OmniConfig.from_dict(OFFICIAL_7B)
    dit, bigvgan = config.token2wav_config.dit_config, config.token2wav_config.bigvgan_config
    assert dit.codes_per_block == 12 and bigvgan.samples_per_frame == 240
    thinker = config.thinker_config
    assert thinker.media_token_ids == (151646, 151655, 151656)
    assert thinker.audio_config.window_frames == 200 and thinker.vision_config.patch_dim == 1176
    assert config.talker_config.stop_ids == (8292, 8294)
    assert (thinker.text_config.head_size, config.talker_config.head_size) == (128, 128)


def test_nothing_means_the_default() -> None:
    nothing = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"))
    assert OmniConfig.from_dict(changed("thinker_config", **nothing)) == OmniConfig()


# ---- writing


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("make", [tiny_config, official_config])
def test_round_trip(make: Callable[[str], OmniConfig], geometry: str) -> None:
    config = make(geometry)
    written = json.loads(json.dumps(config.to_dict()))
    assert OmniConfig.from_dict(written) == config
    assert {section(written, path)["model_type"] for path in SECTIONS.values()} == SECTIONS.keys()


def test_spelling_that_all_versions_read() -> None:
    written = tiny_config("3b").to_dict()
    talker = written["talker_config"]
    assert talker["rope_theta"] == 1e6 and talker["rope_scaling"]["mrope_section"] == [4, 4, 0]
    assert talker["rope_scaling"]["type"] == talker["rope_scaling"]["rope_type"] == "default"
    assert talker["audio_token_index"] == written["thinker_config"]["audio_token_index"] == 259
    assert talker["spatial_merge_size"] == 2 and talker["position_id_per_seconds"] == 25


def test_speech_tokenizer() -> None:
    config = SpeechTokenizerConfig(fsq_levels=(7, 5), hidden_size=8)
    assert SpeechTokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.num_codes == 35 and SpeechTokenizerConfig().num_codes == 1000


# ---- refusing


@pytest.mark.parametrize("model_type", SECTIONS)
def test_unknown_keys_are_named(model_type: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key 'num_experts' in {model_type};"):
        OmniConfig.from_dict(changed(SECTIONS[model_type], num_experts=4))


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("thinker_config.audio_config", "activation_function", "relu"),
        ("thinker_config.audio_config", "scale_embedding", True),
        ("thinker_config.vision_config", "hidden_act", "gelu"),
        ("thinker_config.text_config", "use_sliding_window", True),
        ("thinker_config.text_config", "tie_word_embeddings", True),
        ("thinker_config", "tie_word_embeddings", True),
        ("talker_config", "hidden_act", "gelu"),
        ("token2wav_config.bigvgan_config", "use_bias_at_final", True),
    ],
)
def test_unimplemented_values_are_named(path: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\.{key} is {value!r}, but only .* is implemented"):
        OmniConfig.from_dict(changed(path, **{key: value}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen3_omni"}, "model_type is 'qwen3_omni'; thinktalk runs"),
        (
            changed("talker_config", rope_scaling={"rope_type": "yarn", "factor": 4.0}),
            "rope type 'yarn' in qwen2_5_omni_talker is not implemented",
        ),
        (
            changed("talker_config", head_dim=64),  # 3B's, without its mrope_section
            r"mrope_section \[16, 24, 24\] of qwen2_5_omni_talker must add up to half of .* 64",
        ),
    ],
)
def test_other_networks(config: Json, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OmniConfig.from_dict(config)


# ---- the reference


@pytest.mark.reference
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("make", [tiny_config, official_config])
def test_through_transformers(make: Callable[[str], OmniConfig], geometry: str) -> None:
    """It reads ours, and we read what it makes of that."""
    from reference import transformers

    config = make(geometry)
    read = transformers.Qwen2_5OmniConfig(**config.to_dict())
    assert OmniConfig.from_dict(json.loads(read.to_json_string())) == config
