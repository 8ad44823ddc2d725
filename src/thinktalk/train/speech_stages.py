"""The numbers of the stages of speech on rows: functions that return configs."""

from dataclasses import dataclass, replace

from thinktalk.train.stages import RowStage
from thinktalk.train.trainer import Stage


@dataclass(frozen=True)
class TalkerStage(RowStage):
    """joint: the Thinker learns, too, from its text (with this weight) and through its states.
    deaf: in this share of the samples the Talker hears words alone, see speaking.think.
    even_voices: every speaker is drawn equally often. fresh: the Talker begins untrained.
    spelling: weight of the loss that follows the text, 0 for a Talker that speaks already."""

    learns: tuple[str, ...] = ("talker.*",)
    joint: bool = False
    text_weight: float = 1.0
    deaf: float = 0.0
    even_voices: bool = False
    spelling: float = 0.3
    fresh: bool = False


@dataclass(frozen=True)
class PreferenceStage(RowStage):
    """beta, anchor, plain: see preference.PreferenceTask."""

    learns: tuple[str, ...] = ("talker.*",)
    beta: float = 0.1
    anchor: float = 0.0
    plain: bool = False


@dataclass(frozen=True)
class TokenizerStage(Stage):
    """reads: CTC on the letters beside the mel loss. levels: of the quantiser, where the checkpoint
    has none; 0: as many codes as its DiT knows, and not more than 1000. fresh: it begins
    untrained even where the checkpoint has one."""

    reads: bool = True
    levels: tuple[int, ...] = (0,)
    fresh: bool = False


@dataclass(frozen=True)
class DiTStage(Stage):
    fresh: bool = False  # begins untrained


@dataclass(frozen=True)
class VocoderStage(Stage):
    """judged: adversarial losses beside those of spectra and mel. fresh: it begins untrained."""

    judged: bool = True
    fresh: bool = False


def talker() -> TalkerStage:
    """Codec ids of spoken replies, behind whole conversations."""
    return TalkerStage(
        "talker", steps=5000, learning_rate=1e-4, batch_size=0, betas=(0.9, 0.98), ema=0.998
    )


def talker_voice() -> TalkerStage:
    """As talker, on several speakers, each as often as the others."""
    return replace(
        talker(),
        name="talker-voice",
        steps=1000,
        learning_rate=3e-5,
        even_voices=True,
        spelling=0.0,
    )


def talker_dpo() -> PreferenceStage:
    """Better against worse replies. Slow and short: it only has to move a little."""
    return PreferenceStage(
        "talker-dpo",
        steps=300,
        learning_rate=5e-6,
        batch_size=0,
        warmup_steps=20,
        weight_decay=0.0,
        packed=False,
    )


def tokenizer() -> TokenizerStage:
    """Mel to codes and back. Other codes than before need another Talker and DiT."""
    return TokenizerStage("tokenizer", steps=3000, learning_rate=5e-4, batch_size=16)


def reader() -> Stage:
    """Letters from the finished codes of a tokenizer: an ear for `train pairs`."""
    return Stage("reader", steps=2000, learning_rate=1e-3, batch_size=16, ema=0.998)


def dit() -> DiTStage:
    """Codes, voice and reference mel to mel, by flow matching."""
    return DiTStage(
        "dit",
        steps=5000,
        learning_rate=2e-4,
        batch_size=16,
        gradient_clip=0.5,
        ema=0.999,
        weight_decay=0.02,
    )


def vocoder() -> VocoderStage:
    """Mel to wave."""
    return VocoderStage(
        "vocoder",
        steps=5000,
        learning_rate=2e-4,
        batch_size=8,
        betas=(0.8, 0.99),
        weight_decay=0.01,
        ema=0.999,
        bfloat16=False,
    )
