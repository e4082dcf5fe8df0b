"""Chapter 01: the map, text in, image out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minisd.teach.checks import Exercise, NotYet, Wrong, call, sentences

STEPS = 20
PAIR = "give two numbers: (calls, evaluations)"
SIZES = ((512, 768, 768), (128, 192, 160), (256, 64, 32))  # (height, width, d); none is square
Shapes = tuple[tuple[int, ...], ...]


def calls_and_evaluations(answer: Any) -> str:
    """The check of 01.1."""
    if not isinstance(answer, (list, tuple)) or len(answer) != 2:
        return PAIR
    calls, evaluations = (int(value) for value in answer)
    if (calls, evaluations) == (STEPS, 2 * STEPS):
        return ""
    if (calls, evaluations) == (2 * STEPS, STEPS):
        return "the other way round: there are more evaluations than calls; " + PAIR
    wrong_calls = {
        2 * STEPS: "guidance does not call the UNet twice: both texts ride in one call, as a batch "
        "of two",
        1: "the loop goes round once for every step, and calls the UNet each time",
        STEPS + 1: "nothing is called before the first step or after the last one",
        STEPS - 1: "the first step is a step too",
        STEPS + 2: "the text encoder and the decoder do not count: they are not the UNet",
    }
    if calls != STEPS:
        other = f"not {calls} calls: how often does the UNet run in one step?"
        return wrong_calls.get(calls, other)
    wrong_evaluations = {
        STEPS: "each guided call predicts twice, without the prompt and with it",
        2: "two is for one call; count the whole run",
        4 * STEPS: "doubled twice: a call has two rows, and there is one call a step",
    }
    other = f"the calls are right; not {evaluations} evaluations: how many rows has each call?"
    return wrong_evaluations.get(evaluations, other)


def right_shapes(height: int, width: int, d: int) -> Shapes:
    """What the three parts make, without the batch: text, latents, picture."""
    return (77, d), (4, height // 8, width // 8), (3, height, width)


WRONG_SHAPES: dict[str, Callable[[int, int, int], tuple[Shapes, ...]]] = {
    "width and height are swapped: PyTorch has (channels, height, width)":
        lambda h, w, d: (right_shapes(w, h, d),),
    "width and height are swapped in one of the two: both are (channels, height, width)":
        lambda h, w, d: (
            ((77, d), (4, w // 8, h // 8), (3, h, w)), ((77, d), (4, h // 8, w // 8), (3, w, h)),
        ),
    "the channels come first: (channels, height, width)": lambda h, w, d: (
        ((77, d), (h // 8, w // 8, 4), (h, w, 3)), ((77, d), (4, h // 8, w // 8), (h, w, 3)),
        ((77, d), (h // 8, w // 8, 4), (3, h, w)),
    ),
    "the text has a row for each token: (77, d)":
        lambda h, w, d: (((d, 77), *right_shapes(h, w, d)[1:]),),
    "one vector is not enough: the text has one for each of the 77 tokens":
        lambda h, w, d: (((d,), *right_shapes(h, w, d)[1:]),
                         ((1, d), *right_shapes(h, w, d)[1:])),
    "the latents are smaller than the picture: an eighth of its height and of its width":
        lambda h, w, d: (((77, d), (4, h, w), (3, h, w)),),
    "an eighth along each side, 8 x 8 pixels for each place: you divided the sides by 64":
        lambda h, w, d: (((77, d), (4, h // 64, w // 64), (3, h, w)),),
    "the latents have four channels, not three colours":
        lambda h, w, d: (((77, d), (3, h // 8, w // 8), (3, h, w)),),
    "the picture has three channels: red, green, blue":
        lambda h, w, d: (((77, d), (4, h // 8, w // 8), (4, h, w)),),
    "leave the batch out: no 1 in front":
        lambda h, w, d: (tuple((1, *shape) for shape in right_shapes(h, w, d)),),
    "those are for a batch of two, with the empty text; leave the batch out":
        lambda h, w, d: (tuple((2, *shape) for shape in right_shapes(h, w, d)),),
    "in another order: the text, the latents, the picture":
        lambda h, w, d: (right_shapes(h, w, d)[::-1],),
    "that is right for 512 x 512 only: use height, width and d":
        lambda h, w, d: (right_shapes(512, 512, 768), right_shapes(512, 512, d)),
    "that is right for 512 x 768 only: use height, width and d":
        lambda h, w, d: (right_shapes(512, 768, 768), right_shapes(512, 768, d)),
    "the width of the text is not 768 in every model: use d":
        lambda h, w, d: (right_shapes(h, w, 768),),
    "the width is not used": lambda h, w, d: (right_shapes(h, h, d),),
    "the height is not used": lambda h, w, d: (right_shapes(w, w, d),),
}  # fmt: skip


def _as_shapes(given: Any) -> Shapes:
    """Raises Wrong for anything but three shapes."""
    given = tuple(given.values()) if isinstance(given, dict) else given
    if isinstance(given, (list, tuple)) and len(given) == 3:
        if all(one is None or one is ... for one in given):
            raise NotYet
        try:
            return tuple(tuple(one) for one in given)
        except TypeError:
            pass
    raise Wrong(f"it returns {given!r:.60}, expected three shapes: [(77, d), (...), (...)]")


def shapes(answer: Any) -> str:
    """The check of 01.2."""
    given = tuple(_as_shapes(call(answer, *size)) for size in SIZES)
    if given == tuple(right_shapes(*size) for size in SIZES):
        return ""
    for hint, rule in WRONG_SHAPES.items():
        candidates = zip(*(rule(*size) for size in SIZES))
        if given in candidates:
            return hint
    for size, one in zip(SIZES, given):
        for name, mine, right in zip(("text", "latents", "picture"), one, right_shapes(*size)):
            if mine != right:
                return f"for {size[0]} x {size[1]} pixels, {mine} is not the shape of the {name}"
    return "the numbers are not right"


class _Part(nn.Module):
    """A network to be counted: what it is given, doubled."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _count(answer: Any, times: int) -> tuple[Any, int, bool, bool]:
    """What is answered, how often run() ran, whether a hook was left, whether outputs changed."""
    part, other, runs, changed = _Part(), _Part(), [], []
    x = torch.ones(5, 2)

    def run() -> None:
        runs.append(1)
        for _ in range(times):
            other(x)
            made = part(x)
            changed.append(not (isinstance(made, Tensor) and torch.equal(made, 2 * x)))
        other(x)

    given = call(answer, part, run)
    return given, len(runs), bool(part._forward_hooks), any(changed)


