"""A report in, Markdown tables out."""

from collections.abc import Sequence
from typing import Any

from thinktalk.bench.watch import STAGES

Report = dict[str, Any]


def report(numbers: Report) -> str:
    parts = [heading(numbers)]
    if "calls" in numbers:
        parts += [calls(numbers["calls"]), shares(numbers["calls"])]
    if "pairs" in numbers:
        parts.append(pairs(numbers["pairs"]))
    if "turn_end" in numbers:
        parts.append(turn_end(numbers["turn_end"]))
    if "stages" in numbers:
        parts.append(stages(numbers["stages"]))
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
            f"{plan['reply_seconds']:g} s, seed {plan['seed']}"
        )
    return "; ".join(words)


def calls(found: Sequence[Report]) -> str:
    head = (
        "sessions", "turn ends by", "first text ms", "first audio ms, median (worst)",
        "after last voice ms", "real-time factor (worst)", "underrun s, worst", "stalls",
        "Thinker tokens/s", "Talker ids/s", "busy", "peak MiB", "late push ms",
    )  # fmt: skip
    rows = []
    for many in found:
        shares, played = many["shares"], [call["playback"] for call in many["calls"]]
        rows.append(
            (
                many["sessions"],
                many["turn_end"],
                f"{1000 * middle(many, 'first_text_s'):.0f}",
                f"{1000 * middle(many, 'first_audio_s'):.0f} "
                f"({1000 * worst(many, 'first_audio_s'):.0f})",
                f"{1000 * middle(many, 'after_voice_s'):.0f}",
                f"{middle(many, 'rtf'):.2f} ({worst(many, 'rtf'):.2f})",
                f"{max(playback['underrun_s'] for playback in played):.2f}",
                sum(playback["stalls"] for playback in played),
                f"{rate(shares, 'think'):.0f}",
                f"{rate(shares, 'speak'):.0f}",
                f"{sum(shares['seconds'].values()) / many['wall_s']:.0%}",
                f"{many['peak_mib']:.0f}",
                f"{1000 * many['late_s']:.0f}",
            )
        )
    return table(head, rows)


def shares(found: Sequence[Report]) -> str:
    """Seconds of every stage, and its share of the work."""
    rows = []
    for many in found:
        seconds = many["shares"]["seconds"]
        total = sum(seconds.values()) or 1.0
        cells = [f"{seconds[stage]:.2f} ({seconds[stage] / total:.0%})" for stage in STAGES]
        rows.append((many["sessions"], many["turn_end"], *cells))
    return table(("sessions", "turn ends by", *(f"{stage} s" for stage in STAGES)), rows)


def pairs(found: Report) -> str:
    ours, theirs = found["ours"], found["theirs"]
    rows = [
        (name, f"{scale * ours[key]:.{digits}f}", f"{scale * theirs[key]:.{digits}f}",
         f"{found['ratios'][key]:.1f}")
        for name, key, scale, digits in (
            ("first audio after the end of the turn, ms", "first_audio_s", 1000, 0),
            ("last audio after the end of the turn, ms", "total_s", 1000, 0),
            ("audio real-time factor", "rtf", 1, 2),
            ("DiT, seconds per second of sound", "dit_per_sound_s", 1, 3),
            ("peak memory, MiB", "peak_mib", 1, 0),
        )
    ]  # fmt: skip
    rows.append(("evaluations of the DiT", ours["evaluations"], theirs["evaluations"], ""))
    rows.append(("threads", ours["threads"], theirs["threads"], ""))
    title = f"median of {found['pairs']} pairs"
    return table((title, "thinktalk", f"transformers {found['version']}", "times less"), rows)


def turn_end(found: Report) -> str:
    rows = [
        (f"{turn['length_s']:g} s + {found['remainder_s']:g} s", turn["positions"],
         f"{1000 * turn['seconds']:.1f}")
        for turn in found["turns"]
    ]  # fmt: skip
    head = ("turn", "positions of the prompt", "from its end to the first decode step, ms")
    return table(head, rows) + f"\n\nratio: {found['ratio']:.2f}"


def stages(found: Sequence[Report]) -> str:
    rows = [
        (stage["network"], stage["unit"], stage["rows"], f"{stage['ms']:.2f}",
         "" if stage["per_sound_s"] is None else f"{stage['per_sound_s']:.3f}")
        for stage in found
    ]  # fmt: skip
    return table(("network", "one run", "rows", "ms", "s per s of sound and row"), rows)


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
