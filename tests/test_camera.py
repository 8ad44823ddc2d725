"""Which frames of a camera go with which window of sound, and which are refused or forgotten."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktalk.live import camera as camera_module
from thinktalk.live.camera import FRAMES_KEPT_S, Camera


def picture(number: int) -> np.ndarray:
    return np.full((2, 3, 3), number, np.uint8)


def filmed(times_s: list[float], *, fps: float = 2.0) -> Camera:
    """A camera whose frame k, of times_s[k], shows k."""
    camera = Camera(fps)
    for number, time_s in enumerate(times_s):
        camera.push(picture(number), time_s=time_s, now_s=time_s)
    return camera


def shown(frames: list[np.ndarray]) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def test_newest_frame_of_every_instant() -> None:
    camera = filmed([0.0, 0.3, 0.5, 0.9, 1.6, 2.1])
    assert shown(camera.take(0.0, 2.0)) == [0, 2, 3, 3]  # at 0, 0.5, 1 and 1.5 s
    assert shown(camera.take(2.0, 0.6)) == [4, 5]


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 3.0, 30.0])
def test_number_of_frames(fps: float) -> None:
    for seconds in (0.03, 0.5, 0.51, 1.0, 1.5, 2.0):
        count = len(filmed([0.0], fps=fps).take(0.0, seconds))
        assert count == sum(k / fps < seconds for k in range(100))


def test_a_camera_that_came_late() -> None:
    assert shown(filmed([1.2]).take(0.0, 2.0)) == [0, 0, 0, 0]
    assert filmed([2.5]).take(0.0, 2.0) == []  # of the next window


def test_a_camera_that_stopped() -> None:
    assert shown(filmed([1.0]).take(2.0, 1.0)) == [0, 0]
    assert filmed([1.0]).take(3.0, 1.0) == []
    assert Camera(2.0).take(0.0, 2.0) == []


def test_a_window_may_be_taken_again() -> None:
    camera = filmed([0.0, 0.9, 1.9, 2.4])
    assert shown(camera.take(2.0, 0.5)) == [2]
    camera.push(picture(9), time_s=3.0, now_s=3.0)
    assert shown(camera.take(2.0, 2.0)) == [2, 3, 9, 9]


def test_earlier_windows_are_forgotten() -> None:
    camera = filmed([0.0, 0.5, 1.0, 1.5, 2.0])
    camera.take(2.0, 2.0)
    assert len(camera.state()["images"]) == 1


def test_a_frame_is_a_copy() -> None:
    camera, image = Camera(2.0), picture(1)
    camera.push(image, time_s=0.0, now_s=0.0)
    image[:] = 7
    assert shown(camera.take(0.0, 0.5)) == [1]


@pytest.mark.parametrize(
    ("time_s", "message"),
    [(10.6, "clock"), (float("nan"), "clock"), (-7.0, "clock"), (9.0, "order"), (8.0, "order")],
)
def test_wrong_times(time_s: float, message: str) -> None:
    camera = filmed([9.0])
    with pytest.raises(ValueError, match=message):
        camera.push(picture(1), time_s=time_s, now_s=10.0)
    camera.push(picture(2), time_s=10.5, now_s=10.0)  # the next good one is taken
    assert shown(camera.take(9.0, 2.0)) == [0, 0, 0, 2]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (0, 3, 3), (1, 2, 3, 3)])
def test_wrong_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[H,W,3\]"):
        Camera(2.0).push(np.zeros(shape, np.uint8), time_s=0.0, now_s=0.0)
    with pytest.raises(ValueError, match="float32"):
        Camera(2.0).push(np.zeros((2, 3, 3), np.float32), time_s=0.0, now_s=0.0)  # type: ignore


def test_memory_is_bounded_in_time_and_number() -> None:
    camera = Camera(2.0)
    for number in range(30 * 60):  # a minute that nobody asks for
        camera.push(picture(number % 256), time_s=number / 30, now_s=number / 30)
    times_s = camera.state()["times"]
    assert times_s[-1] == (30 * 60 - 1) / 30  # the newest one is always there
    assert times_s[0] >= times_s[-1] - FRAMES_KEPT_S
    assert len(times_s) <= 2 + FRAMES_KEPT_S * 2 * 4
    assert max(np.diff(times_s)) < 0.25  # and what was left out has near neighbours


def test_memory_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    small = picture(0).nbytes
    monkeypatch.setattr(camera_module, "FRAMES_KEPT_BYTES", 5 * small)
    camera = filmed([k / 2 for k in range(10)])
    assert camera.state()["times"] == [2.5, 3.0, 3.5, 4.0, 4.5]
    camera.push(np.zeros((20, 30, 3), np.uint8), time_s=5.0, now_s=5.0)
    assert camera.state()["times"] == [5.0]  # one frame at least


def test_state_goes_on_elsewhere() -> None:
    camera = filmed([0.0, 0.5, 1.0])
    twin = Camera.from_state(camera.state())
    twin.push(picture(8), time_s=1.5, now_s=1.5)
    assert shown(twin.take(0.0, 2.0)) == [0, 1, 2, 8]
    assert shown(camera.take(0.0, 2.0)) == [0, 1, 2, 2]


TIMES = st.lists(st.integers(0, 400).map(lambda k: k / 50), unique=True, max_size=30).map(sorted)


@settings(deadline=None)
@given(TIMES, st.integers(0, 300).map(lambda k: k / 50), st.sampled_from([0.3, 1.0, 2.0]))
def test_choice_is_what_was_promised(times_s: list[float], start_s: float, seconds: float) -> None:
    camera = Camera(20.0)  # so quick that nothing is left out
    for number, time_s in enumerate(times_s):
        camera.push(picture(number), time_s=time_s, now_s=8.0)
    near = [k for k, t in enumerate(times_s) if start_s - 2 < t < start_s + seconds]
    expected = []
    for step in range(math.ceil(seconds * 20 - 1e-6) if near else 0):
        before = [k for k in near if times_s[k] <= start_s + step / 20 + 1e-9]
        expected.append(before[-1] if before else near[0])
    assert shown(camera.take(start_s, seconds)) == expected
