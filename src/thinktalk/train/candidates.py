"""Prompts in; several spoken replies to each, what an independent ear makes of them, and pairs of a
better and a worse one out, as rows for `talker-dpo`.

The text is that of the row's last reply, or the Thinker's where the row has none. The Talker says
it several times, each time drawn anew; errors are words that the ear takes for others, and pauses
that do not follow the punctuation. With held-out rows this is also the measure: the word error of
sampled speech.
"""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from thinktalk.generate import Thought, load_processor, load_tokenizer, think
from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT, parse_tool_calls
from thinktalk.media.prompt import build_prompt
from thinktalk.options import GREEDY, OFFICIAL_SPEECH, Sampling
from thinktalk.train.ears import Candidate, Ear, Ears, RecogniserError, command_ear, load_code_ear
from thinktalk.train.rows import Row
from thinktalk.train.shards import REMOTE, Member, Source, chained, content, open_source
from thinktalk.train.speech_command import CODES, PLAYROOM, WORDS
from thinktalk.train.survey import BAD_ROW_ERRORS, reason_of
from thinktalk.train.takes import takes
from thinktalk.weights import LoadedModel

LOG = logging.getLogger(__name__)

CANDIDATES, PAIRS, SUMMARY = "candidates.jsonl", "pairs.jsonl", "summary.json"
LEAST_GAP = 1.0  # errors between the two replies of a pair
MOST_OF_CHOSEN = 0.5  # errors of the better one: of two bad replies only bad ones are learned
# A reply that is longer went astray: so many ids, and so many more for every letter (0.3 s).
SPARE_IDS, IDS_PER_LETTER = 50, 15
SEED_STEP = 1_000_003  # between the seeds of prompts
UNSPOKEN: dict[str, Any] = {}  # the entry of a row whose reply has no words, or calls a tool


@dataclass(frozen=True)
class Judged:
    """A prompt's replies. messages: the conversation before them, as a row holds it."""

    messages: list[dict[str, Any]]
    tools: list[Any]
    text: str
    voice: str
    num_words: int
    candidates: list[Candidate]


def draw_pairs(
    model: LoadedModel,
    source: Source,
    out: Path,
    *,
    ear: Ears,
    pairs: int = 1,
    count: int | None = None,
    samples: int = 6,
    sampling: Sampling = OFFICIAL_SPEECH,
    seed: int = 0,
    max_text_tokens: int = 256,
) -> dict[str, float]:
    """Draws `samples` replies to each of the first `count` rows (all), and writes into `out`:

    candidates.jsonl: all of them with their errors; pairs.jsonl: the best and the worst reply of
    each prompt, where they lie a word apart and the best is right, and up to `pairs` - 1 more from
    the next best and the next worst; summary.json, which is also returned: the word error rate and
    pause errors of all candidates, and how many pairs there are. Interrupted, the same call goes
    on. Rows whose reply is not spoken are counted and left out; those that cannot be used are told
    one by one. Raises ValueError where none is left, where `out` holds candidates that were drawn
    otherwise, or where somebody else is drawing into it.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; a prompt needs at least 1 reply, a pair needs 2")
    if not model.voices:
        raise ValueError(f"{model.folder} has no voices, so it cannot speak; add one")
    out.mkdir(parents=True, exist_ok=True)
    settings = {"samples": samples, "seed": seed, **asdict(sampling), "rows": source.stamp()}
    numbers = range(min(len(source), count) if count else len(source))
    how = ear, samples, sampling, seed, max_text_tokens
    with _alone_in(out):
        done = _resumed(out / CANDIDATES, settings)
        with (out / CANDIDATES).open("a", encoding="utf-8") as file:
            for number in tqdm(numbers[len(done) :], initial=len(done), total=len(numbers)):
                try:
                    judged = _judge(model, source.row(number), number, *how)
                    entry = asdict(_portable(judged, out / "media")) if judged else UNSPOKEN
                except BAD_ROW_ERRORS as error:
                    tqdm.write(f"skipped {source.place(number)}: {reason_of(error)}")
                    entry = None
                done.append(entry)
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
    entries = _spoken(done[: len(numbers)])
    found = [pair for entry in entries for pair in pairs_of(entry, most=pairs)]
    lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in found)
    (out / PAIRS).write_text("".join(lines), encoding="utf-8")
    summary = summarise(entries) | {"pairs": len(found)}
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two that append to one file would mix their lines, whose number is that of the prompt."""
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        message = f"{folder}: somebody else draws replies here; wait for its end, or stop it"
        raise ValueError(message) from None


