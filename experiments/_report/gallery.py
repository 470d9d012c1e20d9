"""The gallery's cards: published results in groups, what a newcomer asks first."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from experiments._command.registry import claim
from experiments._command.run_folder import environment
from experiments._report.publish import facts
from experiments._report.records import Kept
from experiments._report.sections import question

GROUPS = {
    "The main job": ("learning_rate", "tuned_rate", "schedules", "short_horizon"),
    "The field's workloads": (
        "maml",
        "hyper_cleaning",
        "distillation",
        "learned_schedule",
        "learned_optimizer",
        "example_weights",
        "regularization",
        "bilevel",
        "frameworks",
    ),
    "Engines: what they cost, what they can": (
        "engines",
        "memory",
        "peers",
        "long_unroll",
        "sweep_speed",
        "coverage",
        "optimizer_census",
    ),
    "Whether to believe it": (
        "diagnose",
        "bias_of_estimators",
        "published",
        "errata",
    ),
    "What is known without running it": (
        "convexity",
        "implicit_bias",
        "two_step_graph",
    ),
    "Convolutional networks": (
        "edges",
        "receptive_field",
        "convnet_memory",
        "network_size",
    ),
}
"""The experiments in the order in which they are shown; what is in none comes last."""

_WIDE = 2000
"""Pixels of a figure that takes the whole page: three panels or more beside another."""


class Image(NamedTuple):
    """A figure: its `data:` address, and whether it needs room."""

    address: str
    wide: bool


class Item(NamedTuple):
    """A published result in the gallery."""

    name: str
    question: str
    claim: Markup
    headline: str
    command: str
    facts: str
    images: list[Image]

    @property
    def wide(self) -> bool:
        """Whether a figure needs the whole width."""
        return any(image.wide for image in self.images)


class Group(NamedTuple):
    """Cards under a title."""

    title: str
    items: list[Item]


def groups(records: Sequence[Kept], configs: Path) -> list[Group]:
    """All records, each in the group of its experiment.

    Raises:
        ConfigError: if a figure cannot be read.
    """
    known = {name for names in GROUPS.values() for name in names}
    further = {
        kept.experiment: None for kept in records if kept.experiment not in known
    }
    found = []
    for title, names in [*GROUPS.items(), ("Further", tuple(further))]:
        chosen = [kept for name in names for kept in records if kept.experiment == name]
        if chosen:
            found.append(Group(title, [_item(kept, configs) for kept in chosen]))
    return found


def _item(kept: Kept, configs: Path) -> Item:
    with environment(f"show {kept.name}"):
        raw = [(configs / "figures" / file).read_bytes() for file in kept.figures]
    return Item(
        kept.name,
        question(kept.experiment),
        _with_code(claim(kept.experiment)),
        kept.headline,
        kept.command,
        facts(kept),
        [_image(png) for png in raw],
    )


def _image(png: bytes) -> Image:
    """Of a PNG: its width stands at byte 16."""
    width = int.from_bytes(png[16:20], "big")
    address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Image(address, width > _WIDE)


def _with_code(text: str) -> Markup:
    """Escaped, with what stands in backticks as code."""
    parts = re.split(r"`+([^`]+)`+", text)
    marked = [
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    ]
    return Markup("").join(marked)
