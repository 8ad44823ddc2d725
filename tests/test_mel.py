"""log_mel and voice_mel: equality with the reference, causality, streaming from pieces."""

from pathlib import Path

import media_samples as samples
import numpy as np
import pytest
from safetensors.numpy import load_file

from thinktalk.media.mel import (
    EAR_HOP_SAMPLES,
    EAR_LONGEST_S,
    ENCODER_WINDOW_FRAMES,
    RunningMel,
    log_frames,
    log_mel,
    normalise,
    voice_mel,
)

GOLDEN = load_file(Path(__file__).parent / "golden" / "media.safetensors")
MEL_STEP = 7  # every 7th frame is recorded
TOLERANCE = 1e-4  # float32 transforms of two libraries, at the bottom of 80 dB; values span 2


@pytest.mark.parametrize("name", samples.WAVES)
def test_clip_equals_reference(name: str) -> None:
    mel = log_mel(samples.wave(name))
    assert mel.dtype == np.float32
    assert mel.shape == (128, int(GOLDEN[f"mel_frames.{name}"]))
    np.testing.assert_allclose(mel[:, ::MEL_STEP], GOLDEN[f"mel.{name}"], atol=TOLERANCE, rtol=0)


def test_silence_is_flat() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(16000, np.float32)), -1.5, rtol=1e-6)


def test_running_maximum_knows_no_future() -> None:
    wave = samples.wave("late")  # its loudest part lies in the second and third window
    running, clip = log_mel(wave, maximum="running"), log_mel(wave, maximum="clip")
    first = log_mel(wave[: 32000 + 200], maximum="running")[:, :ENCODER_WINDOW_FRAMES]
    np.testing.assert_allclose(running[:, :ENCODER_WINDOW_FRAMES], first, atol=1e-6, rtol=0)
    assert np.abs(running - clip)[:, :ENCODER_WINDOW_FRAMES].max() > 0.5
    np.testing.assert_array_equal(running[:, -50:], clip[:, -50:])


def test_running_maximum_never_falls() -> None:
    wave = samples.wave("late")[::-1].copy()  # loud first: later windows keep that maximum
    np.testing.assert_array_equal(log_mel(wave, maximum="running"), log_mel(wave, maximum="clip"))


@pytest.mark.parametrize("num_frames", [1, 7, 200])
def test_frames_do_not_depend_on_their_grouping(num_frames: int) -> None:
    wave = samples.wave("speech")
    padded = np.pad(wave, (200, 600))
    total = len(wave) // EAR_HOP_SAMPLES
    whole = log_frames(padded[: 160 * (total - 1) + 400])
    pieces = [
        log_frames(padded[160 * start : 160 * (min(start + num_frames, total) - 1) + 400])
        for start in range(0, total, num_frames)
    ]
    tolerance = 0.0 if num_frames == ENCODER_WINDOW_FRAMES else 1e-5
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=tolerance, rtol=0)
    assert normalise(whole, loudest=float(whole.max())).min() >= whole.max() / 4 - 1 - 1e-6


@pytest.mark.parametrize("size", [1, 320, 4097, 32_000, 10**6])
def test_pieces_give_the_bits_of_the_whole(size: int) -> None:
    wave = samples.wave("late")
    mel, windows = RunningMel(keep=True), []
    assert mel.tail().shape == (128, 0)
    for start in range(0, len(wave), size):
        windows += mel.push(wave[start : start + size])
        if size > 320:  # to ask on the way changes nothing
            so_far = log_mel(wave[: start + size])
            np.testing.assert_array_equal(mel.whole(), so_far)
            mel.tail()
    assert [window.shape for window in windows] == [(128, 200)] * 2
    assert (mel.num_samples, mel.num_frames) == (len(wave), -(-len(wave) // 160))
    offline = log_mel(wave, maximum="running")
    np.testing.assert_array_equal(np.hstack([*windows, mel.tail()]), offline)
    np.testing.assert_array_equal(mel.whole(), log_mel(wave))


def test_a_short_wave_in_pieces() -> None:
    wave = samples.wave("short")  # shorter than what a frame sees
    mel = RunningMel(keep=True)
    assert mel.push(wave[:100]) == mel.push(wave[100:]) == []
    np.testing.assert_array_equal(mel.tail(), log_mel(wave))
    assert RunningMel().whole() is None


def test_no_logs_are_kept_of_what_the_reference_cuts() -> None:
    mel, second = RunningMel(keep=True), samples.tone(1, 16_000, 440.0)
    for _ in range(EAR_LONGEST_S):
        mel.push(second)
    whole = mel.whole()  # the last window still needs 40 samples
    assert whole is not None and whole.shape == (128, 100 * EAR_LONGEST_S)
    mel.push(second)
    assert mel.whole() is None and mel.state()["logs"] is None
    assert mel.tail().shape == (128, 100)


def test_lengths() -> None:
    for num_samples in (1, 159, 160, 161, 399, 401, 32000):
        expected = -(-num_samples // 160)
        for maximum in ("clip", "running"):
            assert log_mel(np.ones(num_samples, np.float32), maximum=maximum).shape[1] == expected
    assert log_mel(np.zeros(0, np.float32)).shape == (128, 0)


def test_long_clips_are_not_cut() -> None:
    assert log_mel(np.zeros(16000 * 301, np.float32)).shape[1] == 30100


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match='"clip" or "running"'):
        log_mel(np.zeros(160, np.float32), maximum="all")
    with pytest.raises(ValueError, match="mono"):
        log_mel(np.zeros((2, 160), np.float32))


def test_voice_mel_equals_its_definition() -> None:
    """The same in plain float64, frame by frame, from the definition."""
    wave = samples.tone(0.2, 24000, 700.0) + np.float32(1e-3) * np.sin(np.arange(4800) * 0.9)
    wave = wave.astype(np.float32)
    mel = voice_mel(wave)
    assert mel.shape == (4800 // 240, 80) and mel.dtype == np.float32
    left, right = wave[392:0:-1], wave[-2:-394:-1]
    padded = np.concatenate([left, wave, right]).astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    for frame in (0, 7, 19):
        magnitude = np.abs(np.fft.rfft(padded[240 * frame : 240 * frame + 1024] * window))
        expected = np.log(np.maximum(_triangles(80, 1024, 24000) @ magnitude, 1e-5))
        np.testing.assert_allclose(mel[frame], expected, atol=2e-3, rtol=0)


def test_voice_mel_of_nearly_nothing() -> None:
    assert voice_mel(np.zeros(239, np.float32)).shape == (0, 80)
    silence = voice_mel(np.zeros(480, np.float32))
    np.testing.assert_allclose(silence, np.full((2, 80), np.log(1e-5)), rtol=1e-6)


def _triangles(num_bins: int, window: int, rate: int) -> np.ndarray:
    """Slaney's mel filters, bin by bin, from their published definition."""

    def hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    edges = [hz(top * i / (num_bins + 1)) for i in range(num_bins + 2)]
    out = np.zeros((num_bins, window // 2 + 1))
    for b, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for line in range(window // 2 + 1):
            f = line * rate / window
            rise, fall = (f - low) / (middle - low), (high - f) / (high - middle)
            out[b, line] = max(0.0, min(rise, fall)) * 2 / (high - low)
    return out
