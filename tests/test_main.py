"""The command line and the public names: what they accept, do, refuse, and do not import."""

import io
import json
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import thinktalk
from thinktalk import __main__ as command_line
from thinktalk import terminal
from thinktalk.__main__ import main
from thinktalk.eval import command as eval_command
from thinktalk.eval import run as eval_run
from thinktalk.live.engine import Engine
from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT
from thinktalk.serve import command as serve_command
from thinktalk.serve.fetch import Remote
from thinktalk.train import assemble, command, lessons, plot, recipe, tuning

ROOT = Path(__file__).parents[1]
QUESTION = str(ROOT / "examples" / "question.wav")
SHORT = ("--max-text-tokens", "4", "--max-codec-ids", "3")


@pytest.mark.parametrize(
    "command",
    ["", "chat", "train", "train sft", "train spark", "train cases", "train plot", "eval", "bench"],
)
def test_help_without_torch(command: str) -> None:
    # -X importtime writes one line per imported module to stderr
    call = [sys.executable, "-X", "importtime", "-m", "thinktalk", *command.split(), "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "thinktalk" in modules and not {"torch", "numpy", "matplotlib"} & modules
    assert f"usage: thinktalk {command}".strip() in done.stdout


def test_spelled_out_names() -> None:
    """--help lists, without importing them, what the code has."""
    assert command.SPARK_STAGES.keys() == {**recipe.STAGES, **lessons.lessons()}.keys()
    assert command.COURSES.keys() == tuning.COURSES.keys()
    assert eval_command.SUITES == eval_run.SUITES
    assert tuple(eval_run.groups()) == eval_command.GROUPS
    assert get_args(Remote) == serve_command.REMOTE
    known: set[str] = set()
    for stage, (_, earlier) in command.SPARK_STAGES.items():
        assert known >= {*earlier} >= {*recipe.BUILDS_ON.get(stage, ())}
        known.add(stage)


def test_public_names() -> None:
    assert {*thinktalk.__all__} <= {*dir(thinktalk)}
    assert all(callable(getattr(thinktalk, name)) for name in thinktalk.__all__)
    assert (Path(thinktalk.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = thinktalk.nothing  # type: ignore[attr-defined]


# ---- chat


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[[str], Path]) -> str:
    return str(tiny_checkpoint("7b"))


def test_chat_answers_as_generate_does(folder: str, tmp_path: Path) -> None:
    wav = tmp_path / "answer.wav"
    # parts may stand behind options, too
    options = ("--model", folder, *SHORT, "--voice", "Ethan", "--seed", "3", "--speak", str(wav))
    call = [sys.executable, "-m", "thinktalk", "chat", "what", QUESTION, *options, "is this?"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, encoding="utf-8", env=env)
    assert done.returncode == 0 and not done.stderr, done.stderr
    answer = thinktalk.generate(
        thinktalk.load(folder),
        ["what", QUESTION, "is this?"],
        voice="Ethan",
        seed=3,
        max_text_tokens=4,
        max_codec_ids=3,
    )
    assert done.stdout == answer.text + "\n"
    with wave.open(str(wav)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert file.getnframes() == len(answer.audio) > 0
        answer.save(tmp_path / "same.wav")
        assert wav.read_bytes() == (tmp_path / "same.wav").read_bytes()


def test_chat_options_reach_generate(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def generate(model: Any, messages: Any, **options: Any) -> thinktalk.Answer:
        seen.append(options | {"dtype": model.omni.thinker.lm_head.weight.dtype})
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "generate", generate)
    options = ("--exact", "--system", "be kind", "--dtype", "bfloat16", "--text-only")
    assert main(["chat", "hi", "--model", folder, *options]) == command_line.INTERRUPTED
    assert main(["chat", "hi", "--model", folder]) == command_line.INTERRUPTED
    first, second = seen
    assert (first["exact"], first["system"], first["dtype"]) == (True, "be kind", torch.bfloat16)
    assert (second["exact"], second["system"]) == (False, SPEECH_SYSTEM_PROMPT)
    assert not second["speak"]  # nobody would hear it
    assert second["max_text_tokens"] == 1024 and second["max_codec_ids"] == 4096


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.wav"], "nowhere.wav does not exist; check the path"),
        ([""], "message 1 (user) is empty"),
        (["README.md"], "README.md is a file, but"),
        (["hi", "--voice", "Bob"], "unknown voice 'Bob'; this model has Chelsie, Ethan"),
        (["hi", "--speak", "nowhere/a.wav"], "the folder nowhere does not exist"),
        (["hi", "--speak", "a.doc"], "give one of .wav"),
        (["hi", "--speak", "a.wav", "--text-only"], "--text-only makes no sound"),
        (["hi", "--max-text-tokens", "0"], "max_text_tokens is 0"),
        (["hi", "--device", "toaster"], 'device "toaster" cannot be used'),
        (["hi", "--model", "nowhere/at/all"], "nowhere/at/all is not a checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_chat_refuses_in_one_sentence(
    folder: str,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["chat", "--model", folder, *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("thinktalk chat: ") and err.count("\n") == 1
    assert sentence in err


def test_chat_without_voices(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = tmp_path / "mute"
    shutil.copytree(folder, mute, ignore=shutil.ignore_patterns("spk_dict.pt"))
    arguments = ["chat", "hi", "--model", str(mute), *SHORT]
    assert main(arguments) == 0
    assert capsys.readouterr().out
    assert main([*arguments, "--speak", str(tmp_path / "a.wav")]) == 2
    assert "has no voices" in capsys.readouterr().err


def test_chat_from_a_pipe(
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lines in, answers out: errors and commands neither end it nor appear among the answers."""
    lines = [b"one", b"nowhere.png", b"/voice Ethan", b"\xff two", b"/quit", b"three"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines)), "utf-8"))
    sound = tmp_path / "reply.wav"
    assert main(["chat", "--model", folder, *SHORT, "--speak", str(sound)]) == 0
    out, err = capsys.readouterr()
    assert "nowhere.png does not exist" in err
    model = thinktalk.load(folder)
    reply = partial(thinktalk.generate, model, max_text_tokens=4, max_codec_ids=3)
    first = reply(["one"])
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "\ufffd two"},
    ]
    second = reply(messages, voice="Ethan")
    assert out == f"{first.text}\n{second.text}\n"
    for number, answer in enumerate((first, second), 1):
        with wave.open(str(tmp_path / f"reply-{number}.wav")) as file:
            assert file.getnframes() == len(answer.audio) > 0
    assert len(list(tmp_path.iterdir())) == 2


# ---- train and eval


def test_train_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def run_stage(name: str, **options: Any) -> bool:
        calls.append((name, options))
        return name == "vocoder"

    monkeypatch.setattr(recipe, "run_stage", run_stage)
    folders = ["--data", str(tmp_path / "data"), "--run", str(tmp_path / "run")]
    assert main(["train", "spark", "--only", "vocoder", *folders]) == 0
    assert main(["train", "spark", "--only", "typed", *folders, "--minutes", "5"]) == 0
    assert [name for name, _ in calls] == ["vocoder", "typed"]
    assert calls[1][1] == {
        "data": tmp_path / "data", "run": tmp_path / "run", "device": "cpu", "minutes": 5.0,
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "vocoder is done" in out and "the same command continues" in out
    monkeypatch.undo()
    assert main(["train", "spark", "--only", "talker", *folders]) == 2
    assert "builds on tokenizer, which is not finished" in capsys.readouterr().err
    assert main(["train", "spark", "--only", "vocoder", *folders, "--device", "toaster"]) == 2
    assert main(["train", "spark", *folders]) == 2
    assert "Give --out" in capsys.readouterr().err
    assert main(["train", "spark", *folders, "--out", "o", "--minutes", "3"]) == 2
    assert "give --only" in capsys.readouterr().err


def test_train_everything_and_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: dict[str, Any] = {}
    monkeypatch.setattr(recipe, "train_spark", lambda **options: calls.update(options))
    monkeypatch.setattr(recipe, "make_data", lambda data: calls.update(made=data))
    monkeypatch.setattr(assemble, "write_companions", lambda folder: calls.update(text=folder))
    folders = ["--data", "d", "--run", str(tmp_path)]
    assert main(["train", "spark", *folders, "--out", "o"]) == 0
    assert calls == {"data": Path("d"), "run": tmp_path, "out": Path("o"), "device": "cpu"}
    assert main(["train", "data", *folders]) == 0
    assert (calls["made"], calls["text"]) == (Path("d"), tmp_path / "text")


def test_train_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"step": 20, "seconds": 1.0, "text": 3.0, "right": 0.1, "gradient": 1.0},
        {"step": 40, "seconds": 2.0, "text": 9.0, "right": 0.2, "gradient": 1.0},
        {"step": 40, "test_spoken": 0.5},
        {"step": 40, "seconds": 1.0, "text": 2.0, "right": 0.3, "gradient": 1.0},
    ]
    found = plot.curves(rows)
    assert found == {
        "right": {20: 0.1, 40: 0.3}, "test_spoken": {40: 0.5}, "text": {20: 3.0, 40: 2.0},
    }  # fmt: skip
    out = tmp_path / "curves.png"
    arguments = ["train", "plot", "--run", str(tmp_path), "--out", str(out)]
    assert main(arguments) == 2
    assert "holds no stage with a log.jsonl" in capsys.readouterr().err
    for name in ("thinker", "vocoder"):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "log.jsonl").write_text(lines)
    assert main(arguments) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments[:-1], str(tmp_path / "curves.doc")]) == 2


def test_eval(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(eval_run, "run", lambda model, **options: calls.append((model, options)))
    arguments = ["--model", folder, "--cases", "7", "--out", str(tmp_path)]
    assert main(["eval", "playroom", *arguments]) == 0
    assert main(["eval", "playroom", *arguments, "--only", "seen", "--only", "when"]) == 0
    (model, every), (_, some) = calls
    assert str(model.folder) == folder
    engine = every.pop("engine")
    assert isinstance(engine, Engine) and engine.max_sessions == 2
    engine.close()
    assert every == {"suite": "playroom", "cases": 7, "only": (), "out": tmp_path}
    assert some["only"] == ("seen", "when") and some["engine"] is None


def test_train_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "cases", "--out", str(tmp_path), "--tasks", "shape, when", "--workers=1"]
    more = ["--cases", "3", "--split", "test", "--asked", "typed", "--mute", "--seed", "4"]
    assert main([*arguments, *more]) == 0
    rows = [json.loads(li) for li in (tmp_path / "data.jsonl").read_text("utf-8").splitlines()]
    assert [row["task"] for row in rows] == ["shape", "when", "shape"]
    assert rows[0]["messages"][0]["content"] == "<image>what do you see?"
    assert rows[1]["videos"] and not any(row["speech"] for row in rows)
    assert main([*arguments, "--cases", "3"]) == 2
    assert "holds another set" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "thinktalk.train.plot")
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["train", "plot", "--run", str(tmp_path), "--out", "c.png"]) == 2
    assert "pip install 'thinktalk[train]'" in capsys.readouterr().err


def test_unknown_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["chat", "hi", "--nonsense"], ["train", "nothing"], ["eval", "nothing"], []):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err
