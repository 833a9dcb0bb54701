"""The one measure by which a pose is scored, chosen and refined: a mixture of inliers and outliers.

The residual of an inlier follows a Student t distribution: heavier tails than a normal one, as errors of networks have them. The score is
a logarithm of likelihood; its maximum is found by expectation maximisation, whose weights are the probabilities of being an inlier (Torr
& Zisserman, MLESAC, 2000; Lange, Little & Taylor 1989 for the t distribution). What an outlier is like depends on who states the noise:

* Noise that is found with the pose: outliers are spread as the scene is, in a share that is found too. No threshold is left to tune.
* Noise that a network states for every correspondence: odds are even at so many standard deviations, whatever these are. A likelihood
  would believe a few cells of little stated noise against many others, and networks are most wrong where they have never been
  (docs/mapping.md has the figures).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsac_ros.ransac.correspondences import SHAPE, Correspondences, Whitened


@dataclass(frozen=True)
class Kernel:
    """even_at: residual of even odds, in standard deviations of the stated noise; None: noise and share of inliers are found."""

    even_at: float | None

    def odds(self, problem: Correspondences, white: Whitened, share_BK: Tensor | float) -> tuple[Tensor, Tensor]:
        """(B, K, N) odds of being an inlier, and degrees of freedom plus squared residual, which the weights need too.

        Args:
            share_BK: of inliers; without meaning where odds are even at a given residual.
        """
        freedom = problem.single.freedom
        tail = white.square_BKN + freedom
        if self.even_at is not None:
            bell = (freedom + self.even_at ** 2) / tail
            bell = bell * bell
            return bell * bell * white.across_BKN.sign(), tail
        peak = (problem.spread_square_B1 * (share_BK / (1 - share_BK))).float()[..., None] * freedom ** SHAPE
        square = tail * tail
        odds = white.across_BKN * peak / (square * square)
        if white.along_BKN is not None:
            measured = white.along_BKN.sqrt() * problem.spread_B.float()[:, None, None]
            odds = odds * (measured + (1.0 - white.along_BKN.sign()))
        return odds, tail

    def expectation(self, problem: Correspondences, white: Whitened, share_BK: Tensor | float) -> tuple[Tensor, Tensor]:
        """Probability of being an inlier, and weight of the squared residual in the next least squares; (B, K, N) each."""
        odds, tail = self.odds(problem, white, share_BK)
        inlier = odds / (1 + odds)
        return inlier, (2 * SHAPE) * inlier / tail

    def weight_slope(self, problem: Correspondences, white: Whitened, inlier_BKN: Tensor, weight_BKN: Tensor) -> Tensor:
        """(B, K, N) derivative of the weight by the squared residual, from what expectation() gives."""
        return -weight_BKN / (problem.single.freedom + white.square_BKN) * (1 + SHAPE * (1 - inlier_BKN))

    def score(self, problem: Correspondences, white: Whitened, share_BK: Tensor | float) -> Tensor:
        """(B, K) natural logarithm of the likelihood ratio to outliers alone."""
        score = self.odds(problem, white, share_BK)[0].log1p().sum(-1).double()
        if self.even_at is not None or not isinstance(share_BK, Tensor):
            return score
        return score + problem.count_B1 * (1 - share_BK).log()


def soft_inliers(sigmas: Tensor, threshold: float) -> Tensor:
    """1 - sigmoid(5 (r / threshold - 1)) of residuals in standard deviations, the soft inlier count of DSAC* (Brachmann & Rother 2021): a
    fixed measure, for comparing frames."""
    return torch.sigmoid(5 - sigmas * (5 / threshold))
