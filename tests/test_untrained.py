"""An untrained checkpoint: architecture and files of another one, and none of its weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_talk
import torch
from safetensors.torch import load_file

import thinktalk
from thinktalk.__main__ import main
from thinktalk.train.untrained import write_untrained
from thinktalk.train.voice import ENCODER_FILE


def test_it_is_as_the_other_one_but_has_learned_nothing(tmp_path: Path) -> None:
    like = small_talk.build(tmp_path / "like")
    out = tmp_path / "new"
    assert main(["train", "new", "--like", str(like.folder), "--out", str(out)]) == 0
    ours, theirs = (load_file(f / "model.safetensors") for f in (out, like.folder))
    assert {name: w.shape for name, w in ours.items()} == {n: w.shape for n, w in theirs.items()}
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in ours.values())
    matrices = [name for name, weight in ours.items() if weight.ndim > 1]
    assert not any(torch.equal(ours[name], theirs[name]) for name in matrices)
    for path in like.folder.glob("*token*.json"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    model = thinktalk.load(out)
    assert model.config == like.config
    for name, voice in like.voices.items():
        assert torch.equal(model.voices[name].cond, voice.cond)
        assert torch.equal(model.voices[name].ref_mel, voice.ref_mel)
    assert not (out / ENCODER_FILE).exists()  # that is learned, too
    answer = thinktalk.generate(model, ["hi"], max_text_tokens=3, max_codec_ids=4)
    assert len(answer.audio) == 480 * len(answer.codec_ids) and np.isfinite(answer.audio).all()


def test_a_seed_says_which_weights(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    files = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_untrained(tiny_checkpoint("3b"), tmp_path / name, seed=seed)
        files[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert files["a"] == files["b"] != files["c"]


def test_nothing_is_written_over(
    tmp_path: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").write_text("mine")
    for out in (tmp_path, tmp_path / "there"):
        assert main(["train", "new", "--like", str(tiny_checkpoint("7b")), "--out", str(out)]) == 2
        assert "is there already; give a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert main(["train", "new", "--like", "no/where/at/all", "--out", str(tmp_path / "x")]) == 2
    assert "is not a checkpoint" in capsys.readouterr().err
