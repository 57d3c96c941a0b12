"""Which emoji the base learns. The rule, and the forty concepts that no training sees, are written out here."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from benchmarks.embedded.data import STYLES, Emoji, EmojiSet


def _listed(text: str) -> frozenset[str]:
    """The entries of a comma-separated list that runs over several lines."""
    return frozenset(" ".join(entry.split()) for entry in text.split(","))


# Forty concepts held out of every training, from all groups: new *things* for tests and benchmarks.
HELD_OUT_CONCEPTS = _listed("""
    squid, flamingo, hedgehog, sloth, T-Rex, lobster, giraffe, otter, snail, cactus, sunflower, kangaroo,
    pineapple, cupcake, taco, avocado, sushi, bubble tea, croissant, doughnut, helicopter, tractor, sailboat,
    racing car, tent, flying saucer, motor scooter, snowman, carousel horse, piñata, yo-yo, crystal ball, kite,
    nesting dolls, telescope, treasure chest, accordion, top hat, saxophone, jack-o-lantern
""")

# Groups whose members differ in a gesture, a direction or a number only.
DROPPED_SUBGROUPS = _listed("""
    family, person-symbol, person-gesture, person-activity, person-resting, hand-fingers-open,
    hand-fingers-partial, hand-single-finger, hand-fingers-closed, hands, hand-prop
""")
FACE_SUBGROUPS = _listed("""
    face-smiling, face-affection, face-tongue, face-hand, face-neutral-skeptical, face-sleepy, face-unwell,
    face-concerned, face-negative, cat-face, monkey-face
""")
# Of some two hundred faces and hands, those that a person tells apart at 60 pixels.
KEPT_ANYWAY = _listed("""
    grinning face, face with tears of joy, winking face, smiling face with heart-eyes, star-struck,
    face with tongue, money-mouth face, thinking face, zipper-mouth face, sleeping face, face with medical mask,
    nauseated face, hot face, cold face, exploding head, loudly crying face, enraged face,
    smiling face with horns, skull, skull and crossbones, grinning cat, crying cat, see-no-evil monkey,
    waving hand, victory hand, thumbs up, thumbs down, raised fist, handshake, folded hands, person in bed
""")
# Twins of a kept concept (a second view, a state, a variant that only writing tells apart) and poor subjects.
DROPPED_LABELS = _listed("""
    guide dog, service dog, mouse face, front-facing baby chick, black bird, railway car, high-speed train,
    train, light rail, tram car, station, monorail, mountain railway, trolleybus, minibus, love hotel,
    department store, Japanese post office, post office, derelict house, houses, house with garden,
    building construction, convenience store, hotel, bank, school, foggy, night with stars, cityscape at dusk,
    sunrise, sunset, bridge at night, sunrise over mountains, landslide, globe showing Europe-Africa,
    globe showing Asia-Australia, globe with meridians, map of Japan, small airplane, airplane departure,
    airplane arrival, passenger ship, motor boat, motorway, railway track, hourglass not done, timer clock,
    first quarter moon, last quarter moon, new moon, full moon face, sun behind small cloud,
    sun behind large cloud, sun behind rain cloud, cloud with lightning and rain, fog, snowman without snow,
    umbrella on ground, closed umbrella, 2nd place medal, 3rd place medal, softball, spade suit, heart suit,
    diamond suit, club suit, tanabata tree, reminder ribbon, muted speaker, speaker low volume,
    speaker medium volume, bell with slash, musical notes, mobile phone with arrow, low battery,
    camera with flash, computer disk, dvd, magnifying glass tilted right, notebook, ledger, page with curl,
    bookmark tabs, yen banknote, euro banknote, pound banknote, chart increasing with yen, e-mail,
    incoming envelope, envelope with arrow, outbox tray, inbox tray, closed mailbox with lowered flag,
    open mailbox with raised flag, open mailbox with lowered flag, tear-off calendar, spiral calendar,
    card index, card index dividers, open file folder, round pushpin, linked paperclips, locked with pen,
    locked with key, unlocked, hammer and pick, hammer and wrench, broken chain, Mx Claus, anger symbol, dizzy,
    sweat droplets, dashing away, hole, fight cloud, left speech bubble, right anger bubble,
    eye in speech bubble, ZZZ, ear with hearing aid, heart decoration, heart exclamation, growing heart,
    beating heart, revolving hearts, grey heart, person, hatching chick, identification card, woman’s clothes,
    woman’s sandal, man’s shoe, clinking glasses, sake, placard, x-ray, tumbler glass, spouting whale,
    teacup without handle, merman, mermaid, speedboat, fork and knife with plate, two-hump camel, shamrock, boy,
    girl
""")
_TWIN = re.compile(
    r"^(man|woman|men|women|people|pregnant|oncoming|couple|kiss:|person with white|person in m)\b"
    r"|facing right|o’clock|-thirty|(crescent|gibbous) moon$|moon face|^(person|man|woman): "
)
_ALWAYS = frozenset(["crescent moon", "man", "woman"])


def is_trained(emoji: Emoji) -> bool:
    """Whether the rule keeps this emoji for training."""
    label = emoji.label
    if label in HELD_OUT_CONCEPTS or label in DROPPED_LABELS:
        return False
    if label in KEPT_ANYWAY or label in _ALWAYS:
        return True
    if emoji.subgroup in DROPPED_SUBGROUPS or emoji.subgroup in FACE_SUBGROUPS:
        return False
    return not _TWIN.search(label)


def name_of(label: str) -> str:
    """A label as captions write it: plain lower-case ASCII."""
    text = unicodedata.normalize("NFKD", label.replace("’", "'")).encode("ascii", "ignore").decode()
    return text.lower().replace("person: ", "person with ")


def training_concepts(emoji_set: EmojiSet) -> list[Emoji]:
    """The concepts in a fixed order: those the rule keeps that at least three training styles draw."""
    drawn = Counter(point for style, point in emoji_set.keys if style in STYLES)
    return [e for point, e in sorted(emoji_set.emoji.items()) if is_trained(e) and drawn[point] >= 3]


def held_out_concepts(emoji_set: EmojiSet) -> list[Emoji]:
    """The concepts no training sees."""
    return [e for _, e in sorted(emoji_set.emoji.items()) if e.label in HELD_OUT_CONCEPTS]


def distinctive_tags(concepts: list[Emoji], reserved: frozenset[str], limit: int = 3) -> list[list[str]]:
    """For each concept, tags that no other concept has and no caption word uses: other names for the same thing."""
    counts = Counter(tag for e in concepts for tag in {name_of(t) for t in e.tags})
    names = {name_of(e.label) for e in concepts}
    words = {word for name in names for word in name.split()}

    def distinctive(tag: str) -> bool:
        plain = re.fullmatch(r"[a-z][a-z ]{2,}", tag) is not None
        return plain and counts[tag] == 1 and tag not in names | words and not reserved & set(tag.split())

    return [[tag for tag in map(name_of, e.tags) if distinctive(tag)][:limit] for e in concepts]
