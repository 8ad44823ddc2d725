"""From nothing through every stage: the commands of docs/training.md as they stand, made smaller.

They run in order, each on what the one before has written; the Talker's is killed and given again.
And every stage alone, on the shipped checkpoint.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_talk
import torch
from safetensors.torch import load_file

import thinktalk
from thinktalk.__main__ import main
from thinktalk.media.encode import write_wav
from thinktalk.options import GREEDY
from thinktalk.playroom import speech
from thinktalk.train import candidates, trainer, tuning
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.journal import curve
from thinktalk.train.voice import ENCODER_FILE
from thinktalk.weights import COMPANIONS, VOICES, find

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
SECTION = "Every stage, in one sequence"

FEW = "--set warmup_steps=1 --set learning_rate=1e-3 --steps"
# What is put behind a command, by the folder (or file) that it writes: fewer cases, steps, samples.
SMALLER = {
    "cases": "--cases 10 --seed 7 --workers 1",
    "typed": "--cases 6 --workers 1",
    "new": "",
    "tokenizer": f"{FEW} 24 --set batch_size=3",  # fewer, and there is one code for everything
    "reader": f"{FEW} 6 --set batch_size=3",
    "dit": f"{FEW} 4 --set batch_size=3",
    "vocoder": f"{FEW} 4 --set batch_size=1",
    "words": f"{FEW} 4",
    "align": f"{FEW} 3",
    "omni": f"{FEW} 3",
    "long": f"{FEW} 3",
    "sft": f"{FEW} 3",
    "talker": f"{FEW} 5 --set batch_size=4",
    "joint": f"{FEW} 4 --set batch_size=4 --set learning_rate=3e-4",
    "pairs": f"--rows 3 --samples 3 --temperature 4 --recogniser '{sys.executable} ear.py'",
    "dpo": f"{FEW} 4",
    "anna": "",
    "voices": f"{FEW} 4 --set batch_size=4",
    "results": "--cases 1 --only typed",
    "hello.wav": "--max-text-tokens 8 --max-codec-ids 20",
}
VOCODER, DIT = "token2wav.code2wav_bigvgan_model.", "token2wav.code2wav_dit_model."
EAR, EYE, TALKER = "thinker.audio_tower.", "thinker.visual.", "talker."
DECODER = ("thinker.model.", "thinker.lm_head.")
WORDS = "thinker.model.embed_tokens.weight"
# By the same names: the figure that falls, and where the weights are that change, everywhere there.
LEARNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokenizer": ("mel", ()),
    "reader": ("letters", ()),
    "dit": ("velocity", (DIT,)),
    "vocoder": ("mel", (VOCODER,)),
    "words": ("text", DECODER),
    "align": ("text", (EAR, EYE)),
    "omni": ("text", (*DECODER, EAR, EYE)),
    "long": ("text", (*DECODER, EAR, EYE)),
    "sft": ("text", (*DECODER, EAR, EYE)),
    "talker": ("codec", (TALKER, WORDS)),
    "joint": ("codec", (TALKER, *DECODER, EAR, EYE)),
    "dpo": ("preference", (TALKER,)),
    "voices": ("codec", (TALKER, WORDS)),
}
KILLED = "talker"
MIDDLE = 3  # steps that the killed one takes
# The command as a process that keeps all it has learned, and in the middle waits for its end.
WAITING = f"""
import sys, time
from functools import partial
from thinktalk.__main__ import main
from thinktalk.train import trainer, tuning
step = trainer.Training.step
def waiting(self, parts, journal):
    while self.num_steps == {MIDDLE}:
        time.sleep(1)
    step(self, parts, journal)
