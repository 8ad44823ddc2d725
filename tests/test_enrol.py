"""Voices of a checkpoint: a recording becomes one that speaks at once, or it is told why not."""

from pathlib import Path

import numpy as np
import pytest
import small_talk
import tiny
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import thinktalk
from thinktalk.__main__ import main
from thinktalk.media.encode import write_wav
from thinktalk.options import GREEDY
from thinktalk.playroom import speech
from thinktalk.train import enrol
from thinktalk.train.enrol import EMBEDDINGS, add, checked, free_token, listed, remove
from thinktalk.weights import Voice, load

SENTENCE = (
    "the red bird is happy, the opposite of hot is cold, two times five is ten, i see a star."
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real speech of somebody who is not in the checkpoint: flite's awb, at 16 kHz."""
    path = tmp_path_factory.mktemp("sound") / "anna.wav"
    samples, _ = speech.flite(SENTENCE, voice="awb", timed=False)
    write_wav(path, samples.astype(np.float32), speech.FLITE_HZ)
    return path


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    folder = tmp_path / "ours"
    small_talk.build(folder)
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    folder = tmp_path / "official"
    tiny.build(folder, "7b")
    return folder


def test_a_voice_is_added_used_listed_and_removed(
    ours: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["voice", "add", "anna", str(recording), "--model", str(ours), "--like", "Ethan"]
    assert main(words) == 0
    assert "anna, token 293, like Ethan" in capsys.readouterr().out
    model = load(ours)
    voice = model.voices["anna"]
    assert list(model.voices) == ["Chelsie", "Ethan", "anna"]
    assert (voice.cond.shape, voice.ref_mel.shape) == ((1, 160), (1, 400, 80))
    assert torch.load(ours / "spk_dict.pt", weights_only=True)["anna"]["bos_token"] == 293
    told = {
        name: thinktalk.generate(
            model, ["hi"], voice=name, speech=GREEDY, max_text_tokens=4, max_codec_ids=12
        )
        for name in ("Ethan", "anna")
    }
    assert told["anna"].codec_ids == told["Ethan"].codec_ids != []  # like Ethan, for now
    assert not np.allclose(told["anna"].audio, told["Ethan"].audio)  # but another voice
    assert main(["voice", "list", "--model", str(ours)]) == 0
    assert "anna: token 293, 4.0 s" in capsys.readouterr().out
    assert main(["voice", "remove", "anna", "--model", str(ours)]) == 0
    assert list(load(ours).voices) == ["Chelsie", "Ethan"]


def test_a_copy_leaves_the_checkpoint_alone(ours: Path, recording: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in ours.iterdir()}
    made = add("anna", recording, model=ours, out=tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == before
    assert list(listed(made.folder)) == ["Chelsie", "Ethan", "anna"]
    table = load_file(made.folder / "model.safetensors")[EMBEDDINGS]
    assert torch.equal(table[made.voice.bos_token], table[tiny.VOICE_IDS[made.like]])
    others = load_file(ours / "model.safetensors")[EMBEDDINGS]
    others[made.voice.bos_token] = table[made.voice.bos_token]
    assert torch.equal(others, table)
    again = add("ben", recording, model=made.folder)
    assert again.voice.bos_token == made.voice.bos_token + 1
    assert again.like == "anna"  # the same recording is nearest to itself
    assert torch.allclose(again.voice.ref_mel, made.voice.ref_mel, atol=0.5)


def test_loudness_is_that_of_the_other_voices(ours: Path, recording: Path) -> None:
    made = add("anna", recording, model=ours)
    levels = [
        float(voice.ref_mel[0].numpy()[enrol.spoken(voice.ref_mel[0].numpy())].mean())
        for voice in (made.voice, *(listed(ours)[name] for name in tiny.VOICE_IDS))
    ]
    assert levels[0] == pytest.approx(np.mean(levels[1:]), abs=0.5)


def test_official_checkpoints_borrow_what_nobody_knows(
    official: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["voice", "add", "anna", str(recording), "--model", str(official)]) == 0
    assert "Unverified" in capsys.readouterr().out
    voices = listed(official)
    assert torch.equal(voices["anna"].cond, voices["Chelsie"].cond)
    assert voices["anna"].ref_mel.shape == (1, 400, 80)
    np.save(tmp_path / "ben.npy", np.arange(24, dtype=np.float32))
    made = add("ben", recording, model=official, cond=tmp_path / "ben.npy", like="Ethan")
    assert made.voice.cond[0].tolist() == list(range(24)) and not made.verified
    np.save(tmp_path / "long.npy", np.arange(192))
    with pytest.raises(ValueError, match="holds 192 numbers; this checkpoint needs 24"):
        add("carl", recording, model=official, cond=tmp_path / "long.npy")


def test_what_is_refused_changes_nothing(ours: Path, recording: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in ours.iterdir()}
    for arguments, reason in (
        ({"name": "Ethan"}, "there is a voice 'Ethan' already"),
        ({"name": " "}, "is no name"),
        ({"name": "a\nb"}, "is no name"),
        ({"name": "anna", "like": "Zoe"}, "no voice 'Zoe' to resemble; there are Chelsie, Ethan"),
        ({"name": "anna", "recording": tmp_path / "none.wav"}, "none.wav"),
        ({"name": "anna", "recording": np.zeros(200_000, np.float32)}, "is silent"),
    ):
        with pytest.raises(ValueError, match=reason):
            add(**{"recording": recording, "model": ours} | arguments)  # pyright: ignore
    with pytest.raises(ValueError, match="not yours to change"):
        add("anna", recording, model="spark")
    with pytest.raises(ValueError, match="no voice 'Zoe'"):
        remove("Zoe", model=ours)
    remove("Ethan", model=ours, out=tmp_path / "one")
    with pytest.raises(ValueError, match="the only voice"):
        remove("Chelsie", model=tmp_path / "one")
    with pytest.raises(ValueError, match="is not empty"):
        remove("Ethan", model=ours, out=tmp_path / "one")
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == before


def sound(seconds: float) -> NDArray[np.float32]:
    """Syllables of noise with pauses in between."""
    count = int(seconds * 24_000)
    envelope = np.sin(np.arange(count) / 24_000 * 2 * np.pi * 2) > -0.5
    return (np.random.default_rng(0).standard_normal(count) * 0.1 * envelope).astype(np.float32)


@pytest.mark.parametrize(
    ("wave", "reason"),
    [
        (sound(3.9), "is 3.9 s long; a voice needs at least 4 s"),
        (sound(6) * 1e-4, "is silent: its loud parts are at -"),
        ((sound(6) * 20).clip(-1, 1), "is clipped"),
        (np.concatenate((sound(1.2), np.zeros(200_000, np.float32))), "the rest is pause|silent"),
    ],
)
def test_bad_recordings_are_told(wave: NDArray[np.float32], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        checked(wave)


def test_a_good_recording_may_touch_full_scale_once() -> None:
    wave = sound(5)
    wave[1000] = 1.0
    assert checked(wave) is wave


def test_free_tokens_run_out(ours: Path) -> None:
    model = load(ours)
    taken = {str(n): tiny_voice(n) for n in range(320)}
    with pytest.raises(ValueError, match="all 320 rows of the embedding are in use"):
        free_token(ours, model.config, taken)
    last = {"a": tiny_voice(319)}  # nothing is behind it, so it begins from the front
    token = free_token(ours, model.config, last)
    assert 267 <= token < 319 and token not in (280, 281, 282)


def tiny_voice(token: int) -> Voice:
    return Voice(token, torch.zeros(1, 160), torch.zeros(1, 5, 80))