def draw_as_told(
    options: Namespace, model: LoadedModel, sphinx: Callable[[Sequence[str] | None], tuple]
) -> None:
    """What `thinktalk train pairs` says. sphinx: what the default ear consists of, for some texts
    or for the playroom (None)."""
    source = chained([open_source(path) for path in options.data])
    if options.recogniser == CODES:
        ear = load_code_ear(model.folder)
    elif options.recogniser == PLAYROOM:
        ear = Ear(*sphinx(None))
    elif options.recogniser == WORDS:
        ear = Ear(*sphinx(list(texts_of(source))))
    else:
        ear = command_ear(options.recogniser)
    try:
        summary = draw_pairs(
            model,
            source,
            options.out,
            ear=ear,
            pairs=options.pairs,
            count=options.rows,
            samples=options.samples,
            sampling=replace(OFFICIAL_SPEECH, temperature=options.temperature),
            seed=options.seed,
        )
    except RecogniserError as error:
        raise ValueError(str(error)) from None
    print(", ".join(f"{name} {value:.4g}" for name, value in summary.items()))


def texts_of(source: Source) -> Iterator[str]:
    """The last replies of all rows that have one."""
    for index in range(len(source)):
        try:
            text = _asked(source.row(index))[1]
        except BAD_ROW_ERRORS:
            continue
        if text:
            yield text


