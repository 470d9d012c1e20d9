"""Accuracy against T, and the images themselves."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels


def curves(rows: Sequence[Record]) -> Figure:
    """A panel for each kind of start."""
    kinds = list(dict.fromkeys(row["start"] for row in rows))
    figure, axes = panels(len(kinds))
    for panel, kind in zip(axes, kinds, strict=True):
        own = [row for row in rows if row["start"] == kind]
        steps = [row["T"] for row in own]
        for name, label in (("accuracy", "ten learned"), ("ten_real", "ten real")):
            values = [row[name] for row in own]
            spread = [row[f"{name}_spread"] for row in own]
            panel.errorbar(steps, values, spread, marker="o", capsize=2, label=label)
        everything = own[0]["full_training"]
        panel.axhline(everything, color="black", linestyle=":", label="all images")
        panel.set(xscale="log", xlabel="inner steps T", ylim=(0.0, 1.0))
        panel.set_ylabel("test accuracy")
        panel.set_xticks(steps, [str(count) for count in steps])
        panel.minorticks_off()
        panel.set_title(f"{kind} start", fontsize=10)
        panel.legend(fontsize=8, loc="lower right")
    return figure


def pictures(row: Record) -> Figure:
    """The ten images of a row, in two lines."""
    figure = Figure(figsize=(4.6, 2.3))
    title = f"learned images, {row['start']} start, T = {row['T']}"
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, 5)
    for label, (panel, image) in enumerate(zip(axes.flat, row["images"], strict=True)):
        panel.imshow(image, cmap="gray")
        panel.set_title(str(label), fontsize=8, pad=2)
        panel.set_axis_off()
    return figure
