"""Checkpoints: official names and shapes, loading, saving, and refusing what does not fit."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import GEOMETRIES, VOICE_IDS, build, tiny_config
from torch import Tensor

from thinktalk import weights
from thinktalk.model.omni import Omni

Checkpoints = Callable[[str], Path]


# ---- loading and saving


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shard_bytes", [5e9, 2e6])
def test_round_trip(tiny_checkpoint: Checkpoints, tmp_path, geometry, shard_bytes) -> None:
    first = weights.load(tiny_checkpoint(geometry))
    weights.save(first, tmp_path, shard_bytes=shard_bytes)
    second = weights.load(tmp_path)
    assert same(first.omni.state_dict(), second.omni.state_dict())
    assert second.config == first.config
    assert list(second.voices) == list(VOICE_IDS)
    for name, voice in second.voices.items():
        assert voice.bos_token == VOICE_IDS[name]
        assert torch.equal(voice.cond, first.voices[name].cond)
        assert torch.equal(voice.ref_mel, first.voices[name].ref_mel)
    assert not second.omni.training and not any(t.is_meta for t in second.omni.buffers())
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (first.folder / name).read_bytes()


def test_shards_and_index(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = weights.load(tiny_checkpoint("7b"))
    weights.save(model, tmp_path, shard_bytes=2e6)
    index = json.loads((tmp_path / weights.INDEX).read_text())
    state = model.omni.state_dict()
    assert index["weight_map"].keys() == state.keys()
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in state.values())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    for name in names:
        tensors = load_file(tmp_path / name)
        assert sum(4 * t.numel() for t in tensors.values()) <= 2e6 or len(tensors) == 1
        assert all(index["weight_map"][tensor] == name for tensor in tensors)
    assert not (tmp_path / weights.SINGLE).exists()


def test_saving_over_an_older_save(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Also into the folder that the weights came from: nothing stale stays, nothing is lost."""
    model = weights.load(tiny_checkpoint("7b"))
    weights.save(model, tmp_path, shard_bytes=2e6)
    again = weights.load(tmp_path)
    with torch.no_grad():
        again.omni.thinker.lm_head.weight.add_(1)
    weights.save(again, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("model*")) == [weights.SINGLE]
    third = weights.load(tmp_path)
    assert same(third.omni.state_dict(), again.omni.state_dict())
    assert (tmp_path / "tokenizer.json").exists() and third.voices


def test_dtypes(tiny_checkpoint: Checkpoints, tmp_path: Path, monkeypatch) -> None:
    bf16, f32 = torch.bfloat16, torch.float32

    def dtypes(**options) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
        omni = weights.load(tmp_path, **options).omni
        vocoder = omni.token2wav.code2wav_bigvgan_model.conv_pre.weight.dtype
        return omni.thinker.lm_head.weight.dtype, omni.talker.codec_head.weight.dtype, vocoder

    weights.save(weights.load(tiny_checkpoint("7b")), tmp_path, dtype=bf16, token2wav_dtype=bf16)
    stored = load_file(tmp_path / weights.SINGLE)
    frequencies = stored.pop(weights.DIT_FREQUENCIES)
    assert {t.dtype for t in stored.values()} == {bf16} and frequencies.dtype == f32
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert dtypes() == (f32, f32, f32)
    assert dtypes(dtype=bf16) == (bf16, bf16, f32)
    assert dtypes(dtype=bf16, token2wav_dtype=bf16) == (bf16, bf16, bf16)
    monkeypatch.setattr(weights, "SMALL_PARAMETERS", 1)  # a big model keeps what is stored
    assert dtypes() == (bf16, bf16, f32)


