"""The batched passes of one tick: whoever is due in, caches, chosen ids and samples out.

Every pass takes the rows of several conversations at once; what it did is written back to their
memories and replies, except chosen ids, which the engine hands on when the tick's work is queued.
Shapes: B rows, T tokens, C width of the Thinker, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinktalk.config import Solver
from thinktalk.live.blocks import BlockPool, send
from thinktalk.live.graphs import Graphs
from thinktalk.live.history import Piece
from thinktalk.live.memory import Memory, Span
from thinktalk.live.speak import Reply
from thinktalk.live.steps import Steps
from thinktalk.live.voicing import VoiceJob
from thinktalk.model.audio import num_tokens
from thinktalk.model.talker import opening_codec_ids, prompt_rows
from thinktalk.options import Sampling
from thinktalk.sampling import choose, draw
from thinktalk.weights import LoadedModel

Speaker = tuple[Memory, Reply]


@dataclass(frozen=True)
class Chosen:
    """ids int64 [B] by reply, still on the device; for text also log-probabilities [B,2]: of the
    id, and of the stop id."""

    replies: list[Reply]
    ids: Tensor
    log_probabilities: Tensor | None = None


class Passes:
    def __init__(
        self,
        model: LoadedModel,
        *,
        num_slots: int,
        thinker_pool: BlockPool,
        talker_pool: BlockPool,
        solver: Solver | None = None,
        graphs: Graphs | None = None,
    ):
        """num_slots: replies that may be in progress at the same time. graphs: runs the steps that
        come again and again."""
        omni = model.omni
        self.thinker, self.talker, self.token2wav = omni.thinker, omni.talker, omni.token2wav
        self.thinker_pool, self.talker_pool = thinker_pool, talker_pool
        self.device, config = model.device, omni.config
        dit = self.token2wav.code2wav_dit_model
        self.schedule = dit.schedule(solver or dit.config.solver)
        self.steps = Steps(
            omni,
            thinker_pool=thinker_pool,
            talker_pool=talker_pool,
            schedule=self.schedule,
            graphs=graphs,
        )
        self.voices = self.token2wav.new_state(num_slots, self.schedule)
        self.codec_head = self.talker.usable_head(
            num_codes=config.token2wav_config.dit_config.num_embeds
        )
        text_vocab = config.thinker_config.text_config.vocab_size
        self.seen_text = torch.zeros(num_slots, text_vocab, dtype=torch.bool, device=self.device)
        shape = num_slots, len(self.codec_head.ids)
        self.seen_codec = torch.zeros(shape, dtype=torch.bool, device=self.device)
        talker = config.talker_config
        said = opening_codec_ids(talker, device=self.device)
        self.codec_history = said[self.codec_head.ids]
        with torch.inference_mode():
            ends = torch.tensor(
                [talker.tts_text_end_token_id, talker.tts_text_pad_token_id], device=self.device
            )
            self.text_end, self.text_pad = self.thinker.embed(ends)
            self.speakers = {
                name: self.token2wav.voice(
                    voice.cond.to(self.device), voice.ref_mel.to(self.device), self.schedule
                )[0]
                for name, voice in model.voices.items()
            }

    # ---- listening

    def encode(self, pieces: Sequence[Piece]) -> None:
        """Fills the features of pieces that have media."""
        mels = [send(mel, self.device) for piece in pieces for mel in piece.mels]
        sizes = [sum(num_tokens(mel.shape[1]) for mel in piece.mels) for piece in pieces]
        audio = _split(self.thinker.encode_audio(mels), sizes)
        images = self._encode_patches([piece.images for piece in pieces])
        videos = self._encode_patches([piece.videos for piece in pieces])
        for piece, *features in zip(pieces, audio, images, videos, strict=True):
            piece.keep_features((features[0], features[1], features[2]))

    def _encode_patches(self, items: list[list[tuple[Tensor, Tensor]]]) -> list[Tensor | None]:
        merge = self.thinker.config.vision_config.spatial_merge_size**2
        every = [(send(patches, self.device), grid) for of in items for patches, grid in of]
        sizes = [sum(int(grid.prod()) // merge for _, grid in of) for of in items]
        return _split(self.thinker.encode_patches(every), sizes)

    # ---- prompts into the caches

    def prefill(self, work: Sequence[tuple[Memory, list[Span]]]) -> None:
        """The next spans of every memory into the Thinker's cache; room must be reserved."""
        counts = [sum(span.stop - span.start for span in spans) for _, spans in work]
        rows = [self._embed(spans) for _, spans in work]
        positions = [torch.cat([span.positions for span in spans], dim=1) for _, spans in work]
        embeddings, places = _batch([e for e, _ in rows]), _batch_positions(positions)
        hidden = self.thinker(
            embeddings,
            positions=send(places, self.device),
            cache=self.thinker_pool.cache,
            plan=self.thinker_pool.plan([memory.thinker_row for memory, _ in work], counts),
        )
        for b, (memory, _) in enumerate(work):
            states = hidden[b, : counts[b]]
            tracks = prompt_rows(rows[b][0], states, rows[b][1])
            memory.advance(counts[b], hidden=states, tracks=tracks, positions=positions[b])

    def tell(self, work: Sequence[tuple[Memory, int]]) -> None:
        """The next rows of every memory's `to_tell` into the Talker's cache."""
        counts = [count for _, count in work]
        waiting = [_first_rows(memory, count) for memory, count in work]
        self.talker(
            _batch([tracks for tracks, _ in waiting]),
            positions=send(_batch_positions([p for _, p in waiting]), self.device),
            cache=self.talker_pool.cache,
            plan=self.talker_pool.plan([memory.talker_row for memory, _ in work], counts),
        )
        for memory, count in work:
            memory.told(count)

    def _embed(self, spans: list[Span]) -> tuple[Tensor, Tensor]:
        """Embeddings [n,C] of spans, and which of them are placeholders, bool [n].

        As Thinker.embed_prompt, but what it must know of the ids is found out on the host.
        """
        media_ids = self.thinker.config.media_token_ids
        parts = [span.piece.part(span.start, span.stop, self.thinker.config) for span in spans]
        ids = torch.cat([ids for ids, _ in parts])
        plain = [torch.full((s.stop - s.start,), s.piece.is_plain) for s in spans]
        media = torch.isin(ids, torch.tensor(media_ids)) & ~torch.cat(plain)
        embeddings = self.thinker.embed(send(ids, self.device))
        for kind, token_id in enumerate(media_ids):
            places = (media & (ids == token_id)).nonzero()[:, 0]
            rows = [rows[kind] for _, rows in parts if rows[kind] is not None]
            assert len(places) == sum(map(len, rows)), (token_id, len(places))
            if rows:
                features = torch.cat(rows).to(embeddings.dtype)
                embeddings[send(places, self.device)] = features
        return embeddings, send(media, self.device)

    # ---- replies

    def begin(self, memory: Memory, reply: Reply, slot: int) -> None:
        """Gives a reply its row in the buffers."""
        reply.slot = slot
        self.seen_text[slot] = False
        ids = {i for mark in memory.past for i in mark.piece.ids}
        self.seen_text[slot, send(list(ids), self.device)] = True
        self.seen_codec[slot] = self.codec_history
        if reply.voice is not None:
            voice = self.speakers[reply.settings.voice]
            self.voices.reset(slot, voice=voice, seed=reply.seed)

    def think(self, work: Sequence[Speaker]) -> Chosen | None:
        """Feeds back what was chosen last and chooses the next text ids."""
        feeding = [(m, r) for m, r in work if r.to_feed is not None]
        states: dict[int, Tensor] = {id(r): m.hidden for m, r in work if m.hidden is not None}
        if feeding:
            hidden, rows = self.steps.think(
                [m.thinker_row for m, _ in feeding],
                [(r.to_feed or 0, r.first_position + len(r.rows)) for _, r in feeding],
            )
            for b, (_, reply) in enumerate(feeding):
                reply.to_feed = None
                reply.rows.append(rows[b : b + 1])
                states[id(reply)] = hidden[b : b + 1]
        choosing = [r for _, r in work if not r.sampled_all]
        if not choosing:
            return None
        logits = self.thinker.logits(torch.cat([states[id(r)] for r in choosing]))
        uniforms = [draw(r.seed, "text", len(r.text_ids)) for r in choosing]
        samplings = [r.settings.text for r in choosing]
        ids = self._choose(logits, samplings, choosing, self.seen_text, uniforms)
        stop = self.thinker.config.eos_token_id
        for b, reply in enumerate(choosing):
            if reply.said is not None:
                step = len(reply.text_ids)
                ids[b] = reply.said[step] if step < len(reply.said) else stop
        asked = torch.nn.functional.pad(ids[:, None], (0, 1), value=stop)
        return Chosen(choosing, ids, logits.log_softmax(-1).gather(1, asked))

    def speak(self, work: Sequence[Speaker]) -> Chosen | None:
        """One step of the Talker for every reply: the next codec ids."""
        starting = [(m, r) for m, r in work if not r.codec_began]
        going = [(m, r) for m, r in work if r.codec_began]
        states = []
        if starting:
            states.append(self._start(starting))
        if going:
            states.append(self._go_on(going))
        if not states:
            return None
        replies = [r for _, r in starting + going]
        logits = self.codec_head.logits(torch.cat(states))
        uniforms = [draw(r.seed, "speech", len(r.codec_ids)) for r in replies]
        samplings = [r.settings.speech for r in replies]
        places = self._choose(logits, samplings, replies, self.seen_codec, uniforms)
        return Chosen(replies, self.codec_head.ids[places])

    def _start(self, work: Sequence[Speaker]) -> Tensor:
        """The two rows behind the prompt: the voice, and the first row of the reply."""
        tokens = [r.voice.bos_token for _, r in work if r.voice is not None]
        openings = self.thinker.embed(send(tokens, self.device))
        firsts = torch.cat([r.rows[0] for _, r in work])
        places = [[r.first_position, r.first_position + 1] for _, r in work]
        hidden = self._talk(self.talker.start_rows(openings, firsts), places, work)
        return hidden[:, -1]

    def _go_on(self, work: Sequence[Speaker]) -> Tensor:
        return self.steps.talk(
            [m.talker_row for m, _ in work],
            [(r.codec_ids[-1], r.speech_position + len(r.codec_ids) - 1) for _, r in work],
            torch.stack([self._reply_row(r) for _, r in work]),
        )

    def _reply_row(self, reply: Reply) -> Tensor:
        """What the next position of the speech sees of the text: a row, its end, or padding."""
        step = len(reply.codec_ids)
        if step < reply.num_spoken:
            return reply.rows[step][0]
        return self.text_end if step == reply.num_spoken else self.text_pad

    def _talk(self, tracks: Tensor, places: list[list[int]], work: Sequence[Speaker]) -> Tensor:
        rows = [m.talker_row for m, _ in work]
        count = tracks.shape[1]
        hidden = self.talker(
            tracks,
            positions=send(places, self.device).expand(3, -1, -1),
            cache=self.talker_pool.cache,
            plan=self.talker_pool.plan(rows, [count] * len(rows)),
        )
        for row in rows:
            row.length += count
        return hidden

    def _choose(
        self,
        logits: Tensor,
        samplings: list[Sampling],
        replies: list[Reply],
        seen: Tensor,
        uniforms: list[float],
    ) -> Tensor:
        """Rows that sample alike are drawn together; the chosen ids are noted as seen."""
        groups = defaultdict(list)
        for b, sampling in enumerate(samplings):
            groups[sampling].append(b)
        slots = send([r.slot for r in replies], self.device)
        draws, seen_here = send(uniforms, self.device), seen[slots]
        if len(groups) == 1:
            ids = choose(logits, samplings[0], seen=seen_here, uniform=draws)
        else:
            ids = torch.empty_like(slots)
            for sampling, rows in groups.items():
                index = send(rows, self.device)
                ids[index] = choose(
                    logits[index], sampling, seen=seen_here[index], uniform=draws[index]
                )
        seen[slots, ids] = True
        return ids

    # ---- the voice

    def voice_job(self, work: Sequence[tuple[Reply, int]]) -> VoiceJob:
        """The next blocks of every reply, from so many of its ids, to be rendered by any thread."""
        size = self.token2wav.config.dit_config.codes_per_block
        replies, counts = [reply for reply, _ in work], [count for _, count in work]
        ids = torch.zeros(len(work), max(counts), dtype=torch.int64)
        for row, (reply, count) in zip(ids, work, strict=True):
            first = reply.blocks * size
            row[:count] = torch.tensor(reply.codec_ids[first : first + count])
        state = self.voices.rows(_slots(replies))
        return VoiceJob(replies, state, ids, torch.tensor(counts))

    def render(self, job: VoiceJob) -> None:
        """Fills the job's waves. Reads nothing that changes but the job."""
        job.waves = self.token2wav.step(
            job.state,
            job.ids,
            counts=job.counts,
            schedule=self.schedule,
            solve=self.steps.solve,
            vocode=self.steps.vocode,
        )

    def voiced(self, job: VoiceJob) -> list[tuple[Reply, Tensor]]:
        """Takes a rendered job back: the samples of every reply that is not over meanwhile."""
        size = self.token2wav.config.dit_config.codes_per_block
        rows = [row for row, reply in enumerate(job.replies) if not reply.ended]
        replies = [job.replies[row] for row in rows]
        if not rows:
            return []
        state = job.state if len(rows) == len(job.replies) else job.state.rows(rows)
        self.voices.write(_slots(replies), state)
        for reply, blocks in zip(replies, state.blocks.tolist(), strict=True):
            reply.rendering, reply.blocks = False, blocks
            reply.voice_done = reply.codec_done and blocks * size >= len(reply.codec_ids)
        return [(job.replies[row], job.waves[row]) for row in rows]


def _slots(replies: Sequence[Reply]) -> list[int]:
    return [reply.slot for reply in replies if reply.slot is not None]


def _split(values: Tensor | None, sizes: list[int]) -> list[Tensor | None]:
    if values is None:
        return [None] * len(sizes)
    return [part if len(part) else None for part in values.split(sizes)]


def _batch(rows: list[Tensor]) -> Tensor:
    """Rows [n,C] of different length -> [B,T,C], zeros behind the shorter ones."""
    return rows[0][None] if len(rows) == 1 else torch.nn.utils.rnn.pad_sequence(rows, True)


def _batch_positions(rows: list[Tensor]) -> Tensor:
    """Positions [3,n] of different length -> [3,B,T]."""
    return _batch([row.mT for row in rows]).permute(2, 0, 1)


def _first_rows(memory: Memory, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` rows of `to_tell`."""
    tracks = torch.cat([tracks for tracks, _ in memory.to_tell])[:count]
    positions = torch.cat([positions for _, positions in memory.to_tell], dim=1)[:, :count]
    return tracks, positions
