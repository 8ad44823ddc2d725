"""The bench: what a listener heard, where time is looked for, what is written down."""

import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thinktalk.__main__ import main
from thinktalk.bench import distances, pairs, question, random_model, run, stages, tables, turn_end
from thinktalk.bench.plan import NETWORKS, Plan
from thinktalk.bench.player import play
from thinktalk.bench.watch import STAGES, Watch, endless
from thinktalk.live.api import AudioDelta, ResponseDone
from thinktalk.live.engine import Engine
from thinktalk.live.listen import Began, Ended, Listener
from thinktalk.options import ServerVad, Settings
from thinktalk.weights import LoadedModel, load

CPU = torch.device("cpu")
SHORT = Plan(random="tiny", sessions=(2,), seconds=1.5, reply_tokens=5, reply_seconds=0.6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return random_model.random_model("tiny", tmp_path_factory.mktemp("tiny"), device=CPU)


# ---- the player


def test_player_without_a_gap() -> None:
    """Chunks of 1 s that come faster than they are played; empty ones are no sound."""
    heard = play([(4.0, 0), (5.0, 100), (5.5, 100), (6.0, 0), (7.0, 100)], sample_rate=100)
    assert (heard.start_s, heard.end_s, heard.duration_s) == (5.0, 8.0, 3.0)
    assert (heard.underrun_s, heard.stalls, heard.is_continuous) == (0.0, 0, True)


def test_player_that_runs_dry() -> None:
    """Each gap delays everything behind it: 0.5 s, then 0.25 s later than it then would be."""
    heard = play([(1.0, 100), (2.5, 100), (3.75, 50)], sample_rate=100)
    assert heard.underrun_s == pytest.approx(0.75) and heard.stalls == 2
    assert heard.end_s == pytest.approx(4.25) and not heard.is_continuous
    # a player that had waited for so long would have played without a gap
    waiting = play([(1.75, 100), (2.5, 100), (3.75, 50)], sample_rate=100)
    assert waiting.stalls == 0


def test_player_without_sound() -> None:
    with pytest.raises(ValueError, match="no sound"):
        play([(1.0, 0)], sample_rate=100)


# ---- the question


def test_the_detector_hears_the_made_up_voice() -> None:
    sound = question.made_up(5.0)
    assert len(sound) == 80_000 and 0.3 < np.abs(sound).max() < 0.6
    assert question.voiced_s(sound) > 4.9
    listener = Listener(ServerVad())
    signals = listener.push(np.append(sound, np.zeros(16_000, np.float32)), sample_rate=16_000)
    ends_s = [signal.at_s for signal in signals if isinstance(signal, Ended)]
    assert sum(isinstance(signal, Began) for signal in signals) == len(ends_s) == 1
    assert ends_s[0] > 5.0


def test_a_recording_is_repeated(tmp_path: Path) -> None:
    recording = str(Path(__file__).parents[1] / "examples" / "question.wav")
    once = question.load_question(recording, seconds=1.0)
    thrice = question.load_question(recording, seconds=5.0)
    assert len(once) == 16_000 and len(thrice) == 80_000
    assert np.array_equal(once, thrice[:16_000]) and thrice[60_000:].any()


# ---- random models


@pytest.mark.parametrize(("size", "parameters"), [("7B", 10_732_225_408), ("3B", 5_537_120_640)])
def test_official_sizes(size: str, parameters: int, tmp_path: Path) -> None:
    """model.md computed them from the shapes of the official checkpoints. Without weights."""
    model = random_model.random_model(size, tmp_path, device=CPU, parts=lambda omni: [])
    assert sum(parameter.numel() for parameter in model.omni.parameters()) == parameters
    assert model.omni.thinker.dtype == torch.bfloat16


def test_random_weights_are_of_the_wanted_kind(tmp_path: Path) -> None:
    model = random_model.random_model(
        "tiny", tmp_path, device=CPU, dtype=torch.bfloat16, dit_dtype=torch.float16, seed=3
    )
    token2wav = model.omni.token2wav
    kinds = {p.dtype for p in (*model.omni.thinker.parameters(), *model.omni.talker.parameters())}
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in token2wav.code2wav_dit_model.parameters()} == {torch.float16}
    assert {p.dtype for p in token2wav.code2wav_bigvgan_model.parameters()} == {torch.float32}
    again = random_model.random_model("tiny", tmp_path, device=CPU, dtype=torch.bfloat16, seed=3)
    head = model.omni.thinker.lm_head.weight
    assert torch.equal(head, again.omni.thinker.lm_head.weight) and head.std() > 0


def test_every_id_has_a_text(tiny: LoadedModel) -> None:
    """Else there would be no first text to wait for."""
    tokenizer = Engine(tiny, max_sessions=1, thread=False).kit.tokenizer
    config = tiny.config.thinker_config
    special = {*config.media_token_ids, config.eos_token_id}
    silent = [i for i in range(config.text_config.vocab_size) if not tokenizer.token_bytes(i)]
    assert special <= set(silent) and len(silent) <= 10
    assert tokenizer.id_of("<|AUDIO|>") == config.audio_token_index


