"""The curves of a run: one panel per stage from its log.jsonl, losses left, shares right."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thinktalk.train.recipe import STAGES
from thinktalk.train.trainer import curve

TEST = "test_"  # how figures on held-out data begin
SHARES = {"right", "test_right", "test_spoken", "test_typed"}  # of 1; everything else is a loss
NOT_DRAWN = {"step", "seconds", "gradient", "test_codes_used"}
PANEL_INCHES = (7.0, 3.2)

Curves = dict[str, list[tuple[int, float]]]


def plot(run: Path, *, out: Path) -> None:
    """Draws every stage of the run that has a log. Raises ValueError where there is none."""
    names = [name for name in STAGES if (run / name / "log.jsonl").exists()]
    if not names:
        raise ValueError(f"{run} holds no stage with a log.jsonl; give the folder of a run")
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width, height * len(names)), layout="constrained")
    for number, name in enumerate(names, 1):
        draw(figure.add_subplot(len(names), 1, number), name, curves(curve(run / name)))
    try:
        figure.savefig(out, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"{out} cannot be written ({error})") from error


def curves(rows: list[dict[str, Any]]) -> Curves:
    """Points (step, value) of every figure that is worth drawing."""
    found: Curves = defaultdict(list)
    for row in rows:
        for name in row.keys() - NOT_DRAWN:
            found[name].append((row["step"], row[name]))
    return dict(sorted(found.items()))


def draw(panel: Axes, stage: str, found: Curves) -> None:
    """Training figures as lines, those on held-out data dashed with dots."""
    panel.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
    shares = panel.twinx() if SHARES & found.keys() else None
    if shares is not None:
        shares.set(ylabel="share right", ylim=(0, 1))
    lines = []
    for number, (name, points) in enumerate(found.items()):
        axes = shares if shares is not None and name in SHARES else panel
        held_out = name.startswith(TEST)
        style = {"linestyle": "--", "marker": "."} if held_out else {"linewidth": 1.0}
        label = name.replace(TEST, "held out: ") + (" (right axis)" if name in SHARES else "")
        steps, values = zip(*points, strict=True)
        lines += axes.plot(steps, values, color=f"C{number}", label=label, **style)
    panel.legend(handles=lines, fontsize="small")
    panel.grid(alpha=0.3)
