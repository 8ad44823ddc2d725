"""Step 3c: camera or screen frames with their times in; those that go with 2 s of sound out."""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

STALE_S = 2.0  # a picture this long before a window of sound does not belong to it
ROUNDING = 1e-6  # of times
FUTURE_S = 0.5  # a frame may come before its sound
SPARE_FRAMES = 4  # frames kept for one that the model sees
FRAMES_KEPT_S = 16.0  # longest pause held back, a window before it, STALE_S and some delay
FRAMES_KEPT_BYTES = 128 << 20


class Camera:
    """The frames of a camera or a screen, chosen for the 2 s windows of sound.

    Bounded: of more than 4 * fps frames a second those between are left out, and the oldest ones go
    after FRAMES_KEPT_S, or when there are more than FRAMES_KEPT_BYTES.
    """

    def __init__(self, fps: float):
        self._fps = fps
        self._frames: deque[tuple[float, Picture]] = deque()

    def push(self, image: Picture, *, time_s: float, now_s: float) -> None:
        """A frame, uint8 [H,W,3], of this time of the session's sound, of which now_s was heard.

        Raises ValueError for anything but a picture, and for frames out of order, from the future
        or too old to be seen.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"a frame is uint8 [H,W,3], not {image.dtype} {image.shape}")
        if not now_s - FRAMES_KEPT_S <= time_s <= now_s + FUTURE_S:  # false for NaN, too
            raise ValueError(
                f"the frame is of second {time_s}, but {now_s:.2f} s of sound were pushed: give"
                " its time on the clock of the sound"
            )
        if self._frames and time_s <= self._frames[-1][0]:
            raise ValueError(
                f"the frame is of second {time_s}, the one before it of {self._frames[-1][0]}:"
                " push frames in order"
            )
        closest_s = 1 / (SPARE_FRAMES * self._fps)
        if len(self._frames) > 1 and self._frames[-1][0] - self._frames[-2][0] < closest_s:
            self._frames.pop()
        self._frames.append((time_s, image.copy()))
        while len(self._frames) > 1 and self._too_much(now_s):
            self._frames.popleft()

    def take(self, start_s: float, seconds: float) -> list[Picture]:
        """The frames of a window of sound: at start_s and every 1/fps after it while it lasts, the
        newest frame of that instant, or the first one if the camera came later.

        Empty if no frame is of the window or of the 2 s before it. A window may be taken again,
        with more seconds; what only earlier windows could ask for is forgotten.
        """
        while len(self._frames) > 1 and self._frames[1][0] <= start_s:
            self._frames.popleft()
        near = [f for f in self._frames if start_s - STALE_S < f[0] < start_s + seconds]
        if not near:
            return []
        times = [time_s for time_s, _ in near]
        steps = range(math.ceil(seconds * self._fps - ROUNDING))
        instants = [start_s + step / self._fps + ROUNDING for step in steps]
        return [near[max(bisect_right(times, instant) - 1, 0)][1] for instant in instants]

    def state(self) -> dict[str, Any]:
        """All that `from_state` needs; the pictures are not copied."""
        return {
            "fps": self._fps,
            "times": [time_s for time_s, _ in self._frames],
            "images": [image for _, image in self._frames],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Camera":
        camera = cls(state["fps"])
        camera._frames.extend(zip(state["times"], state["images"], strict=True))
        return camera

    def _too_much(self, now_s: float) -> bool:
        num_bytes = sum(image.nbytes for _, image in self._frames)
        return num_bytes > FRAMES_KEPT_BYTES or self._frames[0][0] < now_s - FRAMES_KEPT_S
