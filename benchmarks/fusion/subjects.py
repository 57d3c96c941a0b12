"""Who is put into one picture: nine emojione designs that the base has never seen, and a style; pairs and triples.

A slot is where a spectral adapter learns. It is given here as `studio train --with` would: different for all members
of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUND = "on a white background"


@dataclass(frozen=True)
class Member:
    """A subject, or a style as it is seen on one thing.

    Args:
        name: of what is trained (a style is seen on several things).
        thing: what it is, as the base knows it; its emojione picture is what its place should look like.
    """

    name: str
    trigger: str
    thing: str
    slot: int
    style: bool = False

    @property
    def phrase(self) -> str:
        """How a prompt asks for it."""
        return f"{self.thing} in {self.trigger} style" if self.style else f"{self.trigger} {self.thing}"


def _subject(name: str, trigger: str, slot: int) -> Member:
    return Member(name, trigger, name, slot)


SUBJECTS = (
    _subject("octopus", "sks", 0),
    _subject("ghost", "zwx", 1),
    _subject("cat", "ohwx", 2),
    _subject("owl", "qlm", 0),
    _subject("umbrella", "vrz", 1),
    _subject("dog", "xyq", 2),
    _subject("butterfly", "bnk", 0),
    _subject("bus", "wqj", 1),
    _subject("fox", "hjv", 2),
)
_BY_NAME = {subject.name: subject for subject in SUBJECTS}

STYLE, STYLE_TRIGGER, STYLE_SLOT = "emojione style", "kpz", 3
STYLE_THINGS = ("frog", "cow", "castle", "turtle", "lion", "elephant", "hamburger", "dragon", "violin", "penguin")
"""What the style is learnt from."""
STYLE_TARGETS = ("guitar", "house", "mushroom", "unicorn", "strawberry")
"""What it is then asked for: things that neither it nor a subject has shown."""

PAIRS = (("octopus", "ghost"), ("owl", "cat"), ("umbrella", "dog"), ("butterfly", "fox"), ("bus", "octopus"))
TRIPLES = (("octopus", "ghost", "cat"), ("owl", "umbrella", "dog"), ("butterfly", "bus", "fox"))
STYLED = (("octopus", "guitar"), ("cat", "house"), ("umbrella", "mushroom"), ("dog", "unicorn"), ("bus", "strawberry"))


@dataclass(frozen=True)
class Group:
    """Members of one picture, in the order in which their adapters are fused."""

    kind: str
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        return " + ".join(f"{m.thing} (style)" if m.style else m.name for m in self.members)


def groups() -> list[Group]:
    """Every pair, triple, and subject with a style, which goes first: null-space fusion protects the first."""
    pairs = [Group("pair", tuple(_BY_NAME[name] for name in names)) for names in PAIRS]
    triples = [Group("triple", tuple(_BY_NAME[name] for name in names)) for names in TRIPLES]
    styled = [
        Group("style", (Member(STYLE, STYLE_TRIGGER, thing, STYLE_SLOT, style=True), _BY_NAME[name]))
        for name, thing in STYLED
    ]
    return [*pairs, *triples, *styled]


def reference_things() -> list[str]:
    """Everything whose emojione picture is a reference."""
    return [*_BY_NAME, *STYLE_TARGETS]
