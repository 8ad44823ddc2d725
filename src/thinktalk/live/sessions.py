"""The sessions of an engine: opened, forked, resumed, transcribed and ended.

`open` and its like may be called from any thread; what they start is done by the engine's, in
`intake`, in the order in which each session asked for it.
"""

import json
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from thinktalk.live import api, store
from thinktalk.live.blocks import BlockPool, OutOfBlocksError
from thinktalk.live.conversation import KEPT_SHARE, Conversation
from thinktalk.live.history import Item, Piece
from thinktalk.live.memory import Memory
from thinktalk.live.prefixes import Prefixes
from thinktalk.live.replies import Kit, Request
from thinktalk.live.session import LiveSession, Outbox, Waiting
from thinktalk.media.chat import DEFAULT_SYSTEM_PROMPT, SPEECH_SYSTEM_PROMPT, render
from thinktalk.media.chat import Piece as Rendered
from thinktalk.media.image import Processor
from thinktalk.media.prompt import Prompt, assemble
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.options import Settings
from thinktalk.weights import GENERATION, LoadedModel

MEDIA_WORKERS = 4
COMMANDS_PER_TICK = 64  # of one session
MAX_TRANSCRIPT_TOKENS = 512
NO_ROOM = "the engine's cache has no room for it; close sessions, or raise cache_positions"
# system prompt and request with which the official models write down what they hear
TRANSCRIPTION = (
    "You are a speech recognition model.",
    "Transcribe the English audio into text without any punctuation marks.",
)

log = logging.getLogger(__name__)