trainer.Training.step = waiting
tuning.train = partial(tuning.train, save_every_s=0)
sys.exit(main(sys.argv[1:]))
"""
# Hears other words in every wave, for nobody can understand what was trained for four steps.
DEAF = "import sys, zlib\nprint('one ' * (zlib.crc32(open(sys.argv[-1], 'rb').read()) % 9))\n"
SENTENCE = "the red bird is happy, two times five is ten, and the opposite of hot is cold."


@dataclass(frozen=True)
class Outcome:
    """What a stage did. figures: rows of the log of its last part; changed: names of weights."""

    figures: list[dict[str, Any]]
    changed: set[str]
    files: dict[str, tuple[bytes, bytes]]  # before and after, of all but the weights


def documented() -> list[list[str]]:
    """The arguments of the section's commands, in order."""
    text = PAGE.read_text().split(f"\n## {SECTION}\n")[1].split("\n## ")[0]
    code = "".join(re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
    lines = [shlex.split(line) for line in code.replace("\\\n", " ").splitlines() if line]
    assert all(words[0] == "thinktalk" for words in lines)
    return [words[1:] for words in lines]


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def target(words: list[str]) -> str:
    """The folder, or the file, that a command writes."""
    return Path(after(words, "--speak" if words[0] == "chat" else "--out")).name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands are given: a recording, rows and an ear of the user's are there."""
    folder = tmp_path_factory.mktemp("place")
    samples, _ = speech.flite(SENTENCE, voice="awb", timed=False)
    write_wav(folder / "anna.wav", samples.astype(np.float32), speech.FLITE_HZ)
    reply = {"role": "assistant", "content": SENTENCE, "speech": "anna.wav", "speaker": "anna"}
    row = {"messages": [{"role": "user", "content": "say something."}, reply]}
    small_talk.write_rows(folder / "anna.jsonl", [row])
    (folder / "ear.py").write_text(DEAF)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tuning, "train", partial(trainer.train, log_every=1))
        patch.setattr(candidates, "SPARE_IDS", 14)
        patch.setattr(candidates, "IDS_PER_LETTER", 0)
        patch.setattr(candidates, "MOST_OF_CHOSEN", 100)  # four steps make nothing right
        yield folder
    shutil.rmtree(folder)  # a gigabyte


@pytest.fixture(scope="module")
def outcomes(place: Path) -> dict[str, Outcome]:
    """All commands, run."""
    found = {}
    for words in documented():
        name = target(words)
        words = [*words, *shlex.split(SMALLER[name])]
        if name == KILLED:
            undisturbed = ["runs/undisturbed" if word == "runs/talker" else word for word in words]
            assert main(undisturbed) == 0
            kill_in_the_middle(words)
        assert main(words) == 0, words
        if name in LEARNS:
            found[name] = outcome(Path(after(words, "--model")), Path("runs", name))
    return found


def kill_in_the_middle(words: list[str]) -> None:
    """By SIGKILL, when what the first steps learned has just been kept."""
    stage = Path(after(words, "--out"), "talker")
    process = subprocess.Popen([sys.executable, "-c", WAITING, *words])
    while process.poll() is None and not list(stage.glob("checkpoint-*[0-9]")):
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -9
    assert not (stage.parent / "model").exists()


def outcome(base: Path, run: Path) -> Outcome:
    base = find(str(base))
    before, after_ = (load_file(folder / "model.safetensors") for folder in (base, run / "model"))
    assert before.keys() == after_.keys()
    kept = [name for name in (*COMPANIONS, VOICES, ENCODER_FILE) if (base / name).exists()]
    last = max(run.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime).parent
    return Outcome(
        curve(last),
        {name for name in before if not torch.equal(before[name], after_[name])},
        {name: ((base / name).read_bytes(), (run / "model" / name).read_bytes()) for name in kept},
    )


def is_there(name: str, places: tuple[str, ...]) -> bool:
    return name.startswith(places) if places else False


# ---- the sequence


def test_every_stage_is_documented_and_builds_on_the_one_before() -> None:
    commands = documented()
    assert [target(words) for words in commands] == list(SMALLER)
    stages = {words[1] for words in commands if words[0] == "train"}
    assert stages >= {*tuning.COURSES, "cases", "new", "pairs"}
    written = ""
    for words in commands:
        if "--model" in words:
            model = after(words, "--model").removesuffix("/model")
            assert model == ("runs/joint" if target(words) == "dpo" else written), words
        written = after(words, "--out") if "--out" in words else written
        written = "runs/voices" if target(words) == "results" else written


