"""What is drawn of a group: prompts, places and noise, the same for the base, each adapter alone and every way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from benchmarks.fusion.look import Box
from benchmarks.fusion.subjects import GROUND, Group
from trainers.places import Region

STEPS, GUIDANCE = 25, 4.5
NEUTRAL = tuple(
    f"a {thing} on a {color} background"
    for thing, color in (
        ("tree", "blue"), ("rocket", "yellow"), ("hamburger", "green"), ("bear", "white"),
        ("house", "pink"), ("guitar", "gray"), ("automobile", "orange"), ("frog", "purple"),
    )
)  # fmt: skip
"""Prompts of things that no adapter of a pair or triple has to do with."""
_HALVES: tuple[Box, ...] = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
_CORNERS: tuple[Box, ...] = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.5, 0.5, 1.0, 1.0))
_SIDES = ("on the left", "on the right")
_IN_CORNERS = ("in the top left corner", "in the top right corner", "in the bottom right corner")

Noises = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scene:
    """One picture: `boxes[i]` is where member i stands, `regions[i]` the same with what is said of it."""

    prompt: str
    seed: int
    side: int
    boxes: tuple[Box, ...]
    regions: tuple[Region, ...]


FIRST_NOISE = 1000


def scenes(group: Group, learnt: Collection[int], count: int, noises: Noises = ()) -> list[Scene]:
    """`count` pictures, members changing places; `learnt` are those asked for by their triggers, others are plain.

    Two stand left and right. Three stand in corners of a larger picture and are asked for region by region: the base
    has never seen three things, and draws two of them from most noises. So noises are chosen from which it draws three.

    Args:
        noises: seeds for each order of places; none: FIRST_NOISE and those that follow.
    """
    size = len(group.members)
    seeds = [noises[n % size][n // size] if noises else FIRST_NOISE + n // size for n in range(count)]
    return [_scene(group, learnt, number, seed) for number, seed in enumerate(seeds)]


def _scene(group: Group, learnt: Collection[int], number: int, seed: int) -> Scene:
    size = len(group.members)
    places, words = (_HALVES, _SIDES) if size == 2 else (_CORNERS, _IN_CORNERS)
    order = [(position + number) % size for position in range(size)]  # place → member
    said = [f"a {member.phrase if index in learnt else member.thing}" for index, member in enumerate(group.members)]
    in_order = [f"{said[member]} {words[place]}" for place, member in enumerate(order)]
    whole = " and ".join(in_order) if size == 2 else ", ".join(said[member] for member in order)
    of_member = [order.index(index) for index in range(size)]
    regions = tuple(Region(places[place], f"{in_order[place]} {GROUND}") for place in of_member)
    side = 128 if size == 2 else 192
    return Scene(f"{whole} {GROUND}", seed, side, tuple(places[place] for place in of_member), regions)