def counter(answer: Any) -> str:
    """The check of 01.3: two runs, of 3 and of 7 calls."""
    counts = (3, 7)
    results = [_count(answer, times) for times in counts]
    given = [result[0] for result in results]
    if any(result[1] == 0 for result in results):
        return "run() was never called: nothing happens until you call it"
    if any(result[1] > 1 for result in results):
        return "run() was called more than once: one run is to be counted"
    if any(result[3] for result in results):
        return "what a hook returns takes the place of the module's output; return nothing"
    if all(isinstance(value, (list, tuple)) and len(value) == n for value, n in zip(given, counts)):
        return "it returns the list; how long it is, len(...), is asked"
    try:
        given = [int(value) for value in given]
    except (TypeError, ValueError):
        return f"it returns {given[0]!r:.40}, expected a whole number"
    wrong = {
        (15, 35): "it counts the rows of the batch; a call counts once, however many rows it has",
        (5, 5): "that is the size of the batch; count how often the hook was run",
        (3, 10): "the second count begins where the first one ended: begin with an empty list each "
        "time",
        (0, 0): "the hook saw no call: it has to be there before run() and stay until after it",
        (1, 1): "every call overwrites the last: add up, or append to a list",
    }
    if tuple(given) in wrong:
        return wrong[tuple(given)]
    if given != list(counts):
        return f"{given[0]} is not how often it was called; in the first run, it was {counts[0]}"
    if any(result[2] for result in results):
        return (
            "the number is right, but the hook is still there: keep what register_forward_hook "
            "returns, and call its remove() after run()"
        )
    return ""


EXERCISES = {
    "01.1": Exercise(
        "predict",
        f"a guided run of {STEPS} steps: how many calls of the UNet, and how many evaluations? "
        "A pair of numbers",
        calls_and_evaluations,
        "one call a step, two rows a call: that is what guidance costs",
    ),
    "01.2": Exercise(
        "fill-in",
        "write shapes(height, width, d): the shapes of text, latents and picture, without the "
        "batch, as a list of three",
        shapes,
        "everything between prompt and picture has a size that you can predict",
    ),
    "01.3": Exercise(
        "fill-in",
        "write count(module, run): how often the module is called while run() runs once",
        counter,
        "a hook that counts, and leaves nothing behind",
    ),
    "01.4": Exercise(
        "open",
        "change the seeds, then the prompts: what does each of them change in the pictures?",
        sentences(),
        "to compare: the words decide what is shown and in which colours; the seed decides which "
        "of the pictures that fit the words is drawn, down to place, size and small details",
    ),
}  # fmt: skip
