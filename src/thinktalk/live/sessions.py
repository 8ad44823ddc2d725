"""The sessions of an engine: opened, forked, resumed, transcribed and ended.

`open` and its like may be called from any thread; what they start is done by the engine's, in
`intake`, in the order in which each session asked for it.
"""

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from thinktalk.live import api, store
from thinktalk.live.blocks import BlockPool
from thinktalk.live.conversation import Conversation
from thinktalk.live.history import Item, Piece
from thinktalk.live.memory import Memory
from thinktalk.live.replies import Kit, Request
from thinktalk.live.session import LiveSession, Outbox, Waiting
from thinktalk.media.chat import DEFAULT_SYSTEM_PROMPT, SPEECH_SYSTEM_PROMPT, render
from thinktalk.media.chat import Piece as Rendered
from thinktalk.media.image import Processor
from thinktalk.media.prompt import Prompt, assemble
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.options import Settings
from thinktalk.weights import LoadedModel

MAX_PREFIXES = 16  # system prompts whose caches are kept for new sessions
MEDIA_WORKERS = 4
COMMANDS_PER_TICK = 64  # of one session
# system prompt and request with which the official models write down what they hear
TRANSCRIPTION = (
    "You are a speech recognition model.",
    "Transcribe the English audio into text without any punctuation marks.",
)