def test_unknown_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "--random", "13B", "--out", str(out)]) == 2
    assert "'13B'; choose one of 7B, 3B, spark, tiny" in capsys.readouterr().err
    assert not out.exists()


# ---- the watch


def test_watch_sees_every_stage_and_leaves_no_trace(tiny: LoadedModel) -> None:
    engine = Engine(tiny, max_sessions=1, thread=False)
    endless(engine)
    before = {name: dict(vars(owner)) for name, owner in owners(engine).items()}
    watch = Watch(engine)
    session = engine.open(Settings(max_text_tokens=7, max_codec_ids=30))
    session.push_audio(question.made_up(1.0), sample_rate=16_000)
    session.commit()
    events = []
    for event in session.events():
        events.append(event)
        if isinstance(event, ResponseDone):
            break
    shares = watch.stop()
    assert shares.tokens == {"think": 7, "speak": 30}  # as long as it may be, to the id
    assert shares.calls["encode"] == 1 and shares.calls["dit"] == shares.calls["vocoder"] == 3
    assert set(shares.seconds) == set(STAGES) and min(shares.seconds.values()) > 0
    assert sum(len(e.samples) for e in events if isinstance(e, AudioDelta)) == 30 * 480
    assert before == {name: dict(vars(owner)) for name, owner in owners(engine).items()}


def test_watch_sees_what_other_threads_render(tiny: LoadedModel) -> None:
    engine = Engine(tiny, max_sessions=2, voice_threads=2)
    endless(engine)
    before = {name: dict(vars(owner)) for name, owner in owners(engine).items()}
    watch = Watch(engine)
    sessions = [engine.open(Settings(max_text_tokens=7, max_codec_ids=30)) for _ in range(2)]
    for session in sessions:
        session.push_text("What?")
        session.commit()
    for session in sessions:
        assert any(isinstance(event, ResponseDone) for event in session.events(timeout_s=60))
    shares = watch.stop()
    engine.close()
    assert 3 <= shares.calls["dit"] <= 6 and shares.calls["dit"] <= shares.calls["vocoder"]
    assert shares.seconds["dit"] > 0 and shares.tokens["speak"] == 60
    assert before == {name: dict(vars(owner)) for name, owner in owners(engine).items()}


def owners(engine: Engine) -> dict[str, Any]:
    return {"passes": engine.passes, "token2wav": engine.model.omni.token2wav}


# ---- measurements, small ones


def test_calls_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    report = run.run(SHORT, out=out)
    table = capsys.readouterr().out
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    assert report["plan"]["random"] == "tiny" and report["machine"]["cores"] >= 1
    commit, detector = report["calls"]
    assert (commit["turn_end"], detector["turn_end"]) == ("commit", "detector")
    for many in (commit, detector):
        assert many["sessions"] == 2 and len(many["calls"]) == 2
        assert many["shares"]["tokens"] == {"think": 10, "speak": 60}
        assert many["peak_mib"] > 50 and many["wall_s"] > 1.5
        assert 0 < many["cpu_s"] < many["wall_s"] * report["machine"]["cores"]
        for call in many["calls"]:
            assert 0 < call["first_text_s"] < call["end_s"]
            assert 0 < call["first_audio_s"] <= call["end_s"]
            assert call["playback"]["duration_s"] == pytest.approx(0.6)
            assert call["rtf"] == pytest.approx(call["end_s"] / 0.6)
            assert call["after_voice_s"] > call["first_audio_s"]
    # the detector decides half a second after the voice, and the reply is half made by then
    assert all(call["after_voice_s"] > 0.5 for call in detector["calls"])
    assert "| sessions, who ends the turn | 2, commit | 2, detector |" in table
    assert "| stalls, all sessions |" in table and "| vocoder, s |" in table


def test_calls_on_the_processors_clock(tmp_path: Path) -> None:
    """Time is the processor's: the same turns and lengths, and no push is late."""
    plan = replace(SHORT, clock="processor", threads=1)
    commit, detector = run.run(plan, out=tmp_path / "bench.json")["calls"]
    for many in (commit, detector):
        assert many["late_s"] == 0 and many["shares"]["tokens"] == {"think": 10, "speak": 60}
        assert sum(many["shares"]["seconds"].values()) <= many["cpu_s"]
        for call in many["calls"]:
            assert 0 <= call["first_audio_s"] <= call["end_s"] <= many["wall_s"] - 1.5 + 1e-6
            assert call["playback"]["duration_s"] == pytest.approx(0.6)
    for call in detector["calls"]:
        assert call["after_voice_s"] > 0.5


