"""The language of the picture book: which words it knows, and what to try instead of others."""

import difflib
import re
from functools import cache
from typing import NamedTuple

from minisd.picturebook.captions import (
    FLYING,
    HOMES,
    PHRASES,
    USUAL,
    article,
    plural,
    settings_of,
    suits,
)
from minisd.picturebook.scenes import COLORS, HELD_OUT, OBJECTS


def words() -> dict[str, tuple[str, ...]]:
    """The words that the book knows, by group; plurals of objects are known as well."""
    groups = {
        "objects": ("shapes", "things"),
        "colours": ("colours",),
        "sizes": ("sizes",),
        "counts": ("counts",),
        "relations": ("relations",),
        "positions": ("positions",),
        "times": ("times",),
        "places": ("places", "places for what flies", "skies"),
    }
    other = [w for ways in PHRASES["other"].values() for way in ways for w in way.split()]
    found: dict[str, tuple[str, ...]] = {}
    taken = set(other)
    for name, members in groups.items():
        ways = [
            w for m in members for ways in PHRASES[m].values() for way in ways for w in way.split()
        ]
        found[name] = tuple(dict.fromkeys(w for w in ways if w not in taken))
        taken |= set(found[name])
    return {**found, "other": tuple(dict.fromkeys(other))}


def _split(prompt: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", prompt.lower())


@cache
def _known() -> frozenset[str]:
    groups = words()
    return frozenset(
        {w for group in groups.values() for w in group} | {plural(w) for w in groups["objects"]}
    )


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the book has never seen, in order, each once."""
    known = _known()
    return list(dict.fromkeys(w for w in _split(prompt) if w not in known))


class Idea(NamedTuple):
    """What a simple prompt asks for; "" where it says nothing."""

    object: str = ""
    color: str = ""
    size: str = ""
    place: str = ""
    time: str = ""


WEIGHT = Idea(8, 4, 1, 2, 3)  # how much it matters to keep each
# Which thing comes first where the prompt leaves it open.
FAVOURITES = ("bird", "house", "boat", "butterfly", "fish", "flower", "car", "tree", "balloon")


def _first(text: str, *groups: str) -> tuple[int, str]:
    """Where the first phrase of the groups begins in the text and what it means, else (-1, "").

    A whole phrase ("in the sea") goes before a word of it ("sea").
    """
    glue = {w for g in ("other", "relations") for w in words()[g]}
    whole = {way: key for g in groups for key, ways in PHRASES[g].items() for way in ways}
    many = {plural(way): key for way, key in whole.items()}
    parts = {w: key for way, key in whole.items() for w in way.split() if w not in glue}
    for phrases in (whole | many, parts):
        found = [(text.find(f" {way} "), key) for way, key in phrases.items() if f" {way} " in text]
        if found:
            return min(found)
    return -1, ""


def _read(prompt: str) -> Idea:
    """What of a prompt the book understands, words that are nearly spelt right included."""
    known = sorted(_known())
    tokens = [
        (w if w in known else (difflib.get_close_matches(w, known, 1, 0.8) or [w])[0])
        for w in _split(prompt)
    ]
    text = f" {' '.join(tokens)} "
    at, object = _first(text, "shapes", "things")
    before = [w for w in text[: max(at, 0)].split() if _first(f" {w} ", "colours")[1]]
    color = _first(f" {before[-1]} " if before else text, "colours")[1]
    return Idea(
        object,
        color,
        _first(text, "sizes")[1],
        _first(text, "places", "places for what flies")[1],
        _first(text, "times")[1],
    )


@cache
def _ideas() -> tuple[Idea, ...]:
    """Every simple prompt of the grammar: an object and its colour, plain or where it belongs."""
    order = dict.fromkeys((*FAVOURITES, *OBJECTS))
    return tuple(
        Idea(o, c, size, *(s.split("-") if "-" in s else (s, "")))
        for o in order
        for s in ("", *settings_of(o))
        for c in COLORS
        if not s or suits(o, c, s)
        for size in ("", "small", "large")
    )


def _closeness(idea: Idea, wanted: Idea) -> float:
    score = sum(weight for weight, has, asked in zip(WEIGHT, idea, wanted) if has == asked != "")
    score -= 0.5 * bool(idea.size and not wanted.size)
    score -= 0.5 * bool(idea.place and not (wanted.place or wanted.time))
    score -= 0.5 * (idea.time in ("night", "sunset") and not wanted.time)
    usual = USUAL.get(idea.object, ())
    score += 0.4 - 0.1 * usual.index(idea.color) if idea.color in usual else 0
    return score - 0.2 * ((idea.object, idea.color) in HELD_OUT)


def suggest(prompt: str, n: int = 3) -> list[str]:
    """The n nearest simple prompts that the book can draw, keeping what it knows of the given one.

    "a purple cat at night" keeps purple and night; the same prompt has the same suggestions.
    """
    wanted = _read(prompt)
    ranked = sorted(_ideas(), key=lambda idea: -_closeness(idea, wanted))
    chosen: dict[tuple[str, str], str] = {}  # variety: other things, or other settings
    for idea in ranked:
        if len(chosen) == n:
            break
        vary = idea[3:] if wanted.object == idea.object else (idea.object, "")
        chosen.setdefault(vary, _prompt(idea))
    return list(chosen.values())


def _prompt(idea: Idea) -> str:
    """A caption of the grammar in its plainest words."""
    group = "shapes" if idea.object in PHRASES["shapes"] else "things"
    noun = [
        PHRASES[g][key][0]
        for g, key in (("sizes", idea.size), ("colours", idea.color), (group, idea.object))
        if key
    ]
    places = PHRASES["places for what flies" if idea.object in FLYING else "places"]
    at_home = idea.place == HOMES.get(idea.object, ("",))[0] and idea.time in ("night", "sunset")
    where = places[idea.place][0] if idea.place and not at_home else ""
    when = PHRASES["times"][idea.time][0] if idea.time in ("night", "sunset") else ""
    return " ".join(part for part in (article(" ".join(noun)), where, when) if part)


def explain(prompt: str) -> str | None:
    """One sentence on the words that the book does not know, None if it knows them all."""
    unknown = unknown_words(prompt)
    if not unknown:
        return None
    names = [f'"{w}"' for w in unknown]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    ideas = [f'"{s}"' for s in suggest(prompt)]
    return (
        f"{listed} {'is' if len(names) == 1 else 'are'} not in the picture book; "
        f"try {', '.join(ideas[:-1])} or {ideas[-1]}."
    )