def _spoken(done: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """What was drawn; says how many rows were left out because they are not spoken."""
    if unspoken := done.count(UNSPOKEN):
        if unspoken == len(done):
            raise ValueError(
                f"no last reply in the {unspoken} rows is spoken; give rows with something to say"
            )
        LOG.warning("left out %d of %d rows, whose last reply is not spoken", unspoken, len(done))
    return [entry for entry in done if entry]


def summarise(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What all candidates together got wrong: word_error_rate, and pause_errors of a reply."""
    each = [(entry["num_words"], c) for entry in entries for c in entry["candidates"]]
    if not each:
        raise ValueError("no row of the data can be used to sample replies; see the reasons above")
    words = sum(num_words for num_words, _ in each)
    return {
        "prompts": len(entries),
        "word_error_rate": sum(c["word_errors"] for _, c in each) / max(words, 1),
        "pause_errors": sum(c["pause_errors"] for _, c in each) / len(each),
    }


def pairs_of(entry: Mapping[str, Any], *, most: int = 1) -> list[dict[str, Any]]:
    """Rows with the best reply as chosen and the worst as rejected, then the next best and the next
    worst, as long as the better one is right and the other is not close to it.

    Of equal ones the first counts: nothing but errors tells replies apart.
    """
    spoken = [c for c in (Candidate(**stored) for stored in entry["candidates"]) if c.codes]
    best = sorted(spoken, key=lambda c: c.errors)[: len(spoken) // 2]
    worst = sorted(spoken, key=lambda c: -c.errors)
    rows = []
    for chosen, rejected in list(zip(best, worst, strict=False))[:most]:
        if rejected.errors - chosen.errors < LEAST_GAP or chosen.errors > MOST_OF_CHOSEN:
            break
        reply = {"role": "assistant", "content": entry["text"]}
        said = {"codes": chosen.codes, "speaker": entry["voice"]}
        row = {"messages": [*entry["messages"], reply | said], "rejected_codes": rejected.codes}
        if entry["tools"]:
            row["tools"] = json.dumps(entry["tools"], ensure_ascii=False)
        errors, heard = ([chosen.errors, rejected.errors], [chosen.heard, rejected.heard])
        rows.append(row | {"errors": errors, "heard": heard})
    return rows


def _judge(
    model: LoadedModel,
    row: Row,
    number: int,
    ear: Ears,
    samples: int,
    sampling: Sampling,
    seed: int,
    max_text_tokens: int,
) -> Judged | None:
    """None where the reply is nothing that is spoken; ValueError for a row that cannot be used."""
    messages, text, speaker = _asked(row)
    voice = speaker or list(model.voices)[number % len(model.voices)]
    if voice not in model.voices:
        known = ", ".join(model.voices)
        raise ValueError(f"the speaker {voice!r} is unknown; the voices are {known}")
    tokenizer, config = load_tokenizer(model.folder), model.config.thinker_config
    prompt = build_prompt(
        [message | {"content": _read(message["content"])} for message in messages],
        tokenizer=tokenizer,
        config=config,
        processor=load_processor(model.folder),
        system=SPEECH_SYSTEM_PROMPT,
        tools=row.tools,
    )
    with torch.inference_mode():
        if text is None:
            thought = Thought(model.omni, prompt, max_text_tokens=max_text_tokens)
            text = tokenizer.decode(list(think(thought, sampling=GREEDY, seed=seed)))
        else:
            ids = tokenizer.encode(text)
            thought = Thought(model.omni, prompt, max_text_tokens=len(ids) + 1)
            for token in ids:
                thought.feed(torch.tensor([token], device=model.device))
        wanted = ear.spell(text).split()
        if not wanted or parse_tool_calls(text):
            return None
        drawn = takes(
            thought,
            voice=model.voices[voice],
            sampling=sampling,
            seeds=[seed + SEED_STEP * number + sample for sample in range(samples)],
            max_codec_ids=SPARE_IDS + IDS_PER_LETTER * len(text),
        )
        judged = ear.judge(drawn, text, model=model, voice=voice)
    return Judged(messages, list(row.tools), text, voice, len(wanted), judged)


def _asked(row: Row) -> tuple[list[dict[str, Any]], str | None, str | None]:
    """The conversation before the last reply, that reply's text ("": it calls a tool) and its
    speaker, if there are."""
    conversation = row.conversation
    messages = list(conversation.messages)
    if messages[-1]["role"] != "assistant":
        return messages, None, None
    last = messages.pop()
    if not messages:
        raise ValueError("nothing is asked; add the turn that the reply answers")
    said = conversation.speech.get(len(messages))
    reply = last["content"]
    if not isinstance(reply, str):
        reply = "".join(part.get("text", "") for part in reply)
    spoken = "" if last.get("tool_calls") else reply
    return messages, spoken, said.speaker if said else None


def _read(parts: Any) -> Any:
    """Content with the members of shards read."""
    if isinstance(parts, str):
        return parts
    return [{key: content(value) for key, value in part.items()} for part in parts]


def _portable(judged: Judged, folder: Path) -> Judged:
    """With media that rows elsewhere can name: whole paths, and files for what lies in shards."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(one) for one in value]
        if isinstance(value, dict):
            return {key: _named(key, one, folder) for key, one in value.items()}
        return value

    messages = [message | {"content": moved(message["content"])} for message in judged.messages]
    return replace(judged, messages=messages)


def _named(key: str, value: Any, folder: Path) -> Any:
    """A medium of a part as a row can name it; everything else stays."""
    if isinstance(value, list):
        return [_named(key, one, folder) for one in value]
    if isinstance(value, Member):
        path = folder / f"{value.shard.stem}_{value.name.replace('/', '_')}"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value.read())
        return str(path.resolve())
    if key in ("image", "audio", "video", "sound") and isinstance(value, str | Path):
        name = str(value)
        return name if name.startswith(REMOTE) else str(Path(name).resolve())
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"the {key} is a {type(value).__name__}; give a file that a row can name")
    return value


def _resumed(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """What is there already; a line that was cut off is dropped."""
    if path.exists():
        head, *lines = path.read_text(encoding="utf-8").split("\n")
        if head != json.dumps(settings):
            raise ValueError(
                f"{path} was drawn from other rows or otherwise ({head[:200]}); give another folder"
            )
        whole = lines[:-1]
        path.write_text("\n".join([head, *whole, ""]), encoding="utf-8")
        return [json.loads(line) for line in whole]
    path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return []
