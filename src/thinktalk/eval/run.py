"""`thinktalk eval SUITE`: a loaded model in, a table of measurements out (text and JSON)."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from thinktalk.eval import live, tasks, times, voices
from thinktalk.eval.tasks import Row, Tick
from thinktalk.live.api import Engine
from thinktalk.playroom import speech
from thinktalk.playroom.cases import Asked

SUITES = ("playroom",)
SEED = 2026

TYPED: tuple[Asked, ...] = ("typed",)
SPOKEN: tuple[Asked, ...] = ("spoken",)
SEEN = ("shape", "colour", "how many", "where", "digit", "read")
HEARD = ("sound", "how often")
WATCHED = ("motion", "order")
# Single talking tasks. Who speaks is asked in writing about a recording, as is a dictation.
SAID: dict[str, Sequence[Asked]] = {
    "repeat": SPOKEN,
    "dictation": TYPED,
    "transcribe": SPOKEN,
    "who": TYPED,
    "persona": (*TYPED, *SPOKEN),
    "tool": (*TYPED, *SPOKEN),
    "name": (*TYPED, *SPOKEN),
}


@dataclass(frozen=True)
class Group:
    """Rows that are measured together. measure: see the functions of tasks.py; its `count` is the
    number of cases, of which every part of the group has a share, and ticks that often."""

    measure: Callable[..., Iterator[Row]]
    parts: int = 1  # equal parts, each of `count` cases
    share: float = 1.0  # of the asked number of cases that one part has

    def count(self, cases: int) -> int:
        return max(round(cases * self.share), 1)

    def steps(self, cases: int) -> int:
        return self.parts * self.count(cases)


def _single(group: str, asked: dict[str, Sequence[Asked]]) -> Group:
    return Group(partial(tasks.single, group=group, asked=asked), parts=len(asked))


def _each_voice(measure: Callable[..., Iterator[Row]]) -> Group:
    """Both reply voices, each with its share of the cases."""
    names = tuple(speech.REPLY_VOICES)

    def both(model: Any, **options: Any) -> Iterator[Row]:
        for voice in names:
            yield from measure(model, voice=voice, **options)

    return Group(both, parts=len(names), share=1 / len(names))


def groups() -> dict[str, Group]:
    """Everything that can be measured, by name, in the order of the table."""
    return {
        "typed": Group(tasks.typed),
        "spoken": Group(partial(tasks.spoken, voices="train")),
        "unseen": Group(partial(tasks.spoken, voices="unseen")),
        "said": _single("single tasks", SAID),
        "seen": _single("pictures", dict.fromkeys(SEEN, TYPED)),
        "heard": _single("sounds", dict.fromkeys(HEARD, TYPED)),
        "watched": _single("films", dict.fromkeys(WATCHED, TYPED)),
        "when": Group(times.when),
        "aloud": Group(tasks.aloud),
        "look": Group(tasks.look_and_talk),
        "speech": _each_voice(voices.reply_speech),
        "pace": _each_voice(voices.pace),
        "vocoder": _each_voice(voices.vocoder),
        "live": Group(live.live),
    }


def run(
    model: Any,
    *,
    suite: str,
    cases: int = 200,
    only: Sequence[str] = (),
    engine: Engine | None = None,
    out: str | Path | None = None,
    seed: int = SEED,
) -> list[Row]:
    """Measures a model of `thinktalk.load`; prints the table, and writes it where `out` is given.

    cases: held-out cases per row (mixed rows: per group of rows). only: names of `groups`. engine:
    a live engine of the same model; without one the group "live" is left out. out: a folder for
    results.md and results.json. Raises ValueError for an unknown suite or group.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}: choose one of {', '.join(SUITES)}")
    if cases < 1:
        raise ValueError(f"cases must be at least 1, not {cases}")
    chosen = _chosen(only, live_too=engine is not None)
    rows: list[Row] = []
    total = sum(group.steps(cases) for group in chosen.values())
    with tqdm(total=total, desc=f"eval {suite}", unit="case") as bar:
        for row in measure(model, chosen, cases=cases, seed=seed, tick=bar.update, engine=engine):
            rows.append(row)
            bar.set_postfix_str(f"{row.group}, {row.name}: {row.value:.1f} {row.unit}"[:60])
            if out is not None:  # also what is there when somebody interrupts
                save(rows, Path(out), cases=cases, seed=seed)
    print(table(rows))
    return rows


def measure(
    model: Any,
    chosen: dict[str, Group],
    *,
    cases: int,
    seed: int,
    tick: Tick,
    engine: Engine | None = None,
) -> Iterator[Row]:
    """The rows of some groups."""
    for name, group in chosen.items():
        more = {"engine": engine} if name == "live" else {}
        yield from group.measure(model, count=group.count(cases), seed=seed, tick=tick, **more)


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    lines = ["| group | what | cases | result | ceiling |", "|---|---|---:|---:|---:|"]
    for row in rows:
        ceiling = "" if row.ceiling is None else _number(row.ceiling, row.unit)
        value = _number(row.value, row.unit)
        lines.append(f"| {row.group} | {row.name} | {row.cases} | {value} | {ceiling} |")
    return "\n".join(lines)


def save(rows: Sequence[Row], out: Path, *, cases: int, seed: int) -> None:
    """results.md: the table. results.json: the same with wrong answers, for a closer look."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(table(rows) + "\n", encoding="utf-8")
    report = {"cases": cases, "seed": seed, "rows": [row.as_dict() for row in rows]}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")


def _chosen(only: Sequence[str], *, live_too: bool) -> dict[str, Group]:
    every = groups()
    if unknown := [name for name in only if name not in every]:
        raise ValueError(f"unknown group {unknown[0]!r}: choose of {', '.join(every)}")
    if "live" in only and not live_too:
        raise ValueError("the group live needs a live engine of the model: give one")
    wanted = only or [name for name in every if name != "live" or live_too]
    return {name: every[name] for name in every if name in wanted}


def _number(value: float, unit: str) -> str:
    digits = {"%": 1, "x": 2, "Hz": 0}[unit]
    return f"{value:.{digits}f} {unit}"
