"""Two ways to name the same things, and which name becomes which."""

import re
from collections import Counter
from collections.abc import Sequence

from minisd.viz.figure import CATEGORIES, QUIET, Figure, Sheet, sheet

Name = tuple[str, str]  # the group of a thing, and what it is called
ROW, SIDE, TOP, WIDE = 15, 250, 34, 780  # pixels: a name's height, a column's width, head, sheet
COLORS = CATEGORIES[0], CATEGORIES[4], CATEGORIES[1]  # blue, pink, orange


def numbered(name: Name) -> tuple[str, str, int]:
    """("vae", "up.3") -> ("vae", "up", 3); a name without a number at its end counts as 0."""
    stem, number = re.fullmatch(r"(.*?)\.?(\d*)", name[1]).groups()
    return name[0], stem, int(number or 0)


def in_order(names: Sequence[Name]) -> list[Name]:
    """Each name once, as they come, but those of one stem by their numbers."""
    first: dict[tuple[str, str], int] = {}
    for place, name in enumerate(names):
        first.setdefault(numbered(name)[:2], place)
    return sorted(
        dict.fromkeys(names), key=lambda name: (first[numbered(name)[:2]], numbered(name)[2])
    )


def correspondence(
    rows: Sequence[tuple[str, str, str]],
    *,
    alt: str,
    titles: tuple[str, str] = ("", ""),
    caption: str = "",
) -> Figure:
    """A column of names on the left and one on the right, with a count behind each; a line joins
    two names of the same things, the thicker the more there are.

    rows: (group, name on the left, name on the right) of every single thing; each group has a
    colour. Names of one stem, as up.0 and up.1, are put in the order of their numbers. Raises
    ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("rows is empty, expected (group, left, right) for every thing")
    lefts, rights = [row[:2] for row in rows], [row[::2] for row in rows]
    high = ROW * max(len(set(lefts)), len(set(rights)))
    with sheet(WIDE, TOP + high + 12, alt, caption) as page:
        left = _column(page, lefts, SIDE, "right", high, titles[0])
        right = _column(page, rights, WIDE - SIDE, "left", high, titles[1])
        axes = page.picture(0, 0, page.width, page.height)
        axes.set(xlim=(0, page.width), ylim=(page.height, 0))
        groups = list(dict.fromkeys(group for group, _, _ in rows))
        for (group, one, other), count in Counter(rows).items():
            y, end = left[group, one], right[group, other]
            axes.plot(
                (SIDE + 6, SIDE + 40, WIDE - SIDE - 40, WIDE - SIDE - 6), (y, y, end, end),
                color=COLORS[groups.index(group) % 3], linewidth=0.9 + min(count, 60) / 20,
                alpha=0.8,
            )  # fmt: skip
        return page.finish()


def _column(
    page: Sheet, names: Sequence[Name], x: float, align: str, high: float, title: str
) -> dict[Name, float]:
    """Write the names and their counts; returns the height of each on the page."""
    order, counts = in_order(names), Counter(names)
    if title:
        page.text(x, TOP - 14, f"{title}: {len(names):,}", ha=align, color=QUIET)
    heights = {name: TOP + (i + 0.5) * high / len(order) for i, name in enumerate(order)}
    for (group, name), y in heights.items():
        count = f"({counts[group, name]})"
        text = f"{name} {count}" if align == "right" else f"{count} {name}"
        page.text(x, y, text, ha=align, va="center", fontsize=8)
    return heights
