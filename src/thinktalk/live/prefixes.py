"""The caches of system prompts, kept for sessions that will begin alike."""

from collections import OrderedDict
from typing import Any

from thinktalk.live.memory import Memory

MAX_PREFIXES = 16


class Prefixes:
    def __init__(self) -> None:
        self._memories: OrderedDict[tuple[Any, ...], Memory] = OrderedDict()
        self.num_used = 0

    def keep(self, memory: Memory) -> None:
        """Keeps a memory's system prompt while nothing else is in its caches."""
        if len(memory.past) != 1 or memory.to_tell or memory.done:
            return
        key = _key(memory)
        if key not in self._memories:
            twin = memory.fork()
            twin.items = twin.items[:1]
            twin.queue.clear()
            self._memories[key] = twin
            if len(self._memories) > MAX_PREFIXES:
                self.drop()

    def adopt(self, memory: Memory) -> None:
        """Gives a new memory the caches of one that began alike, if there is one."""
        known = self._memories.get(_key(memory))
        if known is not None:
            self._memories.move_to_end(_key(memory))
            self.num_used += 1
            memory.adopt(known)
        memory.sync()

    def drop(self) -> bool:
        """Frees the blocks of the prefix that was used longest ago; False if there is none."""
        if not self._memories:
            return False
        _, memory = self._memories.popitem(last=False)
        memory.release()
        return True


def _key(memory: Memory) -> tuple[Any, ...]:
    piece = memory.items[0].pieces[0]
    return (memory.talker is not None, *piece.ids)
