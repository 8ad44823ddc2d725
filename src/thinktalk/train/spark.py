"""The architecture of spark, and the numbers of its recipe's stages: functions return configs."""

from dataclasses import replace

from thinktalk.config import (
    AudioConfig,
    BigVGANConfig,
    DecoderConfig,
    DiTConfig,
    OmniConfig,
    SpeechTokenizerConfig,
    TalkerConfig,
    ThinkerConfig,
    Token2WavConfig,
    VisionConfig,
)
from thinktalk.train.trainer import Stage

# The text tokenizer's ids come first, then the special tokens, then rows without a token.
NUM_TEXT_TOKENS = 1100
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
SPECIAL_IDS = {token: NUM_TEXT_TOKENS + i for i, token in enumerate(SPECIAL_TOKENS)}
SPARK_VOCAB = 1152
TTS_PAD, TTS_START, TTS_END = 1130, 1131, 1132
VOICE_TOKENS = {"Chelsie": 1142, "Ethan": 1140}


# Few codes, each of a tenth of a second: what the encoder does not see at once it cannot spread
# over many codes. The Talker has half as much to guess as with 1000 codes of an encoder that sees
# 0.6 s, and words are understood as well.
SPEECH_TOKENIZER = SpeechTokenizerConfig(fsq_levels=(4, 4, 4, 3), encoder_layers=2, kernel_size=5)


def spark_config() -> OmniConfig:
    """The architecture of spark: every network of the official models, about 18 M parameters."""
    thinker = ThinkerConfig(
        audio_config=AudioConfig(
            d_model=192,
            encoder_layers=3,
            encoder_attention_heads=4,
            encoder_ffn_dim=768,
            output_dim=256,
        ),
        vision_config=VisionConfig(
            depth=4,
            hidden_size=80,
            intermediate_size=160,
            num_heads=2,
            out_hidden_size=256,
            fullatt_block_indexes=(2, 3),
        ),
        text_config=DecoderConfig(
            vocab_size=SPARK_VOCAB,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=8192,
            mrope_section=(8, 12, 12),
        ),
        audio_token_index=SPECIAL_IDS["<|AUDIO|>"],
        image_token_index=SPECIAL_IDS["<|IMAGE|>"],
        video_token_index=SPECIAL_IDS["<|VIDEO|>"],
        audio_start_token_id=SPECIAL_IDS["<|audio_bos|>"],
        audio_end_token_id=SPECIAL_IDS["<|audio_eos|>"],
        vision_start_token_id=SPECIAL_IDS["<|vision_bos|>"],
        vision_end_token_id=SPECIAL_IDS["<|vision_eos|>"],
        pad_token_id=SPECIAL_IDS["<|endoftext|>"],
        bos_token_id=SPECIAL_IDS["<|im_start|>"],
        eos_token_id=SPECIAL_IDS["<|im_end|>"],
    )
    talker = TalkerConfig(
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        embedding_size=256,
        max_position_embeddings=8192,
        mrope_section=(8, 12, 12),
        tts_text_start_token_id=TTS_START,
        tts_text_end_token_id=TTS_END,
        tts_text_pad_token_id=TTS_PAD,
    )
    return OmniConfig(thinker, talker, Token2WavConfig(_spark_dit(), _spark_vocoder()))


def _spark_dit() -> DiTConfig:
    return DiTConfig(
        hidden_size=240,
        num_hidden_layers=5,
        num_attention_heads=5,
        head_dim=48,
        emb_dim=96,
        num_embeds=SPEECH_TOKENIZER.num_codes,
        look_ahead_layers=(2,),
        look_backward_layers=(0, 3),
        enc_emb_dim=SPEECH_TOKENIZER.cond_dim,
        enc_dim=32,
        enc_channels=(48, 48, 48, 48, 144),
        enc_attention_channels=32,
        enc_se_channels=32,
        solver="midpoint",
    )


def _spark_vocoder() -> BigVGANConfig:
    return BigVGANConfig(
        upsample_initial_channel=192,
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3, 5), (1, 3, 5)),
        upsample_rates=(5, 4, 3, 2, 2),
        upsample_kernel_sizes=(11, 8, 7, 4, 4),
    )


def tokenizer() -> Stage:
    """Speech tokenizer: mel to codes and back, and the letters of what is said."""
    return Stage("tokenizer", steps=4000, learning_rate=1e-3, batch_size=16)


def dit() -> Stage:
    """Codes and voice to mel, by flow matching."""
    # more and the attention of the first layer diverges after some thousand steps
    return replace(
        tokenizer(),
        name="dit",
        steps=10_000,
        learning_rate=7e-4,
        gradient_clip=0.5,
        ema=0.999,
        weight_decay=0.02,
    )


def vocoder() -> Stage:
    """Mel to wave. Convolutions gain nothing from bfloat16 on CPUs."""
    return Stage(
        "vocoder",
        steps=7000,
        learning_rate=1e-3,
        batch_size=8,
        betas=(0.8, 0.99),
        weight_decay=0.01,
        ema=0.999,
        bfloat16=False,
    )


def typed() -> Stage:
    """The text decoder alone: typed questions."""
    return Stage("typed", steps=3000, learning_rate=1e-3, batch_size=24)


def align() -> Stage:
    """The audio encoder alone, towards the frozen text embeddings."""
    return replace(typed(), name="align", steps=4500, batch_size=32, ema=0.998)


def thinker() -> Stage:
    """Everything in the Thinker: typed and spoken questions."""
    return replace(typed(), name="thinker", steps=3000, ema=0.998)


def letters() -> Stage:
    """The vision encoder alone, towards the names of what pictures show; of writing, letters."""
    return Stage(
        "letters", steps=8000, learning_rate=2e-3, batch_size=64, weight_decay=0.01, ema=0.998
    )


def seeing() -> Stage:
    """The same with whole words."""
    return replace(letters(), name="seeing", steps=16_000)


def talker() -> Stage:
    """Thinker states and text to codec ids."""
    return Stage("talker", steps=11_000, learning_rate=1.2e-3, batch_size=24, ema=0.998)
