"""Profiles: what suits the kinds of machine that people have, chosen by itself and changeable in every part.

A profile says what to prefer; whether it fits is decided by `precision` from the weights' size, the memory that is free
and what the card can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from isocenter.runtime.devices import Machine
from isocenter.runtime.environment import GIB

Name = Literal["kaggle_t4", "colab_t4", "colab_a100", "local_16gb", "local_24gb", "cpu_only"]
#: A card sold as "24 GB" reports 22 (A10, L4) to 23.7 GiB, one sold as "40 GB" 39.4.
_LARGE, _HUGE = 20 * GIB, 35 * GIB


@dataclass(frozen=True)
class Profile:
    """What a kind of machine is set up for.

    narrative: the MedGemma that narrates by default. precision: the one to prefer, where the card computes in it.
    places: where the models of a family (module of `isocenter.models`) run when not on the best device.
    batch: pictures or slices at once. database: "in-process" or "postgres".
    """

    name: Name
    narrative: Literal["4B", "27B"]
    precision: str
    places: Mapping[str, str] = field(default_factory=dict)
    batch: int = 1
    database: Literal["in-process", "postgres"] = "in-process"

    def place(self, factory: str) -> str:
        """Where a model whose factory is "package.family:Class" should run: "auto", "cpu", "cuda" or a device's id."""
        return self.places.get(factory.partition(":")[0].rpartition(".")[2], self.places.get("*", "auto"))


PROFILES: dict[Name, Profile] = {
    p.name: p
    for p in (
        Profile("kaggle_t4", "4B", "float16", {"nnunet": "cpu"}, 1, "in-process"),
        Profile("colab_t4", "4B", "float16", {"nnunet": "cpu"}, 1, "in-process"),
        Profile("colab_a100", "27B", "float16", {}, 4, "postgres"),
        Profile("local_16gb", "4B", "float16", {}, 2, "postgres"),
        Profile("local_24gb", "4B", "bfloat16", {}, 4, "postgres"),
        Profile("cpu_only", "4B", "nf4", {"*": "cpu"}, 1, "in-process"),
    )
}


def choose(machine: Machine) -> Profile:
    """The profile for a machine: by where it stands and by the memory of its largest card that works."""
    largest = max((d.total for d in machine.usable), default=0)
    if not largest:
        return PROFILES["cpu_only"]
    if machine.platform == "kaggle":
        return PROFILES["kaggle_t4"]
    if machine.platform == "colab" and largest < _LARGE:
        return PROFILES["colab_t4"]
    if machine.platform == "colab" and largest >= _HUGE:
        return PROFILES["colab_a100"]
    return PROFILES["local_24gb" if largest >= _LARGE else "local_16gb"]
