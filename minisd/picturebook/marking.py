"""Marks for a picture: what of a scene the judge finds in it."""

from collections.abc import Sequence
from itertools import permutations

from minisd.picturebook.judge import Found, Seen
from minisd.picturebook.scenes import Scene, Thing

# Between the radii of the sizes (scenes.RADIUS; two things beside each other are a little smaller).
SMALL, LARGE = 0.175, 0.285
LARGE_OF_TWO = 0.23
ASPECTS = ("objects", "colors", "relation", "place", "size", "setting", "all")


def mark(scene: Scene, seen: Seen) -> dict[str, bool]:
    """What is right, by aspect; only what a caption of the scene says is asked for.

    "objects": these and no others; "colors": each object has its own; "all": every aspect.
    """
    right = {"objects": False, "colors": False}
    pairs = best_match(scene.things, seen.things)
    if len(seen.things) == len(scene.things):
        right["objects"] = all(a.object == b.object for a, b in pairs)
        right["colors"] = all(a.color == b.color for a, b in pairs)
    found = {i: b for i, (_, b) in enumerate(pairs)}
    if scene.kind == "two" and scene.relation != "and":
        right["relation"] = len(found) == 2 and holds(scene.relation, found[0], found[1])
    if scene.place:
        right["place"] = bool(found) and lies(scene.place, found[0])
    if any(thing.size for thing in scene.things):
        large = LARGE_OF_TWO if scene.kind == "two" else LARGE
        right["size"] = len(found) == len(scene.things) and all(
            fits(thing.size, found[i].radius, large) for i, thing in enumerate(scene.things)
        )
    right["setting"] = seen.setting == scene.setting
    return {**right, "all": all(right.values())}


def best_match(things: Sequence[Thing], found: Sequence[Found]) -> list[tuple[Thing, Found]]:
    """Each thing with the found one that fits it best: by object, then colour, then place."""

    def cost(thing: Thing, other: Found) -> float:
        away = abs(thing.x - other.x) + abs(thing.y - other.y)
        return 4 * (thing.object != other.object) + 2 * (thing.color != other.color) + 0.5 * away

    if len(found) < len(things):
        return []
    ways = permutations(sorted(found, key=lambda f: -f.radius)[:6], len(things))
    best = min(ways, key=lambda way: sum(map(cost, things, way)))
    return list(zip(things, best))


def holds(relation: str, a: Found, b: Found) -> bool:
    """Whether a stands in the relation to b."""
    dx, dy = b.x - a.x, b.y - a.y
    if relation == "inside":
        return max(abs(dx), abs(dy)) < 0.15 and b.radius > 1.4 * a.radius
    upright = abs(dy) > abs(dx)
    return {
        "above": upright and dy > 0.1,
        "below": upright and dy < -0.1,
        "left": not upright and dx > 0.1,
        "right": not upright and dx < -0.1,
        "beside": not upright and abs(dx) > 0.1,
    }[relation]


def lies(place: str, thing: Found) -> bool:
    """Whether a thing lies at "top", "bottom left", ... of its picture."""

    def along(low: str, high: str, at: float) -> bool:
        if low in place:
            return at < 0.43
        return at > 0.57 if high in place else 0.38 < at < 0.62

    return along("left", "right", thing.x) and along("top", "bottom", thing.y)


def fits(size: str, radius: float, large: float) -> bool:
    """Whether a radius is of that size; a size that is not said fits always."""
    return {"small": radius < SMALL, "large": radius > large}.get(size, True)
