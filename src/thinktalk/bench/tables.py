"""A report in, Markdown tables out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from thinktalk.bench.watch import STAGES

Report = dict[str, Any]


def report(numbers: Report) -> str:
    parts = [heading(numbers)]
    if "calls" in numbers:
        parts.append(calls(numbers["calls"]))
    if "pairs" in numbers:
        parts.append(pairs(numbers["pairs"]))
    if "turn_end" in numbers:
        parts.append(turn_end(numbers["turn_end"]))
    if "stages" in numbers:
        parts.append(stages(numbers["stages"]))
    if "distances" in numbers:
        parts.append(distances(numbers["distances"]))
    return "\n\n".join(parts)


def heading(numbers: Report) -> str:
    where, plan = numbers["machine"], numbers["plan"]
    name = plan["model"] if plan["random"] is None else f"random {plan['random']}"
    words = [
        f"{name} ({where['parameters'] / 1e6:,.0f} M parameters)",
        f"{where['dtype']}, DiT {where['dit_dtype']}, {plan['solver']}",
        f"{where['device']}, {where['cores']} cores {where['processor']}",
        f"{where['threads']} threads, load {where['load'][0]:.1f}",
    ]
    if plan["what"] == "calls":
        words.append(
            f"question {plan['seconds']:g} s, reply {plan['reply_tokens']} tokens and "
            f"{plan['reply_seconds']:g} s, seed {plan['seed']}, clock: {plan['clock']}"
        )
    return "; ".join(words)


def calls(found: Sequence[Report]) -> str:
    """One column a measurement; the stages' seconds with their share of all work."""
    rows: list[tuple[str, Callable[[Report], str]]] = [
        ("first text, ms", lambda m: f"{1000 * middle(m, 'first_text_s'):.0f}"),
        ("first audio, ms: median", lambda m: f"{1000 * middle(m, 'first_audio_s'):.0f}"),
        ("first audio, ms: worst", lambda m: f"{1000 * worst(m, 'first_audio_s'):.0f}"),
        (
            "the same from the last voiced sample",
            lambda m: f"{1000 * worst(m, 'after_voice_s'):.0f}",
        ),
        ("audio real-time factor, worst", lambda m: f"{worst(m, 'rtf'):.2f}"),
        ("underrun, s: worst", lambda m: f"{max(p['underrun_s'] for p in playbacks(m)):.2f}"),
        ("stalls, all sessions", lambda m: f"{sum(p['stalls'] for p in playbacks(m))}"),
        ("Thinker, tokens/s", lambda m: f"{rate(m['shares'], 'think'):.0f}"),
        ("Talker, ids/s", lambda m: f"{rate(m['shares'], 'speak'):.0f}"),
        ("processor, s per s of sound", lambda m: f"{m['cpu_s'] / sound_s(m):.2f}"),
        ("peak memory, MiB", lambda m: f"{m['peak_mib']:.0f}"),
        *((f"{stage}, s", partial(share, stage=stage)) for stage in STAGES),
        ("cores that others kept busy", others),
        ("latest push, ms late", lambda m: f"{1000 * m['late_s']:.0f}"),
    ]
    head = ["sessions, who ends the turn", *(f"{m['sessions']}, {m['turn_end']}" for m in found)]
    return table(head, [(name, *(cell(many) for many in found)) for name, cell in rows])


def share(many: Report, *, stage: str) -> str:
    seconds = many["shares"]["seconds"]
    return f"{seconds[stage]:.2f} ({seconds[stage] / (sum(seconds.values()) or 1.0):.0%})"


def others(many: Report) -> str:
    return "?" if many["others_cores"] is None else f"{many['others_cores']:.1f}"


def playbacks(many: Report) -> list[Report]:
    return [call["playback"] for call in many["calls"]]


def sound_s(many: Report) -> float:
    return sum(playback["duration_s"] for playback in playbacks(many))


def pairs(found: Report) -> str:
    ours, theirs = found["ours"], found["theirs"]
    rows = [
        (name, f"{scale * ours[key]:.{digits}f}", f"{scale * theirs[key]:.{digits}f}",
         f"{found['ratios'][key]:.1f}")
        for name, key, scale, digits in (
            ("first audio after the end of the turn, ms", "first_audio_s", 1000, 0),
            ("last audio after the end of the turn, ms", "total_s", 1000, 0),
            ("audio real-time factor", "rtf", 1, 2),
            ("processor, s per s of sound", "cpu_per_sound_s", 1, 2),
            ("DiT, seconds per second of sound", "dit_per_sound_s", 1, 3),
            ("peak memory, MiB", "peak_mib", 1, 0),
        )
    ]  # fmt: skip
    rows.append(("evaluations of the DiT", ours["evaluations"], theirs["evaluations"], ""))
    rows.append(("threads", ours["threads"], theirs["threads"], ""))
    title = f"median of {found['pairs']} pairs"
    return table((title, "thinktalk", f"transformers {found['version']}", "times less"), rows)


def turn_end(found: Report) -> str:
    turns = found["turns"]
    rows = [
        ("positions of the prompt", *(turn["positions"] for turn in turns), ""),
        ("from the end of the turn to the first decode step, ms",
         *(f"{1000 * turn['seconds']:.1f}" for turn in turns), f"{found['ratio']:.2f}"),
        ("of the processor for it, ms",
         *(f"{1000 * turn['cpu_s']:.1f}" for turn in turns), f"{found['cpu_ratio']:.2f}"),
    ]  # fmt: skip
    lengths = (f"{turn['length_s']:g} s + {found['remainder_s']:g} s" for turn in turns)
    return table(("turn", *lengths, "ratio"), rows)


def stages(found: Sequence[Report]) -> str:
    rows = [
        (stage["network"], stage["unit"], stage["rows"], f"{stage['spent']['ms']:.2f}",
         f"{stage['spent']['cpu_ms']:.2f}",
         "" if stage["per_sound_s"] is None else f"{stage['per_sound_s']:.3f}")
        for stage in found
    ]  # fmt: skip
    head = ("network", "one run", "rows", "ms", "of the processor", "s per s of sound and row")
    return table(head, rows)


def distances(found: Sequence[Report]) -> str:
    rows = [
        (one["what"], f"{one['mean']:.2g}", f"{one['relative']:.2g}", f"{one['largest']:.2g}")
        for one in found
    ]
    head = ("log-mel, against the exact one", "mean", "rms over deviation", "largest")
    return table(head, rows)


def middle(many: Report, key: str) -> float:
    values = sorted(call[key] for call in many["calls"])
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def worst(many: Report, key: str) -> float:
    return max(call[key] for call in many["calls"])


def rate(shares: Report, stage: str) -> float:
    """Ids a second of the stage's own time, over all sessions."""
    return shares["tokens"].get(stage, 0) / (shares["seconds"][stage] or 1.0)


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