class Sessions:
    def __init__(
        self,
        model: LoadedModel,
        *,
        max_sessions: int,
        thinker_pool: BlockPool,
        talker_pool: BlockPool,
        transcription: tuple[str, str] | None = None,
    ):
        """transcription: the system prompt and the request with which the model writes down what
        it hears; by default what the checkpoint's generation_config.json says, or Qwen's own."""
        self.model, self.max_sessions = model, max_sessions
        self.transcription = transcription or transcription_words(model.folder)
        self.memory_pools = thinker_pool, talker_pool
        self.kit = Kit(
            model.config,
            Tokenizer.from_folder(model.folder),
            Processor.from_folder(model.folder),
            model.voices,
            new_id=lambda kind: f"{kind}_{uuid.uuid4().hex[:20]}",
        )
        self.sessions: dict[str, LiveSession] = {}
        self.conversations: dict[str, Conversation] = {}  # transcriptions, too
        self.is_closed = False
        self.prefixes = Prefixes()
        self._workers = ThreadPoolExecutor(MEDIA_WORKERS, thread_name_prefix="thinktalk-media")
        self._lock = threading.Lock()

    # what the engine does for its sessions

    def wake(self) -> None:
        """Tells the engine's thread that there is something to do."""
        raise NotImplementedError

    def step(self) -> bool:
        raise NotImplementedError

    @property
    def has_thread(self) -> bool:
        raise NotImplementedError

    # ---- the model

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
        session, conversation = self._new(settings, speaks=settings.speak)
        conversation.memory.items.append(Item("system", "system", [self.system_piece(settings)]))
        self._register(session, conversation, lambda c: self.prefixes.adopt(c.memory))
        return session

    def resume(self, path: str | Path) -> LiveSession:
        """See api.Engine."""
        saved = store.read(Path(path), model=self.model)
        settings, speaks = self._checked(saved.settings, {}), "talker.keys" in saved.tensors
        session, conversation = self._new(settings, speaks=speaks)
        self._register(session, conversation, lambda c: self._restore(c, saved))
        return session

    def fork(self, session: LiveSession) -> LiveSession:
        """See Session.fork. The twin's commands wait until the fork has been made."""
        parent = self.conversations.get(session.id)
        speaks = parent is not None and parent.memory.talker is not None
        twin, conversation = self._new(session.settings, speaks=speaks)
        done: Future[None] = Future()

        def make(parent: Conversation) -> None:
            try:
                if conversation.session in self.conversations:
                    store.fork(parent, conversation)
            finally:
                done.set_result(None)

        self._register(twin, conversation, lambda _: None, after=done)
        try:
            session.post(make, even_if_closed=True, dropped=done.cancel)
        except api.SessionClosedError:
            self._forget(twin)
            raise
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
        piece = Piece.of(self.assemble(rendered, settings))
        context = self.kit.config.thinker_config.text_config.max_position_embeddings
        longest = int(KEPT_SHARE * context)
        if len(piece.ids) > longest:
            raise ValueError(
                f"the system prompt and tools have {len(piece.ids)} tokens; at most {longest} of "
                f"the {context} of the context are left to them: shorten them"
            )
        return piece

    def close_workers(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    # ---- on the engine's thread

    def intake(self) -> bool:
        """Carries out what the callers asked for, as far as their media have been read. What goes
        wrong with one session's commands ends that session and no other."""
        worked = False
        for name, session in list(self.sessions.items()):
            for _ in range(COMMANDS_PER_TICK):
                conversation, waiting = self.conversations.get(name), session.take()
                if conversation is None or waiting is None:
                    break
                worked = True
                try:
                    _carry_out(waiting, conversation)
                except Exception as error:  # the edge of the command
                    log.exception("a command of %s failed", name)
                    self.abort(conversation, f"this session failed: {error}")
        return worked

    def active(self) -> list[Conversation]:
        """Conversations whose events somebody takes."""
        sessions, conversations = list(self.sessions.items()), list(self.conversations.items())
        full = {name for name, session in sessions if session.outbox.is_full}
        return [c for name, c in conversations if name not in full]

    def transcribe(self, conversation: Conversation, item_id: str) -> None:
        """A second, silent conversation in which the model writes down what it heard."""
        item = next((i for i in conversation.memory.items if i.id == item_id), None)
        audio = self.kit.config.thinker_config.audio_token_index
        heard = item is not None and item.role == "user" and not item.is_open
        if item is None or not heard or not any(audio in piece.ids for piece in item.pieces):
            message = f"{item_id} is no finished item with sound"
            return conversation.fail("item_not_found", message, param="item_id")
        system, request = self.transcription
        settings = Settings(speak=False, system=system, max_text_tokens=MAX_TRANSCRIPT_TOKENS)
        _, child = self._new(settings, speaks=False, owner=conversation.session)

        def forward(event: api.Event) -> None:
            tell = conversation.replies.tell
            if isinstance(event, api.TextDelta):
                tell(api.InputTranscript, item=item_id, text=event.text)
            elif isinstance(event, api.ResponseDone):
                if event.status != "failed":  # else that is told in a moment
                    tell(api.InputTranscript, item=item_id, text=event.text, done=True)
                self._drop(child)
            elif isinstance(event, api.Failed):
                conversation.fail("transcription_failed", event.message, param="item_id")

        child.replies.send = forward
        child.memory.items.append(Item("system", "system", [self.system_piece(settings)]))
        child.memory.items.append(Item(item.id, "user", self._asked_again(item, request)))
        self.conversations[child.session] = child
        self.prefixes.adopt(child.memory)
        child.respond(Request(self.kit.new_id("resp")))

    def update(
        self, session: LiveSession, conversation: Conversation, changes: Mapping[str, Any]
    ) -> None:
        before = conversation.settings
        try:
            settings = self._checked(before, changes)
            speaks = conversation.memory.talker is not None
            if settings.speak and not speaks:
                raise ValueError("a session that was opened silent stays so; open another one")
            same = (settings.system, settings.tools) == (before.system, before.tools)
            system = None if same else self.system_piece(replace(settings, speak=speaks))
        except (ValueError, TypeError) as error:
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
        session.shut()
        conversation = self._forget(session)
        if conversation is None:
            return
        conversation.forget_early()
        if conversation.replies.current is not None:
            conversation.replies.generation += 1
            conversation.replies.interrupt("closed")
        self._drop(conversation)
        conversation.replies.tell(api.Closed)

    def abort(self, conversation: Conversation, message: str) -> None:
        """Ends a session, or gives up a transcription, that cannot go on."""
        fatal = conversation.owner is None
        conversation.replies.tell(api.Failed, code="server_error", message=message, fatal=fatal)
        conversation.replies.abandon()
        if conversation.session in self.sessions:
            self.end(self.sessions[conversation.session])
        else:
            self._drop(conversation)

    def fail_all(self, message: str) -> None:
        """After an error in a batch nobody's caches can be trusted: all sessions end."""
        for conversation in list(self.conversations.values()):
            if conversation.owner is None:
                self.abort(conversation, message)
        while self.prefixes.drop():
            pass

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
        self, settings: Settings, *, speaks: bool, owner: str | None = None
    ) -> tuple[LiveSession, Conversation]:
        """speaks: whether it ever may."""
        outbox, name = Outbox(), self.kit.new_id("sess")
        thinker, talker = self.memory_pools
        memory = Memory(
            self.kit.config.thinker_config,
            thinker=thinker,
            talker=talker if speaks else None,
        )
        conversation = Conversation(
            name,
            settings,
            kit=self.kit,
            memory=memory,
            send=outbox.put,
            purge=outbox.purge,
            owner=owner,
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
            if self.is_closed:
                raise api.SessionClosedError("the engine is closed; make another one")
            if len(self.sessions) >= self.max_sessions:
                raise api.EngineFullError(
                    f"the engine holds {self.max_sessions} sessions already; try again later"
                )
            session.inbox.append(Waiting(lambda c, _: first(c), after))
            self.conversations[session.id] = conversation
            self.sessions[session.id] = session
        self.wake()

    def _forget(self, session: LiveSession) -> Conversation | None:
        with self._lock:
            self.sessions.pop(session.id, None)
            return self.conversations.pop(session.id, None)

    def _drop(self, conversation: Conversation) -> None:
        """Frees a conversation's caches, and those of its transcriptions."""
        self.conversations.pop(conversation.session, None)
        conversation.memory.release()
        for child in list(self.conversations.values()):
            if child.owner == conversation.session:
                child.replies.abandon()
                self._drop(child)

    def _restore(self, conversation: Conversation, saved: store.Saved) -> None:
        while True:
            try:
                return store.restore(conversation, saved)
            except OutOfBlocksError:
                if not self.prefixes.drop():
                    return self.abort(conversation, NO_ROOM)

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


def transcription_words(folder: Path) -> tuple[str, str]:
    """The system prompt and the request with which a checkpoint was taught to transcribe."""
    path = folder / GENERATION
    words = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = words.get("transcription", {})
    return known.get("system", TRANSCRIPTION[0]), known.get("request", TRANSCRIPTION[1])


def _carry_out(waiting: Waiting, conversation: Conversation) -> None:
    result = None
    if waiting.media is not None:
        error = waiting.media.exception()
        if error is not None:
            # of decoders and the network, too, which raise what they like
            return conversation.fail("invalid_media", str(error) or type(error).__name__)
        result = waiting.media.result()
    waiting.run(conversation, result)
