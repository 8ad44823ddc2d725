"""The numbers of the stages that train any checkpoint on rows: functions that return configs."""

from dataclasses import dataclass, replace

from thinktalk.train.trainer import Stage

EAR_ADAPTER = ("thinker.audio_tower.proj.*", "thinker.audio_tower.ln_post.*")
EYE_ADAPTER = ("thinker.visual.merger.*",)
ENCODERS = ("thinker.audio_tower.*", "thinker.visual.*")


@dataclass(frozen=True)
class RowStage(Stage):
    """The numbers of a stage on rows; batch_size 0: as many samples as batch_tokens hold.

    epochs: how often every row is drawn, which then sets `steps`; 0 leaves them as they are.
    learns, frozen: patterns (as of file names) of the official names of weights. What fits one of
    `learns` and none of `frozen` is trained.
    """

    epochs: float = 0.0
    batch_tokens: int = 8192  # of every part
    packed: bool = True  # samples behind one another in one row; else padded
    learns: tuple[str, ...] = ("thinker.*",)
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class ThinkerStage(RowStage):
    """steady: weight of the loss that holds the Thinker's states for the Talker (omni.OmniTask)."""

    steady: float = 0.0


def omni() -> ThinkerStage:
    """The whole Thinker: text, pictures, sounds, films, films with sound."""
    return ThinkerStage(
        "omni",
        steps=10_000,
        learning_rate=5e-5,
        batch_size=0,
        warmup_steps=300,
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )


def align_adapters() -> ThinkerStage:
    """What joins the encoders to the frozen decoder: the last layer of each encoder."""
    return replace(
        omni(),
        name="adapters",
        steps=2000,
        learning_rate=1e-3,
        warmup_steps=100,
        learns=(*EAR_ADAPTER, *EYE_ADAPTER),
    )


def align_encoders() -> ThinkerStage:
    """Both encoders, towards the frozen decoder."""
    return replace(
        align_adapters(), name="encoders", steps=4000, learning_rate=1e-4, learns=ENCODERS
    )


def long() -> ThinkerStage:
    """As omni, on rows of up to 32 768 tokens: memory is saved where time can pay for it."""
    return replace(
        omni(), name="long", steps=2000, learning_rate=2e-5, batch_tokens=32_768, recompute=True
    )


def sft() -> ThinkerStage:
    """Conversations as the model shall have them."""
    return replace(omni(), name="sft", steps=2000, learning_rate=1e-5, warmup_steps=100)