def test_a_sound_without_a_turn(tmp_path: Path) -> None:
    """A hum that is no speech: an error that says what to do, and no waiting for ever."""
    hum = tmp_path / "hum.npy"
    np.save(hum, np.zeros(1))
    sound = 0.1 * np.sin(np.arange(8_000) / 50).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="--question"):
        patch.setattr(run, "load_question", lambda *_, **__: sound)
        patch.setattr("thinktalk.bench.calls.PATIENCE_S", 0.5)
        run.run(replace(SHORT, turn_ends=("detector",)), out=tmp_path / "bench.json")


def test_distances(tiny: LoadedModel) -> None:
    found = {d.what: d for d in distances.measure_distances(tiny, spoken=False, seed=0)}
    exact_again, default = found["exact, other noise"], found[distances.DEFAULT]
    window, euler = (found[w] for w in found if "windowed, Runge" in w or "whole, Euler" in w)
    assert 0 < window.mean < euler.mean < exact_again.mean
    assert window.relative < default.relative and default.largest > default.mean
    assert 0 < found["the default in bfloat16, against itself in float32"].relative < 0.2
    assert next(tiny.omni.token2wav.code2wav_dit_model.parameters()).dtype == torch.float32
    assert "| exact, other noise |" in tables.distances([asdict(d) for d in found.values()])


def test_turn_end(tiny: LoadedModel) -> None:
    work = turn_end.measure_turn_end(tiny, lengths_s=(2.0, 6.0), rounds=1)
    short, long = work.turns
    assert (short.length_s, long.length_s) == (2.0, 6.0)
    assert long.positions - short.positions == 2 * 50  # two windows more, all heard before the end
    assert short.seconds > 0 and work.ratio == pytest.approx(long.seconds / short.seconds)
    assert short.cpu_s > 0
    assert "| turn | 2 s + 1 s | 6 s + 1 s | ratio |" in tables.turn_end(run.asdict(work))


def test_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the networks that are asked for get weights."""
    monkeypatch.setattr("thinktalk.bench.meter.LONGEST_S", 0.0)
    plan = replace(SHORT, what="stages", networks=("talker", "dit"), solver="rk4")
    found = run.run(plan, out=tmp_path / "bench.json")["stages"]
    names = [(stage["network"], stage["unit"], stage["rows"]) for stage in found]
    assert names[:3] == [
        ("Talker", "prompt of 256", 1),
        ("Talker", "token", 1),
        ("Talker", "token", 8),
    ]
    assert [name for name, _, _ in names[3:]] == ["DiT, 36 evaluations"] * 4
    first, later, batch, whole = found[3:]
    assert first["unit"] == "the first block" and first["sound_s"] == pytest.approx(0.24)
    assert whole["sound_s"] == pytest.approx(2.4)
    for stage in (first, later, batch, whole):
        ms = stage["spent"]["ms"] / stage["sound_s"] / stage["rows"]
        assert stage["per_sound_s"] == pytest.approx(ms / 1000)
    assert batch["rows"] == 8 and batch["sound_s"] == later["sound_s"]


def test_all_networks_run_alone(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinktalk.bench.meter.LONGEST_S", 0.0)
    found = stages.measure_stages(tiny.omni, networks=NETWORKS, solver="euler")
    assert len(found) == 15 and all(stage.spent.ms > 0 for stage in found)


# ---- the command line


def test_command_line_knows_what_the_code_has() -> None:
    assert tuple(stages.MEASURES) == NETWORKS
    assert set(random_model.SIZES) == {"7B", "3B", "spark", "tiny"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sessions 1,x", "'x' is not a number"),
        ("--sessions 0", "from 1 on"),
        ("--turn-ends clap", "'clap' is none of commit, detector"),
        ("--stages ears", "'ears' is none of audio"),
        ("--reply-tokens 0", "reply_tokens is 0"),
        ("--clock processor", "add --threads 1"),
        ("--turn-end --against transformers", "leave out --turn-end"),
    ],
)
def test_impossible_plans(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_missing_reference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    assert main(["bench", "--random", "tiny", "--stages", "dit", "--against", "transformers"]) == 2
    error = capsys.readouterr().err
    assert "it needs transformers; pip install 'thinktalk[bench]'" in error


# ---- beside the reference


@pytest.mark.reference
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("name", ["random", "checkpoint"])
def test_pairs(name: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    """A whole answer of transformers, of the length that was asked for, on both kinds of model."""
    plan = replace(SHORT, against=True, pairs=1, solver="rk4")
    if name == "checkpoint":
        plan = replace(plan, random=None, model=str(tiny_checkpoint("3b")))
        load(plan.model)
    found = run.run(plan, out=tmp_path / "bench.json")["pairs"]
    ours, theirs = found["ours"], found["theirs"]
    assert ours["evaluations"] == theirs["evaluations"] == 36
    assert theirs["first_audio_s"] == theirs["total_s"] == pytest.approx(0.6 * theirs["rtf"])
    assert 0 < theirs["dit_per_sound_s"] < theirs["rtf"]
    ratio = theirs["first_audio_s"] / ours["first_audio_s"]
    assert found["ratios"]["first_audio_s"] == pytest.approx(ratio)
