"""Chapter 06: tokens and the text encoder."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

from minisd.config import PICTUREBOOK, SD15, TextEncoderConfig
from minisd.teach.checks import Exercise, call, number, sentences

# Words in letters and how often each occurs, chosen so that typical mistakes find other pairs.
COUNTS = {
    ("s", "e", "a</w>"): 7,
    ("m", "u", "r", "m", "u", "r</w>"): 8,
    ("c", "a", "b", "a", "n", "a</w>"): 9,
    ("c", "a", "b</w>"): 5,
    ("b", "a", "n", "a", "n", "a</w>"): 2,
}


def pair_counts(counts: dict, weighted: bool = True, once: bool = False) -> Counter:
    """How often every two neighbours occur; `once` counts each pair once in a word."""
    found = Counter()
    for word, times in counts.items():
        pairs = list(pairwise(word))
        for pair in dict.fromkeys(pairs) if once else pairs:
            found[pair] += times if weighted else 1
    return found


def top(counter: Counter) -> Any:
    return max(counter, key=counter.get)


def best_pair(answer: Any) -> str:
    """The check of 06.1."""
    given = call(answer, dict(COUNTS))
    found = pair_counts(COUNTS)
    right = top(found)
    letters, unordered = Counter(), Counter()
    for word, times in COUNTS.items():
        letters.update({letter: times * word.count(letter) for letter in set(word)})
    for pair, times in found.items():
        unordered[tuple(sorted(pair))] += times
    if isinstance(given, str):
        return "return the two pieces as a tuple, as in ('a', 'b'), not yet joined"
    if isinstance(given, dict):
        return "those are the counts of all pairs; return the pair that has the largest"
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return "return the two pieces of the most frequent pair as a tuple"
    if tuple(given) == right:
        return ""
    if right in given:
        return "return the pair alone, without its count"
    rare = min(found.values())
    for hint, wrong in {
        "you count every word once; a pair in a word that occurs 8 times occurs 8 times":
            [top(pair_counts(COUNTS, weighted=False))],
        "a pair that is twice in a word counts twice: m u r m u r holds (m, u) twice":
            [top(pair_counts(COUNTS, once=True))],
        "the order of the two matters: a b and b a are different pairs":
            [top(unordered)],
        "that is the rarest pair": [pair for pair in found if found[pair] == rare],
        "those are the two most frequent letters; a pair are neighbours":
            [two := tuple(letter for letter, _ in letters.most_common(2)), two[::-1]],
        "right, but turned round: the left one comes first": [right[::-1]],
    }.items():  # fmt: skip
        if tuple(given) in wrong:
            return hint
    return f"{tuple(given)} occurs {found[tuple(given)]} times; another pair occurs more often"


def parameter_count(c: TextEncoderConfig) -> int:
    """The sum over all tables, matrices, biases and norms of a text encoder."""
    attention = 4 * (c.width**2 + c.width)
    mlp = 2 * c.width * c.mlp_width + c.mlp_width + c.width
    norm = 2 * c.width
    embeddings = (c.vocab_size + c.context_length) * c.width
    return embeddings + c.layers * (attention + mlp + 2 * norm) + norm


def parameters(answer: Any) -> str:
    """The check of 06.2."""
    c = SD15.text_encoder
    given, right = call(answer, c), parameter_count(c)
    d, inner, n = c.width, c.mlp_width, c.layers
    outside = parameter_count(replace(c, layers=0))
    if isinstance(given, str) or not hasattr(given, "__int__"):
        return f"it returns a {type(given).__name__}, expected a whole number"
    given = int(given)
    if given == right:
        book = PICTUREBOOK.text_encoder
        if call(answer, book) == parameter_count(book):
            return ""
        return "right for Stable Diffusion only: take every size from config"
    for hint, missing in {
        "the biases of the linear layers are missing: one number for each output":
            n * (5 * d + inner),
        "the final layer norm is missing": 2 * d,
        "the position embeddings are missing": c.context_length * d,
        "the token embeddings are missing: the largest table of all": c.vocab_size * d,
        "every layer has two norms, one before the attention and one before the MLP": n * 2 * d,
        "the layer norms are missing, two in a layer and one at the end": (2 * n + 1) * 2 * d,
        "a layer norm has weights and biases": (2 * n + 1) * d,
        "attention has four matrices: the one after the heads, out, is missing": n * (d * d + d),
        "the MLP has two matrices, there and back": n * inner * d,
        "the embeddings are missing, of tokens and of positions":
            (c.vocab_size + c.context_length) * d,
        "that is one layer; there are config.layers of them": (right - outside) * (n - 1) // n,
        "the heads share one matrix of width x width, they do not have one each":
            -n * 3 * (c.heads - 1) * d * d,
    }.items():  # fmt: skip
        if given == right - missing:
            return hint
    return f"{given:,} for Stable Diffusion's sizes is {given - right:+,} away; count part by part"


EXERCISES = {
    "06.1": Exercise(
        "fill-in",
        "write best_pair(counts): words in pieces and how often they occur, to the pair to merge",
        best_pair,
        "merge it everywhere, count again, and again: that is how the list of merges is learned",
    ),
    "06.2": Exercise(
        "fill-in",
        "write parameters(config): how many numbers a text encoder of these sizes holds",
        parameters,
        "123,060,480 for Stable Diffusion 1.x, and the picture book's as well",
    ),
    "06.3": Exercise(
        "predict",
        'of the 77 vectors of "blue circle red square" and "red square blue circle", how many are '
        "equal, place by place?",
        number(1, 0.4, {
            "the words are the same, but not their places, and each word sees those before it": 77,
            "START sees only itself, so it cannot know what follows": 0,
            "END and the padding come after the words and see all of them": 73,
            "the padding comes after the words and sees all of them": 72,
            "END comes after the words and sees all of them": 2,
        }, "ask of each place which tokens it can see"),
        "START alone; from the first word on, everything differs",
    ),
    "06.4": Exercise(
        "predict",
        "for a prompt of 160 tokens, how many vectors does prompts.encode hand to the UNet?",
        number(231, 0.4, {
            "that is the pipeline, which cuts; prompts.encode does not": 77,
            "the model reads only full contexts of 77, with START, END and padding": 160,
            "one START and one END are not enough: every part has its own": 162,
            "two parts have room for 150 tokens": 154,
            "every part has its own START and END, and comes out as 77 vectors": 225,
            "the last part is padded to 77 as well": 166,
        }, "how many parts of 75, and how many vectors for each?"),
        "three parts of 77",
    ),
    "06.5": Exercise(
        "open",
        "a long prompt is read in parts of 75 tokens: which words can no longer know of each "
        "other, and when does it hurt?",
        sentences(),
        "to compare: attention stops at the border of a part. If it falls between red and boat, "
        "boat no longer sees its colour; a comma or an idea that ends there is the better place "
        "to divide",
    ),
}  # fmt: skip
