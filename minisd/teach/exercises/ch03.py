"""Chapter 03: train a noise predictor."""

from typing import Any

import torch
from torch import Tensor, nn

from minisd.schedulers.schedule import NoiseSchedule, predict_x_0
from minisd.teach.checks import Exercise, NotYet, call, compare, draws, number, seeded, sentences

SD = NoiseSchedule()


class Toy(nn.Module):
    """A predictor small enough to differentiate in a check: it sees x_t and t."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, 0.2]))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        if t.shape != (len(x_t),):
            raise ValueError(f"t has the shape {tuple(t.shape)}, expected ({len(x_t)},)")
        return self.weight[0] * x_t + self.weight[1] * (t / 1000)[:, None, None, None]


def loss(answer: Any) -> str:
    """The check of 03.2."""
    g = seeded(3)
    x_0, eps = torch.randn(2, 4, 3, 4, 4, generator=g)
    t = torch.tensor([50, 300, 600, 900])
    arguments = Toy(), x_0, eps, t, SD.alphas_bar
    error = arguments[0](SD.add_noise(x_0, eps, t), t) - eps
    given = call(answer, *arguments)
    hint = draws(answer, *arguments) or compare(given, error.square().mean(), {
        "the square is missing: positive and negative errors cancel": error.mean(),
        "the square is missing, with the sign turned round": -error.mean(),
        "that is the mean absolute error; DDPM's loss is the mean square": error.abs().mean(),
        "a sum, which grows with the size of the batch; take the mean": error.square().sum(),
        "there is a root too much: the mean square itself is the loss":
            error.square().mean().sqrt(),
        "one error for each picture; the loss is one number, the mean over all":
            error.square().mean(dim=(1, 2, 3)),
    } | _mixed_up(*arguments), advice="print the first numbers of x_t, of the model's answer and "
        "of the target")  # fmt: skip
    if hint:
        return hint
    if not getattr(given, "requires_grad", False):  # a plain number has none at all
        return "the number is right, but no gradient flows: no .detach(), .item() or no_grad here"
    return ""


def _mixed_up(
    model: nn.Module, x_0: Tensor, eps: Tensor, t: Tensor, alphas_bar: Tensor
) -> dict[str, Any]:
    """The loss where the model saw, was told or was asked something else."""
    each = alphas_bar[t]
    a = each[:, None, None, None]
    signal, noise = a.sqrt(), (1 - a).sqrt()
    x_t = signal * x_0 + noise * eps

    def of(seen: Tensor, target: Tensor = eps, time: Tensor = t) -> Tensor:
        return (model(seen, time) - target).square().mean()

    return {
        "the target is the noise eps, not the picture x_0": of(x_t, x_0),
        "the target is eps at its full size, whatever t is; no factor belongs there":
            of(x_t, noise * eps),
        "the model was shown the clean picture; it has to see x_t": of(x_0),
        "the model is told alpha_bar; it has to be told the timestep t": of(x_t, eps, each),
        "x_t was mixed without the square roots": of(a * x_0 + (1 - a) * eps),
        "a square root is missing in x_t":
            (of(signal * x_0 + (1 - a) * eps), of(a * x_0 + noise * eps)),
        "picture and noise are swapped in x_t": of(noise * x_0 + signal * eps),
        "the two factors of x_t do not add to 1, their squares do":
            of(signal * x_0 + (1 - signal) * eps),
        "the noise is at full strength in x_t: it needs the factor sqrt(1 - alpha_bar)":
            of(signal * x_0 + eps),
        "the wrong axis: alphas_bar[t] has one number for each picture, and broadcasting put it "
        "along the width; give it the shape (b, 1, 1, 1)":
            of(each.sqrt() * x_0 + (1 - each).sqrt() * eps),
    }  # fmt: skip


def clean(answer: Any) -> str:
    """The check of 03.3."""
    g = seeded(33)
    x_t, eps = torch.randn(2, 2, 3, 4, 4, generator=g)
    a = 0.3
    signal, noise = a**0.5, (1 - a) ** 0.5
    given, right = call(answer, x_t, eps, torch.tensor(a)), predict_x_0(eps, x_t, a, "epsilon")
    return compare(given, right, {
        "the literal subtraction: noise at full strength is taken away, and the picture stays as "
        "faint as it was; scale both": x_t - eps,
        "the division by sqrt(alpha_bar) is missing: the picture stays faint": x_t - noise * eps,
        "divided by alpha_bar in place of its square root": (x_t - noise * eps) / a,
        "the square root on 1 - alpha_bar is missing": (x_t - (1 - a) * eps) / signal,
        "both square roots are missing": (x_t - (1 - a) * eps) / a,
        "the sign is wrong: the noise has to go": (x_t + noise * eps) / signal,
        "multiplied by sqrt(alpha_bar) where it should be divided": (x_t - noise * eps) * signal,
        "the two coefficients are swapped": (x_t - signal * eps) / noise,
        "brackets are missing: the whole difference is divided, not the noise alone": (
            x_t - noise * eps / signal, x_t - (1 - a) * eps / signal, x_t - noise * eps / a),
        "it is cut off; the formula itself knows no limits": (
            right.clamp(-1, 1), right.clamp(0, 1)),
    })  # fmt: skip


def overfit(answer: Any) -> str:
    """The check of 03.4."""
    losses = torch.as_tensor(answer, dtype=torch.float32).flatten()
    if len(losses) == 0:
        raise NotYet
    if len(losses) < 50:
        return f"{len(losses)} losses are too few to tell; train at least 50 steps"
    too_far = "the learning rate is too high, or zero_grad() is missing, and gradients pile up"
    if not losses.isfinite().all():
        return f"the loss became inf or nan: {too_far}"
    tenth = len(losses) // 10
    begin, end = losses[:tenth].mean().item(), losses[-tenth:].mean().item()
    if end > 1.5 * begin:
        return f"the loss grew from {begin:.3g} to {end:.3g}: {too_far}"
    if end > 0.95 * begin:
        return (
            f"the loss did not move from {begin:.3g}: are backward(), optimizer.step() and "
            "optimizer.zero_grad() all there, and does the optimizer hold this model's parameters?"
        )
    if end > 0.4 * begin:
        return f"from {begin:.3g} to {end:.3g}: the right way, but not yet below 0.4 of the start"
    return ""


EXERCISES = {
    "03.1": Exercise(
        "predict",
        "what is the loss of a model that always answers 0?",
        number(1.0, 0.02, {
            "0 would be the loss of a perfect model; this one misses all of the noise": 0.0,
            "2 is the loss of a model that guesses other noise; zero is a better guess than that":
                2.0,
            "1/2 would be noise of half the variance; eps has variance 1 at every t": 0.5,
        }, "the loss is then the mean of eps squared: what is the variance of eps?"),
        "a loss below 1 means that something was learnt",
    ),
    "03.2": Exercise(
        "fill-in",
        "write loss_by_hand(model, x_0, eps, t, alphas_bar): x_0, eps (b, c, h, w), t (b,), "
        "alphas_bar (1000,); model(x_t, t) predicts eps; returns one number",
        loss,
        "the right number, and the gradient flows",
    ),
    "03.3": Exercise(
        "fill-in",
        "write clean_picture(x_t, eps, alpha_bar): the clean picture that this noise implies",
        clean,
        "the inverse of add_noise",
    ),
    "03.4": Exercise(
        "open",
        "overfit one single picture and give the list of losses",
        overfit,
        "a network that cannot learn one picture by heart has a bug; this one can",
    ),
    "03.5": Exercise(
        "open",
        "why does the loss stay high at small t, where the picture is almost clean?",
        sentences(),
        "to compare: at small t the noise is much fainter than the picture's own detail, and to "
        "tell one from the other is hard; the predicted picture is good there all the same, since "
        "an error in eps counts by sqrt(1 - alpha_bar) / sqrt(alpha_bar)",
    ),
}  # fmt: skip
