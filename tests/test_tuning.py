"""Stages on people's rows: any checkpoint in, in legs or on two ranks, the whole checkpoint out."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from data_samples import LLAMA_FACTORY, SWIFT, write
from ranks import on_ranks
from safetensors.torch import load_file, save_file
from tiny import build
from torch import Tensor

import thinktalk
from thinktalk import adapters
from thinktalk.__main__ import main
from thinktalk.adapters import Lora
from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.train import tuning
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.journal import curve
from thinktalk.train.tuning import merge_adapter, train_on
from thinktalk.train.voice import ENCODER_FILE, save_speech_encoder

QUICK = {"warmup_steps": 1, "learning_rate": 3e-3, "bfloat16": False, "parts": 2, "steps": 4}
LORA = Lora(r=2, alpha=4.0)
MEDIA_ROWS = (
    {"messages": [["user", "<audio>what?"], ["assistant", "a bell"]], "audios": ["media/bell.wav"]},
    {"messages": [["user", "<image>what?"], ["assistant", "a cat"]], "images": ["media/cat.png"]},
    {"messages": [["user", "hi"], ["assistant", "hello, you"], ["user", "and?"],
                  ["assistant", "no"]]},
    {"messages": [["user", "<image>"], ["assistant", "dog"]], "images": ["media/dog.jpg"]},
    {"messages": [["user", "say so"], ["assistant", "so"]]},
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build(folder, "7b")
    torch.manual_seed(0)
    save_speech_encoder(SpeechTokenizer(SpeechTokenizerConfig()), folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ours, five rows that fill two packs and a half, and the folders of two other trainers."""
    folder = tmp_path_factory.mktemp("rows")
    write(folder / "factory", LLAMA_FACTORY)
    write(folder / "swift", {name: t for name, t in SWIFT.items() if name != "grpo.jsonl"})
    write(folder, {"rows.jsonl": lines(MEDIA_ROWS)})
    return folder


def lines(rows: Any) -> str:
    turns = [[{"role": role, "content": text} for role, text in row["messages"]] for row in rows]
    return "".join(
        json.dumps(row | {"messages": messages}) + "\n"
        for row, messages in zip(rows, turns, strict=True)
    )


def sft(base: Path, rows: Path, out: Path, **options: Any) -> bool:
    """Two rows in a part, so the five of them end within a step."""
    changes = QUICK | {"batch_size": 2} | options.pop("changes", {})
    data = options.pop("data", [rows / "rows.jsonl"])
    return train_on("sft", model=base, data=data, out=out, changes=changes, **options)


