"""`thinktalk eval SUITE`: a loaded model in, a table of measurements out (text and JSON)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from thinktalk.eval import tasks
from thinktalk.eval.tasks import Row
from thinktalk.playroom import speech

SUITES = ("playroom",)
SEED = 2026
PACE_SHARE = 0.1  # of the cases, also for the vocoder: their spread is small


def run(
    model: Any, *, suite: str, cases: int = 200, out: str | Path | None = None, seed: int = SEED
) -> list[Row]:
    """Measures a model of `thinktalk.load`; prints the table, and writes it where `out` is given.

    cases: held-out cases per group of rows. out: a folder for results.md and results.json.
    Raises ValueError for an unknown suite.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}: choose one of {', '.join(SUITES)}")
    if cases < 1:
        raise ValueError(f"cases must be at least 1, not {cases}")
    rows: list[Row] = []
    with tqdm(total=num_steps(cases), desc=f"eval {suite}", unit="case") as bar:
        for row in playroom(model, cases=cases, seed=seed, tick=bar.update):
            rows.append(row)
            bar.set_postfix_str(f"{row.group}, {row.name}: {row.value:.1f} {row.unit}"[:60])
    print(table(rows))
    if out is not None:
        save(rows, Path(out), cases=cases, seed=seed)
    return rows


def playroom(model: Any, *, cases: int, seed: int, tick: tasks.Tick) -> Iterator[Row]:
    """All rows of the talking part, in the order of the table."""
    for voices in (None, "train", "unseen"):
        yield from tasks.answers(model, cases=cases, seed=seed, voices=voices, tick=tick)
    for voice in speech.REPLY_VOICES:
        half, few = _shares(cases)
        yield from tasks.reply_speech(model, cases=half, seed=seed, voice=voice, tick=tick)
        yield from tasks.pace(model, cases=few, seed=seed, voice=voice, tick=tick)
        yield from tasks.vocoder(model, cases=few, seed=seed, voice=voice, tick=tick)


def num_steps(cases: int) -> int:
    """How often `tick` is called."""
    half, few = _shares(cases)
    return 3 * cases + len(speech.REPLY_VOICES) * (half + 2 * few)


def _shares(cases: int) -> tuple[int, int]:
    """Cases per reply voice of the speech rows, and of the pace and vocoder rows."""
    return max(cases // len(speech.REPLY_VOICES), 1), max(round(cases * PACE_SHARE), 1)


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


def _number(value: float, unit: str) -> str:
    digits = {"%": 1, "x": 2, "Hz": 0}[unit]
    return f"{value:.{digits}f} {unit}"
