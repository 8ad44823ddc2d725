"""The vocoder's judges: the losses of both sides, who learns from which, and that both resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_talk
import torch
from numpy.typing import NDArray

from thinktalk.model.bigvgan import BigVGAN
from thinktalk.train import speech_stages
from thinktalk.train.checkpoint import Reader, newest
from thinktalk.train.discriminators import (
    Judges,
    Verdict,
    feature_loss,
    fooling_loss,
    judging_loss,
    unmoved,
)
from thinktalk.train.speech import VocoderTask
from thinktalk.train.streams import Stream
from thinktalk.train.trainer import train

STAGE = replace(
    speech_stages.vocoder(), steps=4, batch_size=2, learning_rate=1e-3, warmup_steps=1, ema=0.0
)


@pytest.fixture
def streams() -> list[Stream]:
    """A voice of 6 s: a hum whose pitch rises, and noise."""
    time = np.arange(6 * 24_000) / 24_000
    rng = np.random.default_rng(0)
    wave = 0.3 * np.sin(2 * np.pi * (120 + 10 * time) * time) + 0.02 * rng.standard_normal(
        len(time)
    )
    levels = np.round(wave * 32767).astype(np.int16)
    mel = rng.standard_normal((600, 80)).astype(np.float16) - 4
    return [Stream("hum", levels, mel, [])]


def task_of(streams: list[Stream]) -> VocoderTask:
    torch.manual_seed(0)
    config = small_talk.small_config().token2wav_config.bigvgan_config
    task = VocoderTask(BigVGAN(config), streams, judged=True)
    task.judges = task.module["judges"] = Judges(  # pyright: ignore
        width=4, periods=(2, 3), resolutions=((256, 64),)
    )
    return task


def verdicts(rng: np.random.Generator) -> tuple[list[Verdict], list[NDArray], list[list[NDArray]]]:
    scores = [rng.standard_normal((2, 1, 5, p)).astype(np.float32) for p in (2, 3)]
    features = [[rng.standard_normal((2, 3, n)).astype(np.float32) for n in (4, 7)] for _ in "ab"]
    made = [
        Verdict(torch.from_numpy(s), [torch.from_numpy(f) for f in layers])
        for s, layers in zip(scores, features, strict=True)
    ]
    return made, scores, features


def test_losses_equal_an_independent_computation() -> None:
    real, real_scores, real_features = verdicts(np.random.default_rng(1))
    made, made_scores, made_features = verdicts(np.random.default_rng(2))
    judging = np.mean(
        [
            np.mean((1 - r) ** 2) + np.mean(m**2)
            for r, m in zip(real_scores, made_scores, strict=True)
        ]
    )
    assert judging_loss(real, made).item() == pytest.approx(judging, rel=1e-5)
    fooling = np.mean([np.mean((1 - m) ** 2) for m in made_scores])
    assert fooling_loss(made).item() == pytest.approx(fooling, rel=1e-5)
    pairs = [
        pair
        for layers in zip(real_features, made_features, strict=True)
        for pair in zip(*layers, strict=True)
    ]
    features = np.mean([np.abs(r - m).mean() / np.abs(r).mean() for r, m in pairs])
    assert feature_loss(real, made).item() == pytest.approx(features, rel=1e-5)


def test_each_side_learns_from_its_own_loss_alone(streams: list[Stream]) -> None:
    """The gradients of one joint step are those of two separate ones."""
    task = task_of(streams)
    judges = task.judges
    assert judges is not None
    batch = task.batch(np.random.default_rng(0), 2)
    task.loss(batch)[0].backward()
    joint = {name: weight.grad.clone() for name, weight in task.module.named_parameters()}  # pyright: ignore
    task.module.zero_grad()
    with torch.no_grad():
        wave = task.vocoder(batch["mel"].mT)
    judging_loss(judges(batch["wave"]), judges(wave)).backward()
    for name, weight in judges.named_parameters():
        assert torch.allclose(joint[f"judges.{name}"], weight.grad, atol=1e-6), name  # pyright: ignore
    task.module.zero_grad()
    wave, figures = task._made(batch)
    made, real = judges(wave), judges(batch["wave"])
    loss = figures["spectra"] + 0.5 * figures["mel"]
    loss = loss + task.FOOLING_WEIGHT * fooling_loss(made)
    (loss + task.FEATURE_WEIGHT * feature_loss(real, made)).backward()
    for name, weight in task.vocoder.named_parameters():
        assert torch.allclose(joint[f"vocoder.{name}"], weight.grad, atol=1e-5), name  # pyright: ignore
    assert joint["vocoder.conv_pre.weight"].abs().max() > 0


def test_verdicts_without_movement_reach_the_wave(streams: list[Stream]) -> None:
    torch.manual_seed(0)
    judges = Judges(width=4, periods=(2, 3), resolutions=((256, 64),))
    wave = torch.randn(2, 1921, requires_grad=True)
    made = unmoved(judges, wave)
    assert torch.equal(made[1].scores, judges(wave)[1].scores)
    fooling_loss(made).backward()
    assert wave.grad is not None and wave.grad.abs().min(0).values.max() > 0
    assert all(weight.grad is None for weight in judges.parameters())


def test_judges_learn_to_tell_real_from_made() -> None:
    torch.manual_seed(0)
    judges = Judges(width=4, periods=(2, 3), resolutions=((256, 64),))
    optimizer = torch.optim.AdamW(judges.parameters(), lr=5e-3)
    time = torch.arange(1920) / 24_000
    losses = []
    for _ in range(90):
        pitch = torch.rand(4, 1) * 100 + 100
        real = 0.3 * (2 * torch.pi * pitch * time).sin()
        made = real + 0.1 * torch.randn_like(real)
        loss = judging_loss(judges(real), judges(made))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 < losses[0]  # who cannot tell them apart gets 0.5


def test_both_sides_and_their_means_resume_bit_equal(streams: list[Stream], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(STAGE, task_of(streams), whole)
    first = task_of(streams)
    calls, loss = iter(range(10)), first.loss

    def stops(batch: dict) -> tuple:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return loss(batch)

    first.loss = stops  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        train(STAGE, first, cut, save_every_s=0)
    second = task_of(streams)
    assert train(STAGE, second, cut)
    third = task_of(streams)
    assert train(STAGE, third, whole)  # reads the finished state
    for name, weight in second.module.state_dict().items():
        assert torch.equal(weight, third.module.state_dict()[name]), name
    folder = newest(cut)
    assert folder is not None
    stored = Reader(folder).tensors()
    for side in ("vocoder.conv_pre.weight", "judges.by_period.0.last.weight"):
        assert f"optimizer.{side}.exp_avg_sq" in stored
