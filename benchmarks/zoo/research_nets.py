"""Diffusion models as research code bases write them: ddim, score_sde, EDM, EDM2, guided-diffusion, CompVis LDM.

Small, and written anew: what is taken over is how they compute (scales from shapes, flat lists of layers, layers with
weights of their own, recomputed activations, magnitude-preserving sums), not their code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from case import Case, Make
from research_ddim import Ddim, LdmVae
from research_edm import Edm, Edm2
from research_guided import GuidedUNet
from research_sde import ScoreSde
from torch import Tensor, nn


def noisy(c: int = 3, **more: Make) -> Make:
    """A noisy image and its noise level or step."""
    return lambda b: (
        (torch.randn(b, c, 16, 16), torch.linspace(0.5, 2.0, b)),
        {name: make(b) for name, make in more.items()},
    )


def labels(b: int) -> Tensor:
    return torch.arange(b) % 5


NETS: dict[str, tuple[Callable[[], nn.Module], Make]] = {
    "ddim": (Ddim, noisy()),
    "score-sde": (ScoreSde, noisy()),
    "score-sde-ddpm": (lambda: ScoreSde(fourier=False), noisy()),
    "edm": (Edm, noisy()),
    "edm-plain": (lambda: Edm(adaptive=False), noisy()),
    "edm-labels": (lambda: Edm(labels=5), noisy(class_labels=lambda b: F.one_hot(labels(b), 5).float())),
    "edm2": (Edm2, noisy(4)),
    "edm2-labels": (lambda: Edm2(labels=5), noisy(4, labels=lambda b: F.one_hot(labels(b), 5).float())),
    "guided": (GuidedUNet, noisy(4)),
    "guided-plain": (lambda: GuidedUNet(shift=False, resblock_updown=False, legacy=False), noisy(4)),
    "guided-classes": (lambda: GuidedUNet(classes=5), noisy(4, y=labels)),
    "guided-recomputed": (lambda: GuidedUNet(save=True), noisy(4)),
    "ldm": (
        lambda: GuidedUNet(context=24, shift=False, resblock_updown=False),
        noisy(4, context=lambda b: torch.randn(b, 7, 24)),
    ),
    "ldm-vae": (LdmVae, lambda b: torch.randn(b, 3, 16, 16)),
    "ldm-vq": (lambda: LdmVae(codes=16), lambda b: torch.randn(b, 3, 16, 16)),
}


def cases() -> Iterator[Case]:
    for name, (make, given) in NETS.items():
        yield Case(f"research/{name}", "research code", make, given)
