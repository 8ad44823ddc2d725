"""Frames with sound: what is written window by window is the film that a prompt would have, and is
seen, heard and answered as one."""

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch
from live_speech import CHUNK, VAD, live
from live_stage import SHORT, Stage, of_kind, push
from omni_cases import sound
from spoken import talk

import thinktalk
from thinktalk.live import api
from thinktalk.live.conversation import Conversation
from thinktalk.live.session import LiveSession
from thinktalk.media.mel import log_mel
from thinktalk.media.prompt import Prompt, interleave, num_audio_tokens
from thinktalk.media.video import video_patches
from thinktalk.model.audio import num_tokens
from thinktalk.model.tmrope import prompt_positions

GENERATE = import_module("thinktalk.generate")
HZ = 16_000
SIZE = 280, 364  # pixels of a frame, which are cells of 28 and enough to stay as they are
SECONDS = 5.3


def frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    rng = np.random.default_rng(number)
    return (
        rng.integers(0, 255, (size[0] // 28, size[1] // 28, 3), np.uint8)
        .repeat(28, 0)
        .repeat(28, 1)
    )


def show(
    session: LiveSession,
    *,
    seconds: float = SECONDS,
    fps: float = 2.0,
    start_s: float = 0.0,
    size: Callable[[float], tuple[int, int] | None] = lambda _: SIZE,
) -> np.ndarray:
    """Sound with a frame at the beginning of each 1/fps; what was heard."""
    wave, step = sound(seconds), round(HZ / fps)
    for number, start in enumerate(range(0, len(wave), step)):
        shape = size(start / HZ)
        if shape is not None:
            session.push_image(frame(number, shape), time_s=start_s + start / HZ)
        push(session, wave[start : start + step])
    return wave


def by_hand(stage: Stage, wave: np.ndarray, frames: list[np.ndarray], seconds: float) -> Prompt:
    """The prompt of a turn that is one film, after the official system prompt."""
    kit, config = stage.engine.kit, stage.model.config.thinker_config
    processor, tokenizer = kit.processor, kit.tokenizer
    patches, grid = video_patches(np.stack(frames), processor=processor, size=frames[0].shape[:2])
    tracks = interleave(
        grid,
        merge=processor.merge_size,
        seconds_per_pair=seconds,
        num_audio=num_audio_tokens(len(wave)),
        config=config,
    )
    system = stage.engine.system_piece(stage.open().settings).ids
    names = "<|im_start|> <|vision_bos|> <|audio_bos|> <|audio_eos|> <|vision_eos|> <|im_end|>"
    start, see, hear, heard, seen, end = (tokenizer.id_of(name) for name in names.split())
    ids = [*system, start, *tokenizer.encode("user\n"), see, hear, *tracks, heard, seen, end]
    ids += [*tokenizer.encode("\n"), start, *tokenizer.encode("assistant\n")]
    mel = log_mel(wave, maximum="running")
    return Prompt(np.array(ids), [mel], videos=[(patches, grid, seconds)], video_has_audio=[True])


def prompted(stage: Stage, session: LiveSession) -> tuple[list[int], torch.Tensor]:
    """Ids and positions of everything up to the reply."""
    memory = stage.memory(session)
    pieces = [piece for item in memory.items for piece in item.pieces]
    ids, positions, track = [], [], memory.past[0].track
    for piece in pieces:
        ids += piece.ids
        span, track = piece.positions(track, stage.model.config.thinker_config)
        positions.append(span)
    return ids, torch.cat(positions, dim=1)


def positions_of(stage: Stage, prompt: Prompt) -> torch.Tensor:
    positions, _ = prompt_positions(
        torch.from_numpy(prompt.ids),
        config=stage.model.config.thinker_config,
        audio_tokens=[num_tokens(mel.shape[1]) for mel in prompt.mels],
        video_grids=[grid for _, grid, _ in prompt.videos],
        seconds_per_pair=[seconds for _, _, seconds in prompt.videos],
        video_has_audio=prompt.video_has_audio,
    )
    return positions


# frames a second -> how many of the pushed ones are seen, seconds from pair to pair
RATES = {2.0: (12, 1.0), 1.0: (6, 2.0), 4.0: (22, 0.5), 3.0: (16, 2 / 3)}


@pytest.mark.parametrize("fps", RATES)
def test_the_prompt_of_a_film(stage: Stage, monkeypatch, fps: float) -> None:
    """Ids, positions, the encoder's rows, and with them the reply, are those of the whole film."""
    count, seconds = RATES[fps]
    session = stage.open(camera_fps=fps)
    wave = show(session, fps=fps)
    session.commit()
    said = stage.reply(session)
    frames = [frame(number) for number in range(int(np.ceil(SECONDS * fps)))]
    frames += [frames[-1]] * (count - len(frames))
    prompt = by_hand(stage, wave, frames, seconds)
    ids, positions = prompted(stage, session)
    assert ids[: len(prompt.ids)] == prompt.ids.tolist()
    assert torch.equal(positions[:, : len(prompt.ids)], positions_of(stage, prompt))
    [(patches, grid, _)] = prompt.videos
    whole = stage.model.omni.thinker.encode_patches(
        [(torch.from_numpy(patches), torch.tensor(grid))]
    )
    pieces = stage.memory(session).items[1].pieces
    rows = [p.features[2] for p in pieces if p.features and p.features[2] is not None]
    assert len(rows) == 3 and whole is not None
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-4, atol=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(GENERATE, "build_prompt", lambda *_, **__: prompt)
        answer = thinktalk.generate(stage.model, ["a film"], **SHORT)
    assert said.ids == (answer.text_ids, answer.codec_ids)
    assert said.done.usage.input_image == len(whole)


def shape_of(stage: Stage, session: LiveSession) -> str:
    """The user's turn with counts for placeholders."""
    text, ids = "", [i for p in stage.memory(session).items[1].pieces for i in p.ids]
    tokenizer, config = stage.engine.kit.tokenizer, stage.model.config.thinker_config
    signs = {config.audio_token_index: "a", config.video_token_index: "v"}
    while ids:
        run = next((n for n, i in enumerate(ids) if i != ids[0]), len(ids))
        if ids[0] in signs:
            text += f" {signs[ids[0]]}{run}"
        else:
            text += tokenizer.decode(ids[:run], keep_special=True).replace("|", "")
        ids = ids[run:]
    return text.removeprefix("<im_start>user\n").removesuffix("<im_end>\n")


ON, OFF = "<vision_bos><audio_bos>", "<audio_eos><vision_eos>"
CELLS = SIZE[0] * SIZE[1] // 28**2  # tokens of a pair of frames


def test_a_camera_that_goes_off_and_on(stage: Stage) -> None:
    """Windows without frames are sound; a new film begins when it is on again."""
    session = stage.open()
    show(session, seconds=11.0, size=lambda t: None if 1.6 < t < 7.9 else SIZE)
    session.commit(respond=False)
    stage.read(session)
    stage.run()
    film = f" v{2 * CELLS} a50"
    assert shape_of(stage, session) == (
        f"{ON}{film}{film}{OFF}<audio_bos> a100<audio_eos>{ON} v{2 * CELLS} a50 v{CELLS} a25{OFF}"
    )
    stage.check(session)


def test_frames_that_change_their_size(stage: Stage) -> None:
    """In the middle of a window they are brought to the newest size; then a new film begins."""
    session = stage.open()
    other = 364, 280
    show(session, seconds=6.0, size=lambda t: other if t > 3.4 else SIZE)
    session.commit()
    assert len(stage.reply(session).codec_ids) == 14
    film = f" v{2 * CELLS} a50"
    assert shape_of(stage, session) == f"{ON}{film}{OFF}{ON}{film}{film}{OFF}"


def test_another_rate_from_now_on(stage: Stage) -> None:
    session = stage.open(camera_fps=1.0)
    show(session, seconds=4.0)
    push(session, sound(0.1))  # by which the second window is over
    session.update(camera_fps=2.0)
    show(session, seconds=4.0, start_s=4.1)
    session.commit(respond=False)
    stage.read(session)
    stage.run()
    slow, quick, end = f" v{CELLS} a50", f" v{2 * CELLS} a50", f" v{CELLS} a2"
    assert shape_of(stage, session) == f"{ON}{slow}{slow}{OFF}{ON}{quick}{quick}{end}{OFF}"
    stage.check(session)


def test_few_frames_keep_the_time(stage: Stage) -> None:
    """At one frame in two seconds, each window's frame stands at its time beside its sound."""
    session = stage.open(camera_fps=0.5)
    show(session, seconds=8.0)
    session.commit(respond=False)
    stage.read(session)
    stage.run()
    ids, positions = prompted(stage, session)
    config = stage.model.config.thinker_config
    is_video = torch.tensor(ids) == config.video_token_index
    is_audio = torch.tensor(ids) == config.audio_token_index
    times = positions[0, is_video].unique()
    assert times.tolist() == positions[0, is_audio][::50].tolist()


def test_words_and_pictures_around_a_film(stage: Stage) -> None:
    session = stage.open()
    session.push_text("Before. ")
    show(session, seconds=2.5)
    session.push_text("After.")
    session.commit(respond=False)
    stage.read(session)
    stage.run()
    assert shape_of(stage, session) == (f"Before. {ON} v{2 * CELLS} a50 v{CELLS} a12{OFF}After.")


def test_a_film_in_a_pause(stage: Stage, monkeypatch) -> None:
    """Thought early, thrown away, thought again: the frames of the open window are seen as if the
    pause had not been."""
    shapes, replies, thoughts = [], [], set()
    wave = talk()[: 4 * HZ]  # a turn with a pause in it
    for thinks in (True, False):
        if not thinks:
            monkeypatch.setattr(Conversation, "_paused", lambda *_: None)
        session = stage.open(turn_detection=VAD)
        events: list[api.Event] = []
        for start in range(0, len(wave), HZ // 4):
            session.push_image(frame(start), time_s=start / HZ)
            events += live(stage, session, wave[start : start + HZ // 4], size=CHUNK // 2)
            early = stage.of(session).early
            thoughts |= set() if early is None else {early.reply_item}
        shapes.append(shape_of(stage, session))
        replies.append([said.ids for said in stage.replies(events)])
        assert not of_kind(events, api.Failed)
        session.close()
        stage.run()
    assert shapes[0] == shapes[1] and replies[0] == replies[1] and len(replies[0]) == 1
    assert len(thoughts) == 2, "in the pause, and in the one that ends the turn"
    assert shapes[0].count("<vision_bos>") == 1
