"""Audio tokens equal the reference's, and a window knows nothing of its neighbours."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from thinktalk.config import AudioConfig
from thinktalk.model.audio import AudioEncoder, num_tokens, split_windows

INPUT_STEP = 1 / 32  # recorded inputs are int8 times this
FRAMES = (1, 2, 3, 7, 199, 200, 201, 530)

with safe_open(Path(__file__).parent / "golden" / "encoders.safetensors", "pt") as file:
    CONFIG = AudioConfig(**json.loads(file.metadata()["audio"]))
    WEIGHTS = {
        name.removeprefix("audio."): file.get_tensor(name)
        for name in file.keys()  # noqa: SIM118 (the file is no mapping)
        if name.startswith("audio.")
    }
    MEL = file.get_tensor("audio_mel") * INPUT_STEP
    TOKENS = {
        (frames, suffix): file.get_tensor(f"audio_tokens.{frames}.{suffix}")
        for frames in FRAMES
        for suffix in ("fp32", "bf16")
    }


def recorded_encoder(dtype: torch.dtype) -> AudioEncoder:
    """Built without storage, as large checkpoints are."""
    with torch.device("meta"):
        encoder = AudioEncoder(CONFIG)
    encoder.load_state_dict({k: v.to(dtype) for k, v in WEIGHTS.items()}, assign=True)
    return encoder.eval().requires_grad_(False)


ENCODER = recorded_encoder(torch.float32)


def encode(encoder: AudioEncoder, mel: Tensor) -> Tensor:
    """A whole clip [128,F] -> tokens [T,output_dim]."""
    tokens, counts = encoder(*split_windows(mel))
    return torch.cat([row[:count] for row, count in zip(tokens, counts.tolist(), strict=True)])


@pytest.mark.parametrize("frames", FRAMES)
def test_reference_float32(frames: int) -> None:
    tokens, expected = encode(ENCODER, MEL[:, :frames]), TOKENS[frames, "fp32"]
    assert tokens.shape == expected.shape == (num_tokens(frames), CONFIG.output_dim)
    if len(expected):
        assert (tokens - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("frames", FRAMES[2:])
def test_reference_bfloat16(frames: int) -> None:
    exact = TOKENS[frames, "fp32"]
    theirs = (TOKENS[frames, "bf16"].float() - exact).square().mean().sqrt()
    tokens = encode(recorded_encoder(torch.bfloat16), MEL[:, :frames])
    assert tokens.dtype == torch.bfloat16
    assert (tokens.float() - exact).square().mean().sqrt() < 2 * theirs


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=5), st.integers(0, 60))
def test_windows_are_independent(lengths: list[int], margin: int) -> None:
    """In a padded batch, whatever the padding holds, every window is as if alone."""
    size = min(max(lengths) + margin, 200)
    batch = torch.full((len(lengths), 128, size), torch.nan)
    for n, length in enumerate(lengths):
        batch[n, :, :length] = MEL[:, 40 * n : 40 * n + length]
    tokens, counts = ENCODER(batch, torch.tensor(lengths))
    assert tokens.shape == (len(lengths), num_tokens(size), CONFIG.output_dim)
    for n, length in enumerate(lengths):
        [alone], [count] = ENCODER(batch[n : n + 1, :, :length], torch.tensor([length]))
        assert counts[n] == count == num_tokens(length) == len(alone)
        assert torch.allclose(tokens[n, :count], alone, atol=1e-5)
        assert (tokens[n, count:] == 0).all()


def test_positions_restart_in_every_window() -> None:
    window = MEL[:, :200]
    tokens = encode(ENCODER, torch.cat((window, window), dim=1))
    assert torch.equal(tokens[:50], tokens[50:])


def test_positions_and_both_ends_matter() -> None:
    """A token depends on its place and on all frames of its window."""
    window = MEL[:, :200].clone()
    tokens = encode(ENCODER, window)
    assert not torch.allclose(encode(ENCODER, window.roll(40, 1))[10:40], tokens[:30], atol=1e-2)
    window[:, -1] += 1
    assert ((encode(ENCODER, window) - tokens).abs().amax(1) > 1e-6).all()


@given(st.integers(1, 30_000))
def test_num_tokens(frames: int) -> None:
    """model.md 3.2, for windows and for clips; ints and tensors alike."""
    expected = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    assert num_tokens(frames) == expected == num_tokens(torch.tensor([frames])).item()
    _, lengths = split_windows(torch.zeros(1, frames))
    assert num_tokens(lengths).sum() == expected


@given(st.integers(0, 900))
def test_split_windows(frames: int) -> None:
    mel = torch.arange(1.0, 1 + 2 * frames).view(2, frames)
    windows, lengths = split_windows(mel)
    assert windows.shape == (-(-frames // 200), 2, 200) and lengths.sum() == frames
    assert (lengths > 0).all() and (lengths[:-1] == 200).all()
    flat = windows.transpose(0, 1).flatten(1)
    assert torch.equal(flat[:, :frames], mel) and (flat[:, frames:] == 0).all()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_training(autocast: bool) -> None:
    """Every used weight learns, and padding neither gets nor spoils a gradient."""
    encoder = AudioEncoder(CONFIG)
    encoder.load_state_dict({name: weight.float() for name, weight in WEIGHTS.items()})
    windows, lengths = split_windows(MEL[:, :330])
    windows[1, :, 130:] = torch.inf
    windows.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens, _ = encoder(windows, lengths)
    tokens.float().square().mean().backward()
    for name, weight in encoder.named_parameters():
        if name == "audio_bos_eos_token.weight":
            assert weight.grad is None
        else:
            assert weight.grad is not None and weight.grad.isfinite().all(), name
            assert weight.grad.abs().sum() > 0, name
    assert windows.grad is not None
    assert (windows.grad[1, :, 130:] == 0).all() and (windows.grad[1, :, :130] != 0).any()