def test_dit_frequencies(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Loaded when stored (official files hold rounded ones), computed when absent."""
    model = weights.load(tiny_checkpoint("7b"))
    weights.save(model, tmp_path)
    tensors = load_file(tmp_path / weights.SINGLE)
    exact = tensors[weights.DIT_FREQUENCIES].clone()
    torch.testing.assert_close(exact, 1e4 ** -(torch.arange(0, 16, 2) / 16))
    rounded = exact.bfloat16().float()
    tensors[weights.DIT_FREQUENCIES] = rounded
    save_file(tensors, tmp_path / weights.SINGLE)
    loaded = weights.load(tmp_path).omni.state_dict()[weights.DIT_FREQUENCIES]
    assert torch.equal(loaded, rounded) and not torch.equal(rounded, exact)
    del tensors[weights.DIT_FREQUENCIES]
    save_file(tensors, tmp_path / weights.SINGLE)
    assert torch.equal(weights.load(tmp_path).omni.state_dict()[weights.DIT_FREQUENCIES], exact)


def test_superfluous_tables_are_ignored(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = weights.load(tiny_checkpoint("7b"))
    weights.save(model, tmp_path)
    extra = (
        "thinker.audio_tower.positional_embedding.positional_embedding",
        "thinker.visual.rotary_pos_emb.inv_freq",
        "thinker.model.rotary_emb.inv_freq",
        "talker.model.rotary_emb.inv_freq",
        "token2wav.code2wav_bigvgan_model.activation_post.upsample.filter",
        "token2wav.code2wav_bigvgan_model.resblocks.3.activations.1.downsample.filter",
    )
    tensors = load_file(tmp_path / weights.SINGLE) | {name: torch.ones(3) for name in extra}
    save_file(tensors, tmp_path / weights.SINGLE)
    assert same(weights.load(tmp_path).omni.state_dict(), model.omni.state_dict())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux")
def test_memory_of_loading(tmp_path: Path) -> None:
    """The peak is the weights plus one shard, not twice the weights."""
    made = build(tmp_path / "small", "7b")
    config = made.config
    text = replace(config.thinker_config.text_config, vocab_size=300_000, intermediate_size=60_000)
    config = replace(config, thinker_config=replace(config.thinker_config, text_config=text))
    folder = tmp_path / "big"
    shard_bytes = 50e6
    weights.save(replace(made, omni=Omni(config)), folder, shard_bytes=shard_bytes)
    total = json.loads((folder / weights.INDEX).read_text())["metadata"]["total_size"]
    assert total > 280e6
    code = """
        import pathlib, re, sys
        from thinktalk import weights
        def peak():  # getrusage would count the parent, too
            status = pathlib.Path("/proc/self/status").read_text()
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
        weights.load(sys.argv[2])  # everything imported and warm
        before = peak()
        model = weights.load(sys.argv[1])
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(code), str(folder), str(tmp_path / "small")],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown = int(done.stdout)
    largest = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert total < grown < total + largest + 40e6, (total, grown, largest)


@pytest.mark.gpu
def test_loading_to_the_gpu(tiny_checkpoint: Checkpoints) -> None:
    omni = weights.load(tiny_checkpoint("7b"), device="cuda", dtype=torch.bfloat16).omni
    tensors = [*omni.parameters(), *omni.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert torch.cuda.max_memory_allocated() < 1.5 * sum(t.nbytes for t in tensors) + 1e6


# ---- what does not fit is refused, with the names


def break_missing(tensors: dict[str, Tensor]) -> None:
    del tensors["talker.codec_head.weight"]


def break_unexpected(tensors: dict[str, Tensor]) -> None:
    tensors["thinker.model.layers.0.mlp.gate_proj.qweight"] = torch.zeros(2)


def break_shape(tensors: dict[str, Tensor]) -> None:
    tensors["thinker.lm_head.weight"] = torch.zeros(5, 64)


def break_dtype(tensors: dict[str, Tensor]) -> None:
    tensors["thinker.lm_head.weight"] = tensors["thinker.lm_head.weight"].to(torch.int8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing, r"1 missing: talker\.codec_head\.weight"),
        (break_unexpected, r"1 unexpected: thinker\.model\.layers\.0\.mlp\.gate_proj\.qweight"),
        (break_shape, r"thinker\.lm_head\.weight is \[5, 64\] instead of \[320, 64\]"),
        (break_dtype, r"thinker\.lm_head\.weight is stored as I8"),
    ],
)
def test_misfits_are_named(tiny_checkpoint: Checkpoints, tmp_path, damage, message) -> None:
    weights.save(weights.load(tiny_checkpoint("7b")), tmp_path)
    tensors = load_file(tmp_path / weights.SINGLE)
    damage(tensors)
    save_file(tensors, tmp_path / weights.SINGLE)
    with pytest.raises(ValueError, match=message):
        weights.load(tmp_path)


def cut_weights(folder: Path) -> None:
    path = folder / weights.SINGLE
    path.write_bytes(path.read_bytes()[:100_000])


def pointer_instead_of_weights(folder: Path) -> None:
    (folder / weights.SINGLE).write_text("version https://git-lfs.github.com/spec/v1\n")


