"""How close two pictures are, and how well a map finds a mask."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of pictures (b, c, h, w) in [-1, 1], 1 for equal ones; (b,).

    Means, variances and covariance in a Gaussian window of 11 pixels and sigma 1.5.
    [Wang et al. 2004, Eq. 13]
    """
    a, b = (a + 1) / 2, (b + 1) / 2
    places = torch.arange(11, device=a.device) - 5.0
    bell = torch.exp(-(places**2) / (2 * 1.5**2))
    window = (bell[:, None] * bell / bell.sum() ** 2).expand(a.shape[1], 1, 11, 11)

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x, window.to(x), groups=x.shape[1])

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def auc(scores: Tensor, mask: Tensor) -> float:
    """How often a number inside the mask is larger than one outside: 1 always, 0.5 by chance.

    scores, mask (bool): of one shape. The area under the ROC curve, by ranks; ties count half.
    Raises ValueError if the mask holds everything or nothing.
    """
    inside, outside = scores[mask].flatten(), scores[~mask].flatten()
    if not len(inside) or not len(outside):
        raise ValueError(
            f"the mask has {len(inside)} of {mask.numel()} cells, expected some of them"
        )
    difference = inside[:, None] - outside[None]
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()
