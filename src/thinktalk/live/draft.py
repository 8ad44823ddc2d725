"""Step 3d: the turn that a user is giving: windows of sound, frames and words in, an item out.

What is given is written into the item at once, and enters the caches while more of it comes. Sound
has no end until it is known; words and media that come meanwhile follow it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from thinktalk.live.camera import Camera
from thinktalk.live.history import Composer, Item, Piece
from thinktalk.live.memory import Memory
from thinktalk.live.replies import Kit
from thinktalk.media.image import resize
from thinktalk.media.prompt import Prompt
from thinktalk.media.video import video_patches

WINDOW_S = 2.0
FRAMES_PER_SECOND = 100  # of mel
MAX_LATER = 64  # texts and media that wait for the end of the open sound

Content = str | Prompt  # words, or a medium with its markers


@dataclass
class Undo:
    """What a draft was before it was closed."""

    item: Item
    num_pieces: int
    composer: Composer
    later: list[Content]


class Draft:
    """item: None while nothing was given since the last turn. later: what follows the open sound.
    named: somebody was told the item's name."""

    def __init__(self, kit: Kit, memory: Memory, *, camera_fps: float):
        self.kit, self.memory = kit, memory
        self.item: Item | None = None
        self.named = False
        self.later: list[Content] = []
        self.composer = kit.composer()
        self.camera = Camera(camera_fps)
        self.camera_fps = camera_fps

    def open(self) -> Item:
        if self.item is None:
            self.item = Item(self.kit.new_id("item"), "user", is_open=True)
            self.named = False
            self.composer = self.kit.composer()
            self.composer.begin("user")
            self.memory.items.append(self.item)
        return self.item

    def put(self, content: Content) -> None:
        item = self.open()
        if isinstance(content, str):
            self.composer.text(content)
        else:
            self.composer.add(content)
        self.memory.add(item, self.composer.take())

    def wait(self, content: Content) -> bool:
        """Keeps what follows the open sound; False if too much is kept already."""
        fits = len(self.later) < MAX_LATER
        if fits:
            self.later.append(content)
        return fits

    def hear(self, mel: np.ndarray, *, start_s: float) -> None:
        """Sound [128,F] of at most 2 s, with the camera's frames of the same time."""
        item, sound = self.open(), torch.from_numpy(mel)
        frames = self.camera.take(start_s, mel.shape[1] / FRAMES_PER_SECOND)
        if frames:
            processor, size = self.kit.processor, frames[-1].shape[:2]
            alike = [f if f.shape[:2] == size else resize(f, size=size) for f in frames]
            patches, grid = video_patches(np.stack(alike), processor=processor, size=size)
            pairs = math.ceil(math.ceil(WINDOW_S * self.camera_fps) / processor.temporal_patch_size)
            self.composer.watch(
                torch.from_numpy(patches), grid, seconds_per_pair=WINDOW_S / pairs, mel=sound
            )
        else:
            self.composer.hear(sound)
        self.memory.add(item, self.composer.take())

    def hear_again(self, whole: np.ndarray) -> bool:
        """The exact mel [128,F] in place of all windows; False if more than this sound is in them,
        and they stay as they are. The memory must follow."""
        config, item = self.kit.config.thinker_config, self.open()
        ids = [i for piece in item.pieces for i in piece.ids]
        others = config.image_token_index, config.video_token_index, config.audio_end_token_id
        if ids.count(config.audio_start_token_id) != 1 or any(i in ids for i in others):
            return False
        item.pieces = [Piece(ids, mels=[torch.from_numpy(whole)])]
        return True

    def close(self, name: str | None = None) -> Item:
        """Writes the end of the item, which is called `name` if nobody knows another one yet."""
        item = self.open()
        if name is not None and not self.named:
            item.id = name
        self.composer.close()
        later, self.later = self.later, []
        for content in later:
            self.put(content)
        self.composer.end()
        self.memory.add(item, self.composer.take())
        self.item, item.is_open = None, False
        return item

    def undo(self) -> Undo:
        """What takes the next `close`, and what is given until then, back."""
        item = self.open()
        return Undo(item, len(item.pieces), self.composer.copy(), list(self.later))

    def reopen(self, undo: Undo) -> None:
        """The turn goes on; the memory must follow."""
        del undo.item.pieces[undo.num_pieces :]
        undo.item.is_open = True
        self.item, self.composer, self.named = undo.item, undo.composer, True
        self.later = undo.later + self.later

    def forget(self) -> bool:
        """False if there was nothing to forget; the memory must follow."""
        self.later = []
        if self.item is None:
            return False
        self.memory.items.remove(self.item)
        self.item = None
        return True

    def copy(self, other: "Draft") -> None:
        """Becomes what another draft is, whose memory this one's was copied from."""
        self.named, self.later = other.named, list(other.later)
        self.composer = other.composer.copy()
        self.item = None if other.item is None else self.memory.items[-1]
        self.camera = Camera.from_state(other.camera.state())
        self.camera_fps = other.camera_fps

    def set_fps(self, camera_fps: float) -> None:
        self.camera = Camera.from_state({**self.camera.state(), "fps": camera_fps})
        self.camera_fps = camera_fps

    def state(self) -> dict[str, Any]:
        """Arrays and what JSON knows: all that is not in the item or the composer's piece."""
        assert not self.later, "save refuses this"
        return {
            "is_open": self.item is not None,
            "named": self.named,
            "words": self.composer.words,
            "open": self.composer.open,
            "camera": self.camera.state(),
        }

    def restore(self, state: dict[str, Any], piece: Piece) -> None:
        """The one whose `state` this is; piece: what its composer had begun to write."""
        opened = state["open"]
        self.named = state["named"]
        self.composer.words, self.composer.piece = state["words"], piece
        self.composer.open = tuple(opened) if isinstance(opened, list) else opened
        self.item = self.memory.items[-1] if state["is_open"] else None
        self.camera = Camera.from_state(state["camera"])
