"""The curves of a run: one panel per stage from its log.jsonl, losses left, shares right."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thinktalk.train.journal import curve
from thinktalk.train.lessons import lessons
from thinktalk.train.recipe import STAGES

TEST = "test_"  # how figures on held-out data begin
SHARES = {"right", "test_right", "test_spoken", "test_typed"}  # of 1; everything else is a loss
NOT_DRAWN = {"step", "seconds", "loss", "gradient", "skipped", "test_codes_used"}
PANEL_INCHES = (9.0, 3.2)

# figure -> step -> value
Curves = dict[str, dict[int, float]]


def plot(run: Path, *, out: Path) -> None:
    """Draws every stage of the run that has a log. Raises ValueError where there is none."""
    folders = {name: run / name for name in STAGES}
    folders |= {name: run / name / lesson.course for name, lesson in lessons().items()}
    names = [name for name, folder in folders.items() if (folder / "log.jsonl").exists()]
    if not names:
        raise ValueError(f"{run} holds no stage with a log.jsonl; give the folder of a run")
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width, height * len(names)), layout="constrained")
    for number, name in enumerate(names, 1):
        draw(figure.add_subplot(len(names), 1, number), name, curves(curve(folders[name])))
    try:
        figure.savefig(out, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"{out} cannot be written ({error})") from error


def curves(rows: Iterable[dict[str, Any]]) -> Curves:
    """Every figure that is worth drawing; where a leg repeated a step, its last value."""
    found: Curves = defaultdict(dict)
    for row in rows:
        for name in row.keys() - NOT_DRAWN:
            found[name][row["step"]] = row[name]
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def draw(panel: Axes, stage: str, found: Curves) -> None:
    """Training figures as lines, held-out ones dashed with dots in the same colour."""
    panel.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
    shares = panel.twinx() if SHARES & found.keys() else None
    if shares is not None:
        shares.set(ylabel="share right", ylim=(0, 1))
    colours: dict[str, str] = {}
    lines = []
    for name, points in found.items():
        axes = shares if shares is not None and name in SHARES else panel
        figure, held_out = name.removeprefix(TEST), name.startswith(TEST)
        lines += axes.plot(
            list(points),
            list(points.values()),
            linestyle="--" if held_out else "-",
            marker="." if held_out else "",
            color=colours.setdefault(figure, f"C{len(colours)}"),
            label=figure + ", held out" * held_out + " (share)" * (name in SHARES),
        )
    beside = (1.1, 0.5)  # the curves need the room inside
    panel.legend(handles=lines, loc="center left", bbox_to_anchor=beside, fontsize="small")
    panel.grid(alpha=0.3)