def lose_a_shard(folder: Path) -> None:
    weights.save(weights.load(folder), folder, shard_bytes=2e6)
    min(folder.glob("model-00002-of-*")).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json must hold one JSON object"),
        (lambda f: (f / weights.SINGLE).unlink(), r"holds neither model\.safetensors nor"),
        (cut_weights, r"model\.safetensors is damaged"),
        (pointer_instead_of_weights, r"model\.safetensors is damaged"),
        (lose_a_shard, r"names model-00002-of-\d+\.safetensors, which are not in the folder"),
    ],
)
def test_incomplete_folders(tiny_checkpoint: Checkpoints, tmp_path, damage, message) -> None:
    weights.save(weights.load(tiny_checkpoint("7b")), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        weights.load(tmp_path)


def test_unusable_device(tiny_checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match='device "banana" cannot be used here'):
        weights.load(tiny_checkpoint("7b"), device="banana")


# ---- voices


def voice_entry() -> dict[str, Any]:
    return {"bos_token": 5, "cond": torch.ones(1, 24), "ref_mel": torch.ones(1, 9, 80)}


class Malicious:
    """Unpickling it carelessly would create a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize(
    "writer", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, 2))]
)
def test_voices_never_run_code(tiny_checkpoint: Checkpoints, tmp_path, writer) -> None:
    weights.save(weights.load(tiny_checkpoint("7b")), tmp_path)
    trace = tmp_path / "trace"
    writer({"Chelsie": Malicious(trace)}, tmp_path / weights.VOICES)
    with pytest.raises(ValueError, match=r"spk_dict\.pt is refused"):
        weights.load(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is refused"),
        (b"not a pickle", "is refused"),
        ([1], "holds no voices"),
        (
            {"Ann": {"bos_token": 5}},
            r"voice 'Ann' needs a bos_token of the vocabulary, cond \[1, 24\]",
        ),
        ({"Ann": voice_entry() | {"bos_token": 320}}, "voice 'Ann' needs"),
        ({"Ann": voice_entry() | {"cond": torch.ones(24)}}, "voice 'Ann' needs"),
        ({"Ann": voice_entry() | {"ref_mel": torch.ones(9, 80)}}, "voice 'Ann' needs"),
    ],
)
def test_unusable_voices(tiny_checkpoint: Checkpoints, tmp_path, content, message) -> None:
    weights.save(weights.load(tiny_checkpoint("7b")), tmp_path)
    path = tmp_path / weights.VOICES
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        weights.load(tmp_path)


def test_damaged_voices(tmp_path: Path) -> None:
    """Whatever bytes are changed or lost: one clear error, nothing else."""
    path, config = tmp_path / weights.VOICES, tiny_config("7b")
    torch.save({"Ann": voice_entry() | {"bos_token": -1}}, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            weights.read_voices(path, config)


def test_no_voices(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    weights.save(weights.load(tiny_checkpoint("7b")), tmp_path)
    (tmp_path / weights.VOICES).unlink()
    assert weights.load(tmp_path).voices == {}


# ---- finding


def test_hub_id(tiny_checkpoint: Checkpoints, monkeypatch) -> None:
    asked = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tiny_checkpoint("3b"))

    monkeypatch.setattr(weights, "snapshot_download", download)
    assert weights.load("Qwen/Qwen2.5-Omni-3B").folder == tiny_checkpoint("3b")
    [(name, patterns)] = asked
    assert name == "Qwen/Qwen2.5-Omni-3B"
    assert {"*.safetensors", "*.json", "spk_dict.pt", "merges.txt"} <= set(patterns)
    assert "*.bin" not in patterns and "*.pt" not in patterns


def test_hub_out_of_reach(tmp_path: Path) -> None:
    """In a process of its own, because the hub's library reads its environment when imported."""
    code = 'from thinktalk import weights; weights.load("nobody/no-model")'
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: nobody/no-model is neither a folder nor"), last


@pytest.mark.parametrize("name", ["no-such-model", "./missing/folder", "/nowhere/at/all", __file__])
def test_neither_folder_nor_id(name: str) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint: give a folder"):
        weights.load(name)


# ---- the reference


@pytest.mark.reference
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shard_bytes", [5e9, 2e6])
def test_transformers_loads_what_we_save(tiny_checkpoint, tmp_path, geometry, shard_bytes) -> None:
    from reference import transformers

    ours = weights.load(tiny_checkpoint(geometry))
    folder, back = tmp_path / "ours", tmp_path / "theirs"
    weights.save(ours, folder, shard_bytes=shard_bytes)
    theirs = transformers.Qwen2_5OmniForConditionalGeneration
    # Omni's own from_pretrained cannot return the report, its base class can
    base = transformers.PreTrainedModel.from_pretrained.__func__
    model, report = base(theirs, folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert set(report["unexpected_keys"]) <= {weights.DIT_FREQUENCIES}
    model.save_pretrained(back)
    state = ours.omni.state_dict()
    reloaded = {n: t for p in back.glob("*.safetensors") for n, t in load_file(p).items()}
    del state[weights.DIT_FREQUENCIES]
    reloaded.pop(weights.DIT_FREQUENCIES, None)
    assert same(state, reloaded)
    assert list(theirs.from_pretrained(folder).speaker_map) == list(VOICE_IDS)
    transformers.Qwen2_5OmniProcessor.from_pretrained(folder)


@pytest.mark.reference
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_we_load_what_transformers_saves(tiny_checkpoint, tmp_path, geometry) -> None:
    from reference import transformers

    ours = weights.load(tiny_checkpoint(geometry))
    model = transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(ours.folder)
    model.save_pretrained(tmp_path)
    again = weights.load(tmp_path)
    assert again.config == ours.config
    assert same(again.omni.state_dict(), ours.omni.state_dict())
