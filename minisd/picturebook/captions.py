"""Captions: the phrases of the picture book, and the ways to say what a scene shows."""

from typing import TYPE_CHECKING

import numpy as np

from minisd.picturebook.drawing import stands_out

if TYPE_CHECKING:
    from minisd.picturebook.scenes import Scene, Thing

# The one table of phrases: for each group, what can be meant and the ways to say it, the most
# usual one first. Captions, words() and suggestions are all made from it.
PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "shapes": {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "star": ("star",),
        "heart": ("heart",),
        "ring": ("ring",),
    },
    "things": {
        "house": ("house", "cottage"),
        "tree": ("tree",),
        "flower": ("flower",),
        "boat": ("boat", "ship"),
        "fish": ("fish",),
        "cloud": ("cloud",),
        "sun": ("sun",),
        "moon": ("moon",),
        "mountain": ("mountain",),
        "car": ("car",),
        "balloon": ("balloon",),
        "butterfly": ("butterfly",),
        "bird": ("bird",),
    },
    "colours": {
        "red": ("red",),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "blue": ("blue",),
        "purple": ("purple", "violet"),
        "pink": ("pink",),
        "brown": ("brown",),
        "white": ("white",),
        "black": ("black",),
        "gray": ("gray", "grey"),
    },
    "sizes": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
    "counts": {"2": ("two",), "3": ("three",), "4": ("four",)},
    "relations": {
        "above": ("above", "over"),
        "below": ("below", "under"),
        "left": ("to the left of", "left of"),
        "right": ("to the right of", "right of"),
        "inside": ("inside", "in"),
        "beside": ("beside", "next to"),
        "and": ("and",),
        "with": ("with",),
    },
    "positions": {
        "top": ("at the top",),
        "bottom": ("at the bottom",),
        "left": ("on the left",),
        "right": ("on the right",),
        "top left": ("in the top left corner",),
        "top right": ("in the top right corner",),
        "bottom left": ("in the bottom left corner",),
        "bottom right": ("in the bottom right corner",),
    },
    "times": {
        "day": ("by day", "on a sunny day"),
        "night": ("at night", "by night"),
        "sunset": ("at sunset", "in the evening"),
    },
    "places": {
        "meadow": ("in a meadow", "on the grass", "in a field"),
        "snow": ("in the snow", "in winter"),
        "sea": ("on the sea", "on the water", "on the ocean"),
        "sky": ("in the sky",),
        "water": ("under water", "in the sea", "in the ocean"),
    },
    "places for what flies": {
        "meadow": ("over a meadow", "above the grass", "over a field"),
        "snow": ("over the snow",),
        "sea": ("over the sea", "above the ocean"),
        "sky": ("in the sky",),
    },
    "skies": {
        "day": ("in the sky",),
        "night": ("in the night sky",),
        "sunset": ("in the sunset sky",),
    },
    "other": {
        "opening": ("a picture of", "a drawing of"),
        "background": ("background",),
        "glue": ("a", "an", "the", "of", "to", "in", "on", "at", "by"),
    },
}

# Where each thing lives; only the first place may go without saying.
HOMES: dict[str, tuple[str, ...]] = {
    "house": ("meadow", "snow"),
    "tree": ("meadow", "snow"),
    "flower": ("meadow", "snow"),
    "mountain": ("meadow", "snow"),
    "car": ("meadow", "snow"),
    "boat": ("sea",),
    "fish": ("water",),
    "cloud": ("sky",),
    "sun": ("sky",),
    "moon": ("sky",),
    "balloon": ("sky", "meadow", "sea", "snow"),
    "butterfly": ("meadow", "sky"),
    "bird": ("sky", "meadow", "sea", "snow"),
    "star": ("sky",),
    "heart": ("sky",),
    "mushroom": ("meadow",),
}
FLYING = ("cloud", "sun", "moon", "balloon", "butterfly", "bird", "star", "heart")
HOURS = {"sun": ("day", "sunset"), "moon": ("night",), "star": ("night",)}  # others: any time
# What each thing is coloured oftenest; the first colour may go without saying in a setting.
USUAL: dict[str, tuple[str, ...]] = {
    "house": ("red", "white", "brown"),
    "tree": ("green", "orange"),
    "flower": ("red", "yellow", "pink", "purple"),
    "boat": ("red", "brown", "blue"),
    "fish": ("orange", "yellow", "red"),
    "cloud": ("white", "gray", "pink"),
    "sun": ("yellow", "orange", "red"),
    "moon": ("yellow", "white"),
    "mountain": ("gray", "brown", "blue", "purple"),
    "car": ("red", "blue", "yellow"),
    "balloon": ("red", "yellow", "blue"),
    "butterfly": ("orange", "yellow", "purple"),
    "bird": ("blue", "red", "yellow"),
    "star": ("yellow", "white"),
    "heart": ("red", "pink"),
}


