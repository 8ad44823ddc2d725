"""What a session remembers: its items in order, and which of their pieces are in both caches.

The items are the truth; the caches follow. Whoever edits items calls `sync`, which cuts the caches
back to what is still right and queues the rest. Shapes: T positions, C width of the Thinker.
"""

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinktalk.config import ThinkerConfig
from thinktalk.live.blocks import BlockPool, Row
from thinktalk.live.history import Item, Mark, Piece, flat
from thinktalk.live.speak import Reply
from thinktalk.model.tmrope import Track, line


@dataclass(frozen=True)
class Span:
    """Tokens start..stop of a piece and their positions int64 [3, stop - start]."""

    piece: Piece
    start: int
    stop: int
    positions: Tensor


@dataclass(frozen=True)
class Placed:
    """Where a queued piece will stand."""

    positions: Tensor
    track: Track  # behind it
    top: int


class Memory:
    """Items, the Thinker's row and the Talker's. to_tell: tracks [n,C] and positions [3,n] that
    the Talker has not taken in yet; together with its row they are as long as the Thinker's."""

    def __init__(
        self, config: ThinkerConfig, *, thinker: BlockPool, talker: BlockPool | None
    ) -> None:
        """talker: None in a session that never speaks."""
        self.config, self.thinker, self.talker = config, thinker, talker
        self.items: list[Item] = []
        self.past: list[Mark] = []
        self.boundary = 0  # where the last piece of the past ends
        self.queue: deque[Piece] = deque()
        self.done = 0  # tokens of the queue's first piece that are in the cache
        self.track, self.top = Track(), -1
        self.thinker_row, self.talker_row = Row(), Row()
        self.to_tell: deque[tuple[Tensor, Tensor]] = deque()
        self.hidden: Tensor | None = None  # [1,C] state at the last position of the prompt
        self.barrier: Piece | None = None  # nothing behind it enters the caches: a reply comes here
        self._placed: list[Placed] = []

    @property
    def num_waiting(self) -> int:
        """Positions that are known but not in the cache yet."""
        return sum(len(piece.ids) for piece in tuple(self.queue)) - self.done

    @property
    def at_barrier(self) -> bool:
        """Both caches end exactly where the reply begins."""
        return self._stopped and not self.to_tell

    @property
    def _stopped(self) -> bool:
        return bool(self.past) and self.past[-1].piece is self.barrier

    def insert(self, item: Item, *, after: str | None = None) -> bool:
        """Puts an item behind another ("root": the system prompt), by default at the end, but
        before the open one; False if there is no such item. `sync` must follow."""
        open_one = bool(self.items) and self.items[-1].is_open
        place = len(self.items) - open_one
        if after is not None:
            names = ["root", *(known.id for known in self.items[1:place])]
            if after not in names:
                return False
            place = 1 + names.index(after)
        self.items.insert(place, item)
        return True

    def before(self, item: Item) -> str | None:
        """The id of the item before; None for the first behind the system prompt."""
        place = self.items.index(item)
        return self.items[place - 1].id if place > 1 else None

    def add(self, item: Item, piece: Piece | None) -> None:
        """Appends to the last item; it enters the caches in its turn."""
        if piece is not None:
            assert item is self.items[-1], item.id
            item.pieces.append(piece)
            self.queue.append(piece)

    def sync(self) -> None:
        """Makes the caches follow the items; only while no reply is in progress."""
        wanted = list(flat(self.items))
        keep = 0
        while keep < min(len(self.past), len(wanted)) and self.past[keep].piece is wanted[keep]:
            keep += 1
        if keep < len(self.past):
            mark = self.past[keep]
            self.boundary, self.track, self.top = mark.start, mark.track, mark.top
            del self.past[keep:]
            self.done = 0
        elif not (self.queue and keep < len(wanted) and wanted[keep] is self.queue[0]):
            self.done = 0
        self.queue = deque(wanted[keep:])
        del self._placed[1 if self.done else 0 :]
        self._cut(self.boundary + self.done)

    def upcoming(self, limit: int) -> list[Span]:
        """The next tokens for the caches, at most `limit`, as far as their features exist."""
        spans: list[Span] = []
        if self._stopped:
            return spans
        for number, piece in enumerate(self.queue):
            if limit <= 0 or not piece.ready:
                break
            if number == len(self._placed):
                self._placed.append(self._place(piece))
            start = self.done if number == 0 else 0
            stop = min(len(piece.ids), start + limit)
            positions = self._placed[number].positions[:, start:stop]
            spans.append(Span(piece, start, stop, positions))
            limit -= stop - start
            if piece is self.barrier:
                break
        return spans

    def advance(self, count: int, *, hidden: Tensor, tracks: Tensor, positions: Tensor) -> None:
        """`count` tokens are in the Thinker's cache now: hidden [count,C] their states, tracks
        [count,C] their rows for the Talker, positions [3,count]."""
        self.thinker_row.length += count
        self.hidden = hidden[-1:]
        if self.talker is not None:
            self.to_tell.append((tracks, positions))
        while count:
            piece = self.queue[0]
            taken = min(count, len(piece.ids) - self.done)
            self.done += taken
            count -= taken
            if self.done == len(piece.ids):
                self._past(piece, self._placed.pop(0))
                self.queue.popleft()
                self.done = 0

    def told(self, count: int) -> None:
        """The Talker has taken in the next `count` rows of `to_tell`."""
        self.talker_row.length += count
        while count:
            tracks, positions = self.to_tell.popleft()
            if len(tracks) > count:
                self.to_tell.appendleft((tracks[count:], positions[:, count:]))
                return
            count -= len(tracks)

    def keep_reply(self, reply: Reply) -> None:
        """What the reply fed back becomes part of the past: the Thinker has it, the Talker forgets
        its speech and takes the words in as it takes a prompt's."""
        self.abandon_reply()
        count = len(reply.rows)
        if not count:
            return
        self.thinker_row.length = self.boundary + count
        piece = Piece(reply.text_ids[:count], is_plain=True)
        positions, track = piece.positions(self.track, self.config)
        if self.talker is not None:
            self.to_tell.append((torch.cat(reply.rows), positions))
        reply.item.pieces.insert(1, piece)  # behind the header
        self._past(piece, Placed(positions, track, max(self.top, int(positions.max()))))

    def abandon_reply(self) -> None:
        """Forgets what a reply left behind the prompt in the Talker's cache; the Thinker's rows
        stay where they are until something overwrites them."""
        self.thinker_row.length = self.boundary + self.done
        if self.talker is not None:
            told = self.boundary + self.done - sum(len(tracks) for tracks, _ in self.to_tell)
            self.talker.rewind(self.talker_row, min(told, self.talker_row.length))

    def fork(self) -> "Memory":
        twin = Memory(self.config, thinker=self.thinker, talker=self.talker)
        twin.copy(self)
        return twin

    def copy(self, other: "Memory", *, without: Item | None = None) -> None:
        """Becomes what another memory is, which goes on on its own; blocks are shared. without: a
        reply in progress that is left out."""
        self.items = [replace(i, pieces=list(i.pieces)) for i in other.items if i is not without]
        self.past, self.boundary, self.done = list(other.past), other.boundary, other.done
        self.queue, self.to_tell = deque(other.queue), deque(other.to_tell)
        self.track, self.top, self.hidden = other.track, other.top, other.hidden
        self._placed = list(other._placed)
        self.thinker_row = self.thinker.fork(other.thinker_row)
        if self.talker is not None:
            self.talker_row = self.talker.fork(other.talker_row)
        if without is not None:
            self.sync()

    def adopt(self, prefix: "Memory") -> None:
        """Takes over the caches of a memory whose only item has the ids of this one's first."""
        items = self.items
        self.copy(prefix)
        items[0].pieces = self.items[0].pieces
        self.items = items

    def release(self) -> None:
        """Frees the caches; the memory is empty then."""
        self.items = []
        self.sync()

    @property
    def num_known(self) -> int:
        """`length`, of items that the caches follow."""
        return self.boundary + self.done + self.num_waiting

    @property
    def length(self) -> int:
        """Positions of all items, in the caches or not."""
        return sum(item.num_ids for item in self.items)

    def forget_oldest(self, target: int) -> list[Item]:
        """Removes whole turns behind the system prompt, oldest first, until at most `target`
        positions are left or only the last turn is; returns what is gone."""
        system, *items = self.items
        starts = [n for n, item in enumerate(items) if _begins_turn(items, n)]
        length, gone = self.length, 0
        for stop in starts[1:]:
            if length <= target:
                break
            length -= sum(item.num_ids for item in items[gone:stop])
            gone = stop
        if gone:
            self.items = [system, *items[gone:]]
            self.sync()
        return items[:gone]

    def shorten_last(self, excess: int) -> bool:
        """Removes the oldest windows of the user's last turn, all but what opened it, until
        `excess` positions are gone; False if there is nothing to remove."""
        turns = [item for item in self.items if item.role == "user"]
        pieces, count = turns[-1].pieces if turns else [], 0
        while excess > 0 and len(pieces) > count + 2:
            excess -= len(pieces[1 + count].ids)
            count += 1
        del pieces[1 : 1 + count]
        self.sync()
        return count > 0

    def _place(self, piece: Piece) -> Placed:
        before = self._placed[-1] if self._placed else Placed(line(0, 0), self.track, self.top)
        positions, track = piece.positions(before.track, self.config)
        top = max(before.top, int(positions.max())) if positions.numel() else before.top
        return Placed(positions, track, top)

    def _past(self, piece: Piece, placed: Placed) -> None:
        self.past.append(Mark(piece, self.boundary, self.track, self.top))
        self.boundary += len(piece.ids)
        self.track, self.top = placed.track, placed.top

    def _cut(self, length: int) -> None:
        self.thinker.rewind(self.thinker_row, min(length, self.thinker_row.length))
        if self.talker is None:
            return
        excess = self.talker_row.length + sum(len(t) for t, _ in self.to_tell) - length
        while excess > 0 and self.to_tell:
            tracks, positions = self.to_tell.pop()
            if len(tracks) > excess:
                left = len(tracks) - excess
                self.to_tell.append((tracks[:left], positions[:, :left]))
            excess -= min(excess, len(tracks))
        self.talker.rewind(self.talker_row, min(length, self.talker_row.length))


def _begins_turn(items: list[Item], number: int) -> bool:
    """Whether what comes before this item can be forgotten without it: a reply belongs to what it
    answers."""
    role, before = items[number].role, items[number - 1].role if number else "assistant"
    return role == "user" or role == before == "assistant"
