"""Ways from one sample's noise to another's."""

import torch
from torch import Tensor


def slerp(first: Tensor, last: Tensor, fractions: Tensor) -> Tensor:
    """Spherical interpolation between two tensors of one shape: (len(fractions), *shape).

    Noise between two normal draws keeps their length, unlike that on a straight line, which a
    network has never seen. Fraction 0 gives the first and 1 the last, exactly. Where the two
    point the same way, or opposite ways, there is no one arc: the way is straight.
    """
    a, b = first.double().flatten(), last.double().flatten()
    cosine = (a @ b / (a.norm() * b.norm())).clip(-1, 1)
    angle = torch.arccos(cosine)
    t = fractions.double().to(a.device)[:, None]
    if not bool(torch.sin(angle) > 1e-6):
        between = (1 - t) * a + t * b
    else:
        between = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return between.view(-1, *first.shape).to(first.dtype)
