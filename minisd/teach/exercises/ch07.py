"""Chapter 07: how CLIP is trained."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.teach.checks import Exercise, as_numbers, call, compare, number, sentences


def vectors() -> tuple[Tensor, Tensor]:
    """Unit vectors of 6 pictures and their 6 texts. 5 pictures find their text, 4 texts theirs."""
    draw = torch.Generator().manual_seed(1)
    texts = torch.randn(6, 8, generator=draw)
    images = texts + 1.3 * torch.randn(6, 8, generator=draw)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def loop_loss(images: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """The loss of a batch number by number, nothing clever."""
    b, total = len(images), 0.0
    for i in range(b):
        of_picture = [math.exp(float(images[i] @ texts[j]) / temperature) for j in range(b)]
        of_text = [math.exp(float(images[j] @ texts[i]) / temperature) for j in range(b)]
        total -= math.log(of_picture[i] / sum(of_picture)) / (2 * b)
        total -= math.log(of_text[i] / sum(of_text)) / (2 * b)
    return torch.tensor(total)


def loss_mistakes(v: Tensor, t: Tensor, tau: float, right: Tensor) -> dict[str, Any]:
    """What typical mistakes in 07.2 make of the vectors, by their hints."""
    cosines, eye = v @ t.T, torch.eye(len(v))
    s, own = cosines / tau, torch.arange(len(v))
    row, column = s.log_softmax(1).diagonal(), s.log_softmax(0).diagonal()

    def plain(scores: Tensor) -> Tensor:
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

    others = (s - 1e9 * eye).logsumexp(1) + (s - 1e9 * eye).logsumexp(0)
    chance = (row.exp() + column.exp()).mean() / 2
    return {
        "that is half of it: the pictures choose among the texts; the texts must choose as well":
            -row.mean(),
        "that is half of it: the texts choose among the pictures; the pictures must choose as well":
            -column.mean(),
        "that is the sum of the two directions; take their mean": 2 * right,
        "that is the sum over the batch; take its mean": (len(v) * right, 2 * len(v) * right),
        "you multiply by the temperature; divide by it": plain(cosines * tau),
        "the temperature is not used": plain(cosines),
        "the logarithm is missing: it is the mean of minus the logarithm of each probability":
            (-chance, 1 - chance),
        "the sign is wrong: a logarithm of a probability is negative, the loss is minus that":
            -right,
        "the probabilities of a row sum to 1, those of a column too, not those of the matrix":
            -s.flatten().log_softmax(0).view(s.shape).diagonal().mean(),
        "that is a label 0 or 1 for each pair on its own; let the pairs of a row compete, by "
        "softmax": F.binary_cross_entropy_with_logits(s, eye),
        "the wrong pairs are missing: nothing pushes them apart":
            (-s.diagonal().mean(), (1 - cosines.diagonal()).mean()),
        "that is the mean over all pairs; the right ones, on the diagonal, are those that count":
            -(s.log_softmax(1) + s.log_softmax(0)).mean() / 2,
        "the right pair is one of the sum below the fraction, too":
            (others - 2 * s.diagonal()).mean() / 2,
    }  # fmt: skip


def both_ways(answer: Any) -> str:
    """The check of 07.2."""
    (v, t), tau = vectors(), 0.2
    given = call(answer, v.clone().requires_grad_(), t.clone().requires_grad_(), tau)
    right = loop_loss(v, t, tau)
    hint = compare(given, right, loss_mistakes(v, t, tau, right))
    if hint:
        return hint
    if not isinstance(given, Tensor):
        return f"the number is right, as a {type(given).__name__}; training needs a tensor"
    if not given.requires_grad:
        return "the number is right, but no gradient can flow back through it (.item(), .detach())"
    return ""


def own_text(answer: Any) -> str:
    """The check of 07.3."""
    v, t = vectors()
    given, s, own = call(answer, v, t), v @ t.T, torch.arange(6)
    numbers = as_numbers(given)
    by_row, by_column = s.argmax(1) == own, s.argmax(0) == own
    right = by_row.float().mean()
    if numbers is not None and numbers.shape == (6,):
        if torch.equal(numbers, by_row.float()):
            return "that is a yes or no for each picture; return the share of yes, one number"
        if torch.equal(numbers, s.argmax(1).float()):
            return "that is which text each picture chose; compare it with its own number"
    return compare(given, right, {
        "that is how the texts find their pictures; a picture chooses within its row":
            by_column.float().mean(),
        "that is the mean of both directions; only the pictures choose here":
            (by_row.float().mean() + by_column.float().mean()) / 2,
        "that is how many; divide by how many there are": right * 6,
        "that is the mean cosine of the own pairs; count how often it is the largest of its row":
            s.diagonal().mean(),
        "no fixed limit is asked: the own text has to beat the other texts": tuple(
            (s.diagonal() > limit).float().mean() for limit in (0.5, 0.9)),
        "pictures are compared with pictures: each finds itself": 1.0,
        "those are the errors; the share of right ones is 1 minus that": 1 - right,
        "the smallest cosine of a row is the worst text": (s.argmin(1) == own).float().mean(),
    })  # fmt: skip


def only_attract(answer: Any) -> str:
    """The check of 07.4."""
    v, t = vectors()
    scale = torch.tensor(1.5)
    given = call(answer, v, t, scale)
    own = (v * t).sum(1)
    return compare(given, (1 - own).mean(), {
        "you attract all pairs, the wrong ones too; take the own ones, row by row":
            1 - (v @ t.T).mean(),
        "a loss falls: 1 minus the cosine": (own.mean(), own.sum()),
        "right but for a constant: let it be 0 where every pair agrees": -own.mean(),
        "that is the sum over the batch; take its mean": (1 - own).sum(),
        "that is one number for each pair; take their mean": 1 - own,
        "the squared distance is twice as large: ||a - b||^2 = 2 - 2 cos": (2 - 2 * own).mean(),
        "the temperature has nothing to do here: the cosine itself, between -1 and 1": tuple(
            (k - f * own).mean() for f in (scale, scale.exp()) for k in (0, 1)),
        "that is the whole loss: its softmax brings the wrong pairs in": loop_loss(
            v, t, math.exp(-1.5)),
        "that is the mean over all numbers; a cosine is their sum over the features":
            1 - (v * t).mean(),
    })  # fmt: skip


EXERCISES = {
    "07.1": Exercise(
        "predict",
        "60 pictures in 12 colours, 5 of each; a model always knows the colour and nothing else: "
        "what is its loss?",
        number(math.log(5), 0.02, {
            "that is a model that knows nothing: ln 60; this one has all but 5 ruled out":
                math.log(60),
            "that is what knowing the colour is worth: ln 12; what is left to know?":
                math.log(12),
            "that is the probability of the right caption; the loss is minus its logarithm": 0.2,
            "the two directions are averaged, not added": 2 * math.log(5),
            "the natural logarithm is meant, not that to base 2": math.log2(5),
            "the natural logarithm is meant, not that to base 10": math.log10(5),
            "that would be a model that is always sure and right": 0.0,
            "that many captions are left to choose from; the loss is a logarithm": 5.0,
        }, "how many captions are left, and with which probability for the right one?"),
        "ln 5: five captions are left, each with probability 1/5",
    ),
    "07.2": Exercise(
        "fill-in",
        "write clip_loss(images, texts, temperature): unit vectors (b, d) twice, to one number",
        both_ways,
        "the same number as the loop's, and a gradient flows back",
    ),
    "07.3": Exercise(
        "fill-in",
        "write diagonal_accuracy(images, texts): the share of pictures whose own text has the "
        "largest cosine of all",
        own_text,
        "the loss in a form that people can read",
    ),
    "07.4": Exercise(
        "fill-in",
        "write attract(images, texts, scale): 1 minus the mean cosine of the right pairs; scale "
        "is not used",
        only_attract,
        "now train with it, in the next cell",
    ),
    "07.5": Exercise(
        "open",
        "train with wrong=0.0 and with wrong=0.2, for 300 steps each: how do loss and accuracy "
        "differ, and why is not everything lost?",
        sentences(),
        "to compare: the loss stays far higher, because nobody can guess which captions were mixed "
        "up. The accuracy suffers less: every wrong caption is wrong in another way, so that they "
        "cancel, while the right ones agree. What is lost is time: with twice as many steps the "
        "noisy run is as good as the clean one. CLIP's 400 million captions were used in that hope",
    ),
}  # fmt: skip
