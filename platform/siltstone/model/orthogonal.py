"""Orthogonalised steps: every direction a gradient names is followed equally far."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_QUINTIC: Final = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                   (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))  # fmt: skip


def orthogonalise_slowly(g_RO: Tensor) -> Tensor:
    """Returns U V^T of g = U S V^T by its singular value decomposition: the truth the fast form is held against."""
    u, _, vh = torch.linalg.svd(g_RO, full_matrices=False)
    product: Tensor = u @ vh
    return product


def orthogonalise(g_BRO: Tensor) -> Tensor:
    """Returns nearly U V^T of every g = U S V^T, rows no more than columns; zero stays zero.

    Source: Muon's Newton-Schulz iteration (NL section 4.4, Eq. 52), five quintic steps.
        X[k+1] = (a I + b X X^T + c (X X^T)^2) X
    Differs: each X is a polynomial in g g^T times g, so the five steps run on the R x R Gram matrix and the wide
    matrix is touched twice; the coefficients change from step to step.
    Shapes: [B, R, O] with R <= O.
    """
    if g_BRO.shape[-2] > g_BRO.shape[-1]:
        return orthogonalise(g_BRO.transpose(-1, -2)).transpose(-1, -2)
    g = unit_size(g_BRO)
    direction: Tensor = orthogonaliser(g @ g.transpose(-1, -2)) @ g
    return direction.to(g_BRO.dtype)


def unit_size(g_BRO: Tensor) -> Tensor:
    """Returns every g with its largest number made one: the squares of a very small gradient would vanish."""
    g = g_BRO.float()
    return g / g.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)


def orthogonaliser(gram_BRR: Tensor) -> Tensor:
    """Returns the P for which P g is nearly U V^T, given only g g^T: [B, R, R]. Zero gives a finite P."""
    tiny = torch.finfo(gram_BRR.dtype).tiny
    # The norm of g is the trace, so that nothing wide is divided by it.
    squared = gram_BRR.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None].clamp(min=tiny)
    gram = gram_BRR / squared
    eye = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    (a, b, c), *later = _QUINTIC
    polynomial = step = a * eye + b * gram + c * (gram @ gram)
    for a, b, c in later:
        gram = step @ gram @ step
        step = a * eye + b * gram + c * (gram @ gram)
        polynomial = step @ polynomial
    return polynomial * squared.rsqrt()