@pytest.fixture(scope="module")
def whole(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert sft(base, rows, out, held=[rows / "rows.jsonl"])
    return out


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    ours, theirs = weights_of(before), weights_of(after)
    assert ours.keys() == theirs.keys()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def test_the_checkpoint_is_whole_and_speaks(base: Path, whole: Path) -> None:
    """What was not trained is as it was, bit for bit, and so are all other files."""
    differing = changed(base, whole / "model")
    assert all(name.startswith("thinker.") for name in differing)
    for part in ("thinker.model.layers.0.", "thinker.audio_tower.", "thinker.visual."):
        assert any(name.startswith(part) for name in differing)
    trained = best_weights(whole / "sft")["thinker.lm_head.weight"]
    assert torch.equal(weights_of(whole / "model")["thinker.lm_head.weight"], trained)
    for path in base.iterdir():
        if path.suffix == ".json" or path.name == ENCODER_FILE:
            assert (whole / "model" / path.name).read_bytes() == path.read_bytes(), path.name
    model = thinktalk.load(whole / "model")
    answer = thinktalk.generate(model, ["hi"], max_text_tokens=4, max_codec_ids=4, voice="Ethan")
    assert answer.text_ids and len(answer.audio) == 480 * len(answer.codec_ids)


def test_figures_are_told(whole: Path) -> None:
    last = curve(whole / "sft")[-1]
    assert {"test_text", "test_text_audio", "test_text_image", "test_right"} <= last.keys()
    assert 0 < last["test_drift"] < 1


def test_legs_give_what_one_leg_gives(base: Path, rows: Path, whole: Path, tmp_path: Path) -> None:
    """Broken off after every step, and so in the middle of an epoch."""
    out = tmp_path / "run"
    done = [sft(base, rows, out, minutes=0.0) for _ in range(4)]
    assert done == [False, False, False, True]
    assert not changed(whole / "model", out / "model")


def on_one_of_two(base: Path, rows: Path, out: Path) -> None:
    sft(base, rows, out / "all")
    sft(base, rows, out / "additions", lora=LORA)


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Adam divides by the size of the gradient: a gradient that is rounding alone still makes a
    step. On an Intel Xeon one weight of all was seen to be 6e-5 apart (they move by up to 5e-3)."""
    apart = torch.cat([(ours[name] - theirs[name]).abs().flatten().float() for name in ours])
    assert (apart >= 2e-5).sum() <= 1 and apart.max() < 1e-4


def test_two_ranks_give_what_one_gives(
    base: Path, rows: Path, whole: Path, additions: Path, tmp_path: Path
) -> None:
    """Ranks that see different media, trained as a whole and by additions."""
    on_ranks(on_one_of_two, base, rows, tmp_path)
    for one, two in ((whole, tmp_path / "all"), (additions, tmp_path / "additions")):
        ours, theirs = weights_of(two / "model"), weights_of(one / "model")
        assert_alike(ours, theirs)
    first, second = (best_weights(run / "sft") for run in (additions, tmp_path / "additions"))
    assert_alike(first, second)


# ---- additions


@pytest.fixture(scope="module")
def additions(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("additions") / "run"
    assert sft(base, rows, out, lora=LORA)
    return out


def test_additions_alone_are_trained_and_saved(base: Path, additions: Path) -> None:
    saved = best_weights(additions / "sft")
    assert len(saved) == 3 * 7 * 2 and all(name.endswith(adapters.ENDS) for name in saved)
    differing = changed(base, additions / "model")
    assert differing == {name.rpartition(".lora_")[0] + ".weight" for name in saved}


def test_the_adapter_and_the_merged_checkpoint_agree(
    base: Path, additions: Path, tmp_path: Path
) -> None:
    merge_adapter(base, additions / "adapter", tmp_path / "merged")
    ours, theirs = weights_of(tmp_path / "merged"), weights_of(additions / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_additions_are_refused_where_encoders_are_aligned(base: Path, rows: Path) -> None:
    with pytest.raises(ValueError, match="align trains weights as they are"):
        train_on("align", model=base, data=[rows], out=rows / "x", lora=LORA)


# ---- data


@pytest.mark.parametrize("maker", ["factory", "swift"])
def test_rows_of_other_trainers_are_trained_unmodified(
    base: Path, rows: Path, tmp_path: Path, maker: str
) -> None:
    """Everything in their folder, conversations, pairs and labelled replies."""
    changes = {"batch_tokens": 4096, "batch_size": 0, "parts": 1, "epochs": 2, "packed": True}
    assert sft(base, rows, tmp_path / "run", data=[rows / maker], changes=changes)
    losses = [row["loss"] for row in curve(tmp_path / "run/sft") if "loss" in row]
    assert not losses  # two packs at most: fewer steps than a row of the log
    assert changed(base, tmp_path / "run/model")


def test_align_trains_the_last_layers_then_the_encoders(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    changes = QUICK | {"steps": 1, "batch_size": 5, "parts": 1}
    data = [(rows / "rows.jsonl", 1.0), (rows / "swift/sft.jsonl", 2.0)]
    assert train_on("align", model=base, data=data, out=tmp_path, changes=changes)
    before = {f"thinker.{n}": t for n, t in thinktalk.load(base).omni.thinker.state_dict().items()}
    first, second = (best_weights(tmp_path / part) for part in ("adapters", "encoders"))

    def moved(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
        return {name for name in a if not torch.equal(a[name], b[name])}

    ends = ("audio_tower.proj.", "audio_tower.ln_post.", "visual.merger.")
    assert {n.startswith(tuple(f"thinker.{e}" for e in ends)) for n in moved(before, first)} == {
        True
    }
    encoders = ("thinker.audio_tower.layers.0.", "thinker.visual.blocks.0.")
    later = moved(first, second)
    assert all(any(name.startswith(part) for name in later) for part in encoders)
    assert not any(name.startswith(("thinker.model.", "thinker.lm_head")) for name in later)
    assert changed(base, tmp_path / "model") == moved(before, second)


def test_long_rows_are_trained_with_less_memory(base: Path, rows: Path, tmp_path: Path) -> None:
    """Activations computed again, on all rows in one: the loss of the whole is the same."""
    losses = []
    for name in ("long", "omni"):
        changes = QUICK | {"steps": 1, "parts": 1}
        options: dict[str, Any] = {"model": base, "data": [rows / "rows.jsonl"], "changes": changes}
        assert train_on(name, **options, held=options["data"], out=tmp_path / name)
        losses.append(curve(tmp_path / name / name)[-1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# ---- what goes wrong


def test_missing_media_and_wrong_tags_are_told_by_line(
    base: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = lines(
        [
            {"messages": [["user", "<audio>"], ["assistant", "x"]], "audios": ["none.wav"]},
            {"messages": [["user", "<image>"], ["assistant", "x"]], "images": []},
        ]
    )
    path = rows / "bad.jsonl"
    path.write_text(lines(MEDIA_ROWS) + bad)
    with pytest.raises(ValueError, match="2 of 7 rows cannot be used") as error:
        sft(base, rows, tmp_path / "run", data=[path])
    assert "bad.jsonl:6: " in str(error.value) and "none.wav does not exist" in str(error.value)
    assert "bad.jsonl:7: there are 1 <image> tags for 0 images" in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert sft(base, rows, tmp_path / "run", data=[path], max_bad_share=0.3,
                   changes={"steps": 1, "parts": 1})  # fmt: skip
    assert "skipped" in caplog.text and "speech may drift" in caplog.text


def test_a_full_disk_costs_nothing(
    base: Path, rows: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def full(model: Any, folder: Path, **_: Any) -> None:
        calls.append(folder)
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "save", full)
        with pytest.raises(ValueError, match=r"run/model cannot be written \(.*No space left"):
            sft(base, rows, out)
    assert calls and not calls[0].exists() and not (out / "model").exists()
    before = (out / "sft/log.jsonl").exists(), sorted(p.name for p in (out / "sft").iterdir())
    assert sft(base, rows, out)
    assert before[1] == sorted(p.name for p in (out / "sft").iterdir())  # nothing was trained again
    assert not changed(whole / "model", out / "model")


def test_a_folder_serves_one_run(base: Path, rows: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "3b"
    build(other, "3b")
    with pytest.raises(ValueError, match="holds a run with model"):
        sft(other, rows, whole)
    note = json.loads((whole / tuning.NOTE).read_text())
    (tmp_path / "run/sft").mkdir(parents=True)
    for path in (whole / "sft").glob("checkpoint-*/*"):
        copy = tmp_path / "run" / path.relative_to(whole)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "run" / tuning.NOTE).write_text(json.dumps(note | {"model": str(other)}))
    with pytest.raises(ValueError, match="is of another network"):
        sft(shallower(other), rows, tmp_path / "run")


def shallower(folder: Path) -> Path:
    """The same checkpoint with one layer of the Thinker less."""
    config = json.loads((folder / "config.json").read_text())
    config["thinker_config"]["text_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    kept = {n: t for n, t in weights_of(folder).items() if "thinker.model.layers.2." not in n}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"changes": {"stepps": 3}}, "a stage has no 'stepps'; its numbers are name, steps"),
        ({"changes": {"steps": "many"}}, "steps is 2000, so it cannot become 'many'"),
        ({"data": ["nothing.jsonl"]}, "nothing.jsonl does not exist"),
        ({"model": "no/where/at all"}, "is not a checkpoint"),
        ({"name": "sfft"}, "unknown stage 'sfft': choose one of align"),
        ({"device": "toaster"}, "cannot be used here"),
        ({"changes": {"frozen": "thinker.ears.*"}}, r"no weight is called 'thinker.ears.\*'"),
    ],
)
def test_what_cannot_be_is_said(
    base: Path, rows: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    usual = {"name": "sft", "model": base, "data": [rows / "rows.jsonl"], "out": tmp_path}
    usual |= options
    with pytest.raises(ValueError, match=complaint):
        train_on(usual.pop("name"), **usual)


# ---- the command


def test_the_command_line(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "sft", "--model", str(base), "--out", str(tmp_path / "run"), "--steps", "2"]
    words += ["--data", f"{rows / 'rows.jsonl'}:2", str(rows / "swift/sft.jsonl"), "--lora", "2"]
    words += ["--set", "batch_size=2", "--set", "bfloat16=false", "--system", "be short"]
    assert main([*words, "--minutes", "0"]) == 0
    assert "not done: the same command continues" in capsys.readouterr().out
    assert main(words) == 0
    assert f"{tmp_path / 'run/model'} is ready" in capsys.readouterr().out
    description = json.loads((tmp_path / "run/adapter" / adapters.CONFIG).read_text())
    assert (description["r"], description["lora_alpha"]) == (2, 4)
    merge = ["train", "merge", "--model", str(base), "--adapter", str(tmp_path / "run/adapter")]
    assert main([*merge, "--out", str(tmp_path / "merged")]) == 0
    assert not changed(tmp_path / "run/model", tmp_path / "merged")
    assert main([*words, "--set", "steps"]) == 2
    assert "--set steps changes nothing" in capsys.readouterr().err
    assert main([*words[:-2], "--data", "a.jsonl:much"]) == 2
    assert "'much' is no weight" in capsys.readouterr().err