def settings_of(object: str) -> tuple[str, ...]:
    """The settings that a thing belongs in, its home by day first."""
    hours = HOURS.get(object, ("day", "night", "sunset"))
    return tuple(
        place if place == "water" else f"{place}-{time}"
        for place in HOMES.get(object, ())
        for time in (hours[:1] if place == "water" else hours)
    )


def suits(object: str, color: str, setting: str) -> bool:
    """Whether a thing of this colour belongs in the setting and is easily seen in it."""
    floating = object in FLYING or setting == "water"
    return setting in settings_of(object) and stands_out(color, setting, floating)


def plural(noun: str) -> str:
    """The plural of a noun of the book: stars, boxes, butterflies, fish."""
    if noun.endswith("fish"):
        return noun
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith("x") else "s")


def _say(rng: np.random.Generator, group: str, key: str) -> str:
    """One way to say it: the usual one about two times in three; a reserved word is itself."""
    ways = PHRASES[group].get(key, (key,))
    return ways[0] if rng.random() < 0.5 else ways[int(rng.integers(len(ways)))]


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _name(object: str, rng: np.random.Generator) -> str:
    return _say(rng, "shapes" if object in PHRASES["shapes"] else "things", object)


def _noun(thing: "Thing", rng: np.random.Generator, brief: bool = False) -> str:
    """ "a small red boat"; in a setting (brief) the usual colour is sometimes left out."""
    unsaid = brief and thing.color == USUAL.get(thing.object, ("",))[0] and rng.random() < 0.2
    words = [_say(rng, "sizes", thing.size)] if thing.size else []
    words += [] if unsaid else [_say(rng, "colours", thing.color)]
    return article(" ".join([*words, _name(thing.object, rng)]))


def _join(*parts: str) -> str:
    return " ".join(p for p in parts if p)


def caption(scene: "Scene", rng: np.random.Generator) -> str:
    """One of the many ways to say what a scene shows: lower-case English, up to 24 words."""
    opening = _say(rng, "other", "opening") if rng.random() < 0.2 else ""
    if scene.kind == "scene":
        return _scene_caption(scene, rng, opening)
    first, relation = scene.things[0], scene.relation
    if scene.kind == "count":
        words = (_say(rng, "counts", str(len(scene.things))), _say(rng, "colours", first.color))
        body = _join(*words, plural(_name(first.object, rng)))
    elif relation == "inside" and rng.random() < 0.3:
        body = f"{_noun(scene.things[1], rng)} with {_noun(first, rng)} inside"
    elif relation:
        body = _join(
            _noun(first, rng), _say(rng, "relations", relation), _noun(scene.things[1], rng)
        )
    else:
        body = _noun(first, rng)
    where = _say(rng, "positions", scene.place) if scene.place else ""
    color = scene.setting.removeprefix("plain:")
    if color == "white" and rng.random() < 0.6:
        return _join(opening, body, where)
    ground = f"on {article(_say(rng, 'colours', color))} background"
    if not opening and rng.random() < 0.15:
        return f"{ground}, {_join(body, where)}"
    return _join(opening, body, where, ground)


def _scene_caption(scene: "Scene", rng: np.random.Generator, opening: str) -> str:
    first = scene.things[0]
    alike = first.object == scene.things[-1].object and len(scene.things) == 2
    body, tail = _noun(first, rng, brief=not alike), ""
    if len(scene.things) == 2:
        second = _noun(scene.things[1], rng, brief=not alike)
        if rng.random() < 0.25:
            tail = f"with {second}"
        else:
            relation = scene.relation if rng.random() < 0.6 else "and"
            body = _join(body, _say(rng, "relations", relation), second)
    where, when = _where_and_when(scene, rng)
    if when and not opening and rng.random() < 0.25:
        return f"{when}, {_join(body, where, tail)}"
    return _join(opening, body, where, when, tail)


def _where_and_when(scene: "Scene", rng: np.random.Generator) -> tuple[str, str]:
    """The place and the time in words; one of them may be left unsaid where it is understood."""
    place, _, time = scene.setting.partition("-")
    first = scene.things[0].object
    if place == "water":
        return _say(rng, "places", place), ""
    if place == "sky" and rng.random() < 0.4:
        return _say(rng, "skies", time), ""
    group = "places for what flies" if first in FLYING else "places"
    where, when = _say(rng, group, place), _say(rng, "times", time)
    if HOMES.get(first, ("",))[0] == place and rng.random() < 0.3:
        return "", when
    return where, "" if time == "day" and rng.random() < 0.6 else when
