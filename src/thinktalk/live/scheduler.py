"""Who is served in this tick: conversations in, the work of every pass out. Pure functions.

Replies that are in progress step in every tick, all together. Prompts enter the caches in bounded
chunks, those first whose user waits for a reply. Voice blocks cost most, so few are rendered at
a time, those first whose listener would run out of sound first.
"""

from collections.abc import Callable, Sequence

from thinktalk.live.conversation import Conversation
from thinktalk.live.history import Piece
from thinktalk.live.memory import Memory, Span
from thinktalk.live.speak import Reply
from thinktalk.model.code2wav import group_blocks

ENCODED_WINDOWS = 16  # of 2 s, per tick, over all conversations; at least one piece
PREFILL_POSITIONS = 512  # per tick and network, over all conversations
BACKGROUND_POSITIONS = 64  # of them, for prompts that nobody waits for while replies are spoken

BlockDue = Callable[[Reply], int]


def to_encode(conversations: Sequence[Conversation]) -> list[Piece]:
    """Pieces whose sound and pictures the encoders have not seen yet."""
    pieces: list[Piece] = []
    room = ENCODED_WINDOWS
    for conversation in by_urgency(conversations):
        for piece in conversation.memory.queue:
            if piece.ready:
                continue
            size = sum(-(-mel.shape[1] // 200) for mel in piece.mels)
            size += sum(len(patches) // 1024 for patches, _ in piece.images + piece.videos)
            if pieces and size > room:
                return pieces
            pieces.append(piece)
            room -= size
    return pieces


def to_prefill(conversations: Sequence[Conversation]) -> list[tuple[Memory, list[Span]]]:
    """Prompt positions for the Thinker's cache."""
    work: list[tuple[Memory, list[Span]]] = []
    busy = any(c.replies.current is not None and c.replies.current.began for c in conversations)
    room = PREFILL_POSITIONS
    for conversation in by_urgency(conversations):
        limit = room
        if busy and not _is_awaited(conversation):
            limit = min(room, BACKGROUND_POSITIONS)
        spans = conversation.memory.upcoming(limit)
        if spans:
            work.append((conversation.memory, spans))
            room -= sum(span.stop - span.start for span in spans)
        if room <= 0:
            break
    return work


def to_tell(conversations: Sequence[Conversation]) -> list[tuple[Memory, int]]:
    """Prompt rows for the Talker's cache; not while the reply speaks, whose rows stand there."""
    work = []
    room = PREFILL_POSITIONS
    for conversation in by_urgency(conversations):
        memory, reply = conversation.memory, conversation.replies.current
        if not memory.to_tell or (reply is not None and reply.began) or room <= 0:
            continue
        count = min(room, sum(len(tracks) for tracks, _ in memory.to_tell))
        work.append((memory, count))
        room -= count
    return work


def to_think(conversations: Sequence[Conversation]) -> list[tuple[Memory, Reply]]:
    replies = ((c.memory, c.replies.current) for c in conversations)
    return [(memory, reply) for memory, reply in replies if reply and reply.wants_thought]


def to_speak(conversations: Sequence[Conversation]) -> list[tuple[Memory, Reply]]:
    replies = ((c.memory, c.replies.current) for c in conversations)
    return [(memory, reply) for memory, reply in replies if reply and reply.wants_speech]


def to_voice(
    conversations: Sequence[Conversation],
    *,
    block_due: BlockDue,
    jobs: int,
    rows: int,
    blocks: int,
) -> list[list[tuple[Reply, int]]]:
    """Replies with blocks to render, and from how many ids: in at most so many jobs, spread over
    all of them, each of at most so many replies and blocks, but one reply at least."""
    due = []
    for conversation in conversations:
        reply = conversation.replies.current
        if reply is None or not reply.speak or reply.voice_done or reply.rendering:
            continue
        count = block_due(reply)
        if count:
            due.append((ahead_s(conversation), reply, count))
    due.sort(key=lambda entry: entry[0])
    found: list[list[tuple[Reply, int]]] = []
    rows, room = min(rows, -(-len(due) // max(1, jobs))), 0
    for _, reply, count in due:
        size = blocks if reply.renders_alone else group_blocks(reply.blocks)
        if not found or len(found[-1]) == rows or size > room:
            if len(found) >= jobs:
                break
            found.append([])
            room = blocks
        found[-1].append((reply, count))
        room -= size
    return found


def ahead_s(conversation: Conversation) -> float:
    """How many seconds of sound the listener still has, at the latest; less is more urgent."""
    reply = conversation.replies.current
    assert reply is not None
    if conversation.early is not None:
        return reply.num_samples / 24_000 + 1.0  # nobody waits for it yet
    if reply.heard_from_s is None:
        return -1.0
    return reply.num_samples / 24_000 - (conversation.listener.now_s - reply.heard_from_s)


def by_urgency(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Those first whose user waits for a reply."""
    return sorted(conversations, key=lambda c: (c.owner is not None, not _is_awaited(c)))


def _is_awaited(conversation: Conversation) -> bool:
    reply = conversation.replies.current
    return reply is not None and not reply.began