class Sessions:
    def __init__(
        self,
        model: LoadedModel,
        *,
        max_sessions: int,
        thinker_pool: BlockPool,
        talker_pool: BlockPool,
        transcription: tuple[str, str] = TRANSCRIPTION,
    ):
        """transcription: the system prompt and the request with which the model transcribes."""
        if max_sessions < 1:
            raise ValueError(f"max_sessions is {max_sessions}; it must be at least 1")
        self.model, self.max_sessions, self.transcription = model, max_sessions, transcription
        self.memory_pools = thinker_pool, talker_pool
        self.kit = Kit(
            model.config,
            Tokenizer.from_folder(model.folder),
            Processor.from_folder(model.folder),
            model.voices,
            new_id=lambda kind: f"{kind}_{uuid.uuid4().hex[:20]}",
        )
        self.sessions: dict[str, LiveSession] = {}
        self.conversations: dict[str, Conversation] = {}  # transcriptions too
        self._prefixes: OrderedDict[tuple[Any, ...], Memory] = OrderedDict()
        self._workers = ThreadPoolExecutor(MEDIA_WORKERS, thread_name_prefix="thinktalk-media")
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Tells the engine's thread that there is something to do."""

    @property
    def voices(self) -> Sequence[str]:
        return list(self.model.voices)

    @property
    def model_name(self) -> str:
        return self.model.folder.name

    # ---- from any thread

    def open(self, settings: Settings | None = None, **changes: Any) -> LiveSession:
        """See api.Engine."""
        settings = self._checked(settings or Settings(), changes)
        session, conversation = self._new(settings)
        conversation.memory.items.append(Item("system", "system", [self.system_piece(settings)]))
        self._register(session, conversation, lambda c: self._adopt_prefix(c))
        return session

    def resume(self, path: str | Path) -> LiveSession:
        """See api.Engine."""
        saved = store.read(Path(path), model=self.model)
        session, conversation = self._new(self._checked(saved.settings, {}))
        self._register(session, conversation, lambda c: store.restore(c, saved))
        return session

    def fork(self, session: LiveSession) -> LiveSession:
        """See Session.fork. The twin's commands wait until the fork has been made."""
        twin, conversation = self._new(session.settings)
        done: Future[None] = Future()

        def make(parent: Conversation) -> None:
            parent.fork_into(conversation)
            done.set_result(None)

        self._register(twin, conversation, lambda _: None, after=done)
        session.post(make)
        return twin

    def in_worker(self, work: Callable[[], Any]) -> Future[Any]:
        """Reads media without holding up the engine, which is woken when it is done."""
        future = self._workers.submit(work)
        future.add_done_callback(lambda _: self.wake())
        return future

    def assemble(self, pieces: list[Rendered], settings: Settings) -> Prompt:
        return assemble(
            pieces,
            tokenizer=self.kit.tokenizer,
            config=self.kit.config.thinker_config,
            processor=self.kit.processor,
            exact=settings.exact_ear,
        )

    def system_piece(self, settings: Settings) -> Piece:
        system = settings.system
        if system is None:
            system = SPEECH_SYSTEM_PROMPT if settings.speak else DEFAULT_SYSTEM_PROMPT
        messages = [{"role": "system", "content": system}]
        rendered = render(messages, tools=settings.tools or None, reply=False)
        return Piece.of(self.assemble(rendered, settings))

    def close_workers(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    # ---- on the engine's thread

    def intake(self) -> bool:
        """Carries out what the callers asked for, as far as their media have been read."""
        worked = False
        for name, session in list(self.sessions.items()):
            for _ in range(COMMANDS_PER_TICK):
                conversation = self.conversations.get(name)
                if conversation is None or not session.inbox:
                    break
                media = session.inbox[0].media
                if media is not None and not media.done():
                    break
                _carry_out(session.inbox.popleft(), conversation)
                worked = True
        return worked

    def active(self) -> list[Conversation]:
        """Conversations whose events somebody takes."""
        full = {name for name, session in self.sessions.items() if session.outbox.is_full}
        return [c for name, c in self.conversations.items() if name not in full]

    def keep_prefixes(self, conversations: Sequence[Conversation]) -> None:
        """Keeps the caches of system prompts, for sessions that will begin alike."""
        for conversation in conversations:
            memory = conversation.memory
            if len(memory.past) == 1 and not memory.to_tell and not memory.done:
                key = _prefix_key(memory)
                if key not in self._prefixes:
                    twin = memory.fork()
                    twin.items = twin.items[:1]
                    twin.queue.clear()
                    self._prefixes[key] = twin
                    if len(self._prefixes) > MAX_PREFIXES:
                        self.drop_prefix()

    def drop_prefix(self) -> bool:
        """Frees the blocks of the prefix that was used longest ago; False if there is none."""
        if not self._prefixes:
            return False
        _, memory = self._prefixes.popitem(last=False)
        memory.release()
        return True

    def transcribe(self, session: LiveSession, conversation: Conversation, item_id: str) -> None:
        """A second, silent conversation in which the model writes down what it heard."""
        item = next((i for i in conversation.memory.items if i.id == item_id), None)
        audio = self.kit.config.thinker_config.audio_token_index
        if item is None or not any(audio in piece.ids for piece in item.pieces):
            return conversation.fail("item_not_found", f"{item_id} is no item with sound")
        system, request = self.transcription
        settings = Settings(speak=False, system=system, max_text_tokens=512)
        _, child = self._new(settings, background=True)

        def forward(event: api.Event) -> None:
            tell = conversation.replies.tell
            if isinstance(event, api.TextDelta):
                tell(api.InputTranscript, item=item_id, text=event.text)
            elif isinstance(event, api.ResponseDone):
                tell(api.InputTranscript, item=item_id, text=event.text, done=True)
                self.conversations.pop(child.session, None)
                child.memory.release()

        child.replies.send = forward
        child.memory.items.append(Item("system", "system", [self.system_piece(settings)]))
        child.memory.items.append(Item(item.id, "user", self._asked_again(item, request)))
        self.conversations[child.session] = child
        self._adopt_prefix(child)
        child.respond(Request(self.kit.new_id("resp")))

    def update(
        self, session: LiveSession, conversation: Conversation, changes: Mapping[str, Any]
    ) -> None:
        before = conversation.settings
        try:
            settings = self._checked(before, changes)
            if settings.speak != before.speak:
                raise ValueError("speak is fixed while a session lives; open another session")
            same = (settings.system, settings.tools) == (before.system, before.tools)
            system = None if same else self.system_piece(settings)
        except ValueError as error:
            return conversation.fail("invalid_value", str(error), param=next(iter(changes), None))
        session.current_settings = settings
        conversation.update(settings, system)

    def save(self, conversation: Conversation, path: Path) -> None:
        try:
            store.write(conversation, path, model=self.model)
        except (ValueError, OSError) as error:
            return conversation.fail("not_saved", str(error))
        conversation.replies.tell(api.Saved, path=str(path))

    def end(self, session: LiveSession) -> None:
        conversation = self.conversations.pop(session.id, None)
        with self._lock:
            self.sessions.pop(session.id, None)
        if conversation is None:
            return
        conversation.forget_early()
        if conversation.replies.current is not None:
            conversation.replies.generation += 1
            conversation.replies.interrupt("closed")
        conversation.memory.release()
        conversation.replies.tell(api.Closed)

    def fail_all(self, message: str) -> None:
        """After an error in a batch nobody's caches can be trusted: all sessions end."""
        for name, session in list(self.sessions.items()):
            conversation = self.conversations[name]
            conversation.replies.drop()
            conversation.replies.tell(api.Failed, code="server_error", message=message, fatal=True)
            session.inbox.clear()
            self.end(session)
        self.conversations.clear()

    # ---- parts of that

    def _checked(self, settings: Settings, changes: Mapping[str, Any]) -> Settings:
        known = {field.name for field in fields(Settings)}
        if unknown := set(changes) - known:
            names = ", ".join(sorted(known))
            raise ValueError(f"unknown setting {sorted(unknown)[0]!r}; known are {names}")
        settings = replace(settings, **changes)
        if settings.speak and settings.voice not in self.model.voices:
            remedy = f"choose one of {', '.join(self.model.voices)}"
            if not self.model.voices:
                remedy = "the checkpoint has none: add its spk_dict.pt, or use speak=False"
            raise ValueError(f"unknown voice {settings.voice!r}; {remedy}")
        return settings

    def _new(
        self, settings: Settings, *, background: bool = False
    ) -> tuple[LiveSession, Conversation]:
        outbox, name = Outbox(), self.kit.new_id("sess")
        thinker, talker = self.memory_pools
        memory = Memory(
            self.kit.config.thinker_config,
            thinker=thinker,
            talker=talker if settings.speak else None,
        )
        conversation = Conversation(
            name,
            settings,
            kit=self.kit,
            memory=memory,
            send=outbox.put,
            purge=outbox.purge,
            background=background,
        )
        return LiveSession(name, settings, self, outbox), conversation

    def _register(
        self,
        session: LiveSession,
        conversation: Conversation,
        first: Callable[[Conversation], None],
        *,
        after: Future[None] | None = None,
    ) -> None:
        """Admits a session; `first` is done before its callers' commands, once `after` is done."""
        with self._lock:
            if len(self.sessions) >= self.max_sessions:
                raise api.EngineFullError(
                    f"the engine holds {self.max_sessions} sessions already; try again later"
                )
            session.inbox.append(Waiting(lambda c, _: first(c), after))
            self.conversations[session.id] = conversation
            self.sessions[session.id] = session
        self.wake()

    def _adopt_prefix(self, conversation: Conversation) -> None:
        """Takes the caches of a session that began alike, or computes them."""
        memory = conversation.memory
        known = self._prefixes.get(_prefix_key(memory))
        if known is not None:
            self._prefixes.move_to_end(_prefix_key(memory))
            memory.adopt(known)
        memory.sync()

    def _asked_again(self, item: Item, request: str) -> list[Piece]:
        """The pieces of a turn with a request at its end."""
        composer = self.kit.composer()
        composer.end()
        end = composer.piece.ids
        *pieces, last = item.pieces
        assert last.ids[-len(end) :] == end, "a turn ends in its end"
        composer = self.kit.composer()
        composer.text(request)
        composer.end()
        return [*pieces, replace(last, ids=last.ids[: -len(end)] + composer.piece.ids)]


def _carry_out(waiting: Waiting, conversation: Conversation) -> None:
    result = None
    if waiting.media is not None:
        error = waiting.media.exception()
        if isinstance(error, ValueError):
            return conversation.fail("invalid_media", str(error))
        if error is not None:
            raise error
        result = waiting.media.result()
    waiting.run(conversation, result)


def _prefix_key(memory: Memory) -> tuple[Any, ...]:
    piece = memory.items[0].pieces[0]
    return (memory.talker is not None, *piece.ids)