@pytest.mark.parametrize("name", LEARNS)
def test_it_learns(outcomes: dict[str, Outcome], name: str) -> None:
    figure = LEARNS[name][0]
    values = [row[figure] for row in outcomes[name].figures if figure in row]
    assert len(values) >= 3 and np.isfinite(values).all()
    assert min(values[len(values) // 2 :]) < 0.99 * values[0], values


@pytest.mark.parametrize("name", LEARNS)
def test_the_rest_stays_bit_for_bit(outcomes: dict[str, Outcome], name: str) -> None:
    places, found = LEARNS[name][1], outcomes[name]
    assert all(is_there(weight, places) for weight in found.changed), sorted(found.changed)[:3]
    for place_ in places:
        assert any(weight.startswith(place_) for weight in found.changed), place_
    changed = {file for file, (before, now) in found.files.items() if before != now}
    assert changed <= {VOICES}  # the same voices, written again
    assert found.files.keys() >= {"tokenizer.json", "preprocessor_config.json", VOICES}
    assert (ENCODER_FILE in found.files) == (name != "tokenizer")


def test_what_was_killed_ends_as_what_was_not(outcomes: dict[str, Outcome]) -> None:
    ours, theirs = (
        load_file(Path("runs", name, "model", "model.safetensors"))
        | best_weights(Path("runs", name, "talker"))
        for name in (KILLED, "undisturbed")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    steps = [row["step"] for row in outcomes[KILLED].figures if "loss" in row]
    whole = [row["step"] for row in curve(Path("runs/undisturbed/talker")) if "loss" in row]
    assert steps[-1] == whole[-1] and 0 < len(steps) < len(whole)  # the first ones were kept


def test_the_last_checkpoint_speaks(outcomes: dict[str, Outcome]) -> None:
    model = thinktalk.load("runs/voices/model")
    assert list(model.voices) == ["Chelsie", "Ethan", "anna"]
    for voice in model.voices:
        answer = thinktalk.generate(
            model, ["hello."], voice=voice, max_text_tokens=6, max_codec_ids=20
        )
        assert answer.codec_ids and len(answer.audio) == 480 * len(answer.codec_ids)
        assert np.isfinite(answer.audio).all() and np.abs(answer.audio).max() > 0
    assert Path("hello.wav").stat().st_size > 1000
    assert json.loads(Path("runs/results/results.json").read_text())["rows"]


# ---- each alone, on the shipped checkpoint


ALONE = {name: name for name in tuning.COURSES} | {"joint": "talker"}
PLACES = {name: LEARNS[name][1] for name in LEARNS} | {
    "talker-dpo": (TALKER,),
    "talker-voice": (TALKER, WORDS),
}


@pytest.mark.parametrize("name", ALONE)
def test_alone_on_spark(outcomes: dict[str, Outcome], name: str) -> None:
    """Two steps: what it learns moves, all else stays, and spark answers and speaks as before."""
    out, stage = Path("alone", name), ALONE[name]
    pair = small_talk.coded("hello.", "good morning to you.", [3, 4, 5, 6], "Ethan")
    small_talk.write_rows(Path("pairs.jsonl"), [pair | {"rejected_codes": [7, 8]}])
    words = ["train", stage, "--data", "pairs.jsonl" if stage == "talker-dpo" else "runs/cases"]
    words += shlex.split("--steps 2 --set learning_rate=1e-4 --set warmup_steps=1")
    words += ["--set", "joint=true"] if name == "joint" else []
    assert main([*words, "--set", "batch_size=2", "--out", str(out)]) == 0
    found = outcome(Path("spark"), out)
    assert all(is_there(weight, PLACES[name]) for weight in found.changed)
    for place_ in PLACES[name]:
        assert any(weight.startswith(place_) for weight in found.changed), place_
    changed = {file for file, (before, now) in found.files.items() if before != now} - {VOICES}
    assert changed == ({ENCODER_FILE} if stage == "tokenizer" else set())
    model = thinktalk.load(out / "model")
    answer = thinktalk.generate(
        model, ["what is three plus four?"], text=GREEDY, max_codec_ids=13, voice="Ethan"
    )
    assert answer.text == "three plus four is seven."
    assert len(answer.audio) == 480 * len(answer.codec_ids) and np.isfinite(answer.audio).all()
    shutil.rmtree(out)
