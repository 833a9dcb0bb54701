"""The likelihood by SciPy's distributions, the weights as its derivative: what is refined is what is scored."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch
from scipy.stats import multivariate_normal, multivariate_t

from dsac_ros.geometry import se3
from dsac_ros.ransac.correspondences import Whitened
from dsac_ros.ransac.estimator import normal_equations
from dsac_ros.ransac.kernel import Kernel, soft_inliers

SHARE = 0.37
FACTOR = 1.7  # on the noise of the points
KERNELS = [Kernel(None), Kernel(2.0), Kernel(3.5)]


def at_a_pose(kind: str, seed: int = 1) -> tuple[scenes.Scene, np.ndarray, Whitened]:
    """A scene of 300 with outliers, a pose some centimetres from its truth, and the whitened residuals there."""
    scene = scenes.scene(seed, kind, count=300, outliers=0.3, noise=0.05, pixel_noise=2.0, range_noise=0.02)
    pose = scenes.poses_near(scene.truth, 1, 0.02)
    white = scene.problem.whitened(scene.problem.residuals(scene.problem.vectors(pose)), torch.full((1, 1), FACTOR).double())
    return scene, pose[0, 0].numpy(), white


def densities(scene: scenes.Scene, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) of the residuals by SciPy, each in its own number of dimensions: of inliers, and of outliers as the kernel takes them.

    Outliers are normal, of the spread of the scene, and taken at their peak: an outlier is at most as far as the scene is wide. In three
    dimensions the kernel leaves out what is left of the two constants, 1.14.
    """
    values = {name: value[0].numpy() for name, value in scenes.tensors(scene.problem).items()}
    distance, along = scenes.measured(scene.problem, pose)
    spread, inlier, outlier = float(scene.problem.spread_B), [], []
    constant = multivariate_t.pdf(np.zeros(3), shape=np.eye(3), df=5) / multivariate_normal.pdf(np.zeros(3), cov=np.eye(3))
    assert constant == pytest.approx(1.14, abs=0.01)
    for n in range(len(distance)):
        variances = [(FACTOR * values['scales_BN'][n]) ** 2 + (values['angles_BN'][n] * along[n]) ** 2] * 2
        residual = [distance[n], 0.0]
        measured = 'ranges_BN' in values and values['ranges_BN'][n] > 0
        if measured:
            variances.append((FACTOR * values['scales_BN'][n]) ** 2 + values['range_noise_BN'][n] ** 2)
            residual.append(along[n] - values['ranges_BN'][n])
        inlier.append(multivariate_t.pdf(residual, shape=np.diag(variances), df=8 - len(residual)) / (constant if measured else 1.0))
        outlier.append(multivariate_normal.pdf(np.zeros(len(residual)), cov=spread ** 2 * np.eye(len(residual))))
    return np.array(inlier), np.array(outlier)


@pytest.mark.parametrize('kind', scenes.KINDS)
def test_found_noise_is_scored_by_the_likelihood_of_the_mixture(kind: str) -> None:
    """float32: 1e-5 m of the residuals over 0.1 m, four times over in the exponent."""
    scene, pose, white = at_a_pose(kind)
    inlier, outlier = densities(scene, pose)
    share, kernel = torch.full((1, 1), SHARE).double(), Kernel(None)
    mixture = SHARE * inlier + (1 - SHARE) * outlier
    ours = kernel.expectation(scene.problem, white, share)[0][0, 0].numpy()
    np.testing.assert_allclose(ours, SHARE * inlier / mixture, rtol=2e-3, atol=1e-6)
    assert kernel.score(scene.problem, white, share).item() == pytest.approx(np.log(mixture / outlier).sum(), abs=0.05)


@pytest.mark.parametrize('even_at', [2.0, 3.5])
@pytest.mark.parametrize('kind', scenes.KINDS)
def test_stated_noise_is_scored_by_the_same_densities_over_the_one_of_even_odds(kind: str, even_at: float) -> None:
    """The ratio of two densities of one distribution, hence without any constant."""
    scene, pose, white = at_a_pose(kind)
    inlier, _ = densities(scene, pose)
    kernel, share = Kernel(even_at), torch.full((1, 1), SHARE).double()
    three = np.zeros(300, bool) if kind == 'rgb' else scene.problem.ranges_BN[0].numpy() > 0
    at = {d: multivariate_t.pdf([even_at] + [0] * (d - 1), shape=np.eye(d), df=8 - d) for d in (2, 3)}
    square = white.square_BKN[0, 0].numpy()
    ratio = np.array([multivariate_t.pdf([np.sqrt(s)] + [0] * (1 + z), shape=np.eye(2 + z), df=6 - z) / at[2 + z]
                      for s, z in zip(square, three.astype(int))])
    np.testing.assert_allclose(kernel.expectation(scene.problem, white, share)[0][0, 0].numpy(), ratio / (1 + ratio), rtol=1e-4)
    assert kernel.score(scene.problem, white, share).item() == pytest.approx(np.log1p(ratio).sum(), rel=1e-4)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('kind', scenes.KINDS)
def test_weights_are_the_derivative_of_the_score(kernel: Kernel, kind: str) -> None:
    """Half the weighted squares fall as the score rises: weight = -2 d score / d square, by automatic differentiation in float64."""
    scene, _, white = at_a_pose(kind)
    square = white.square_BKN.double().requires_grad_()
    exact = Whitened(square, white.across_BKN.double(), None if white.along_BKN is None else white.along_BKN.double())
    share = torch.full((1, 1), SHARE).double()
    kernel.score(scene.problem, exact, share).sum().backward()
    _, weight = kernel.expectation(scene.problem, exact, share)
    torch.testing.assert_close(weight.detach(), -2 * square.grad, rtol=1e-6, atol=1e-9)
    assert (weight > 0).all() and weight.max() > 10 * weight.min()


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('kind', scenes.KINDS)
def test_the_gradient_of_the_normal_equations_is_that_of_the_score(kernel: Kernel, kind: str) -> None:
    """Of a score written out here from the pose, by automatic differentiation. Bearings are exact: their share of the noise, which
    depends on the range, is held in each step. Weights are of float32, which leaves 1e-4 of the sum of the terms' sizes."""
    scene, pose, _ = at_a_pose(kind, 2)
    problem = replace(scene.problem, angles_BN=torch.full((1, 300), 1e-9, dtype=torch.float64))
    share = torch.full((1, 1), SHARE).double()
    values = {name: value[0] for name, value in scenes.tensors(problem).items()}
    depth = values['ranges_BN'] > 0 if kind != 'rgb' else torch.zeros(300, dtype=torch.bool)
    variance = (FACTOR * values['scales_BN']) ** 2
    spread, freedom = problem.spread_B[0], 6.0 - depth.double()

    def score(tangent: torch.Tensor) -> torch.Tensor:
        """Of each correspondence."""
        at = se3.retract(torch.from_numpy(pose), tangent)
        seen = values['points_BN3'] @ at[:3, :3].T + at[:3, 3]
        along = (seen * values['bearings_BN3']).sum(1)
        square = (seen.square().sum(1) - along.square()) / variance
        density = spread.square() / variance
        if kind != 'rgb':
            along_variance = variance + values['range_noise_BN'] ** 2
            square = square + torch.where(depth, (along - values['ranges_BN']).square() / along_variance, 0.0)
            density = density * torch.where(depth, spread / along_variance.sqrt(), 1.0)
        if kernel.even_at is None:
            odds = SHARE / (1 - SHARE) * density * (1 + square / freedom) ** -4
        else:
            odds = ((freedom + kernel.even_at ** 2) / (freedom + square)) ** 4
        return (1 + odds).log()

    expected = torch.autograd.functional.jacobian(score, torch.zeros(6, dtype=torch.float64), vectorize=True)
    vectors = problem.vectors(torch.from_numpy(pose)[None, None])
    white = problem.whitened(problem.residuals(vectors), torch.full((1, 1), FACTOR).double())
    _, weight = kernel.expectation(problem, white, share)
    gradient, _ = normal_equations(problem, white, weight, vectors)
    size = expected.abs().sum(0)
    assert ((gradient[0, 0] + expected.sum(0)).abs() < 1e-4 * size).all() and (expected.sum(0).abs() > 1e-2 * size).any()


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('kind', scenes.KINDS)
def test_what_is_not_seen_has_no_weight_and_changes_no_score(kernel: Kernel, kind: str) -> None:
    scene, pose, white = at_a_pose(kind)
    usable = torch.rand(1, 300, generator=torch.Generator().manual_seed(3)) < 0.5
    problem = replace(scene.problem, usable_BN=usable)
    share = torch.full((1, 1), SHARE).double()
    part = problem.whitened(problem.residuals(problem.vectors(torch.from_numpy(pose)[None, None])), torch.full((1, 1), FACTOR).double())
    inlier, weight = kernel.expectation(problem, part, share)
    assert (inlier[0][~usable] == 0).all() and (weight[0][~usable] == 0).all() and (inlier[0][usable] > 0).all()
    each = (1 + kernel.odds(problem, white, share)[0]).log()[0][usable].sum().item()
    constant = 0.0 if kernel.even_at is not None else usable.sum().item() * np.log(1 - SHARE)
    assert kernel.score(problem, part, share).item() == pytest.approx(each + constant, rel=1e-3)


def test_soft_inliers() -> None:
    weights = soft_inliers(torch.tensor([0.0, 2.5, 5.0, torch.inf], dtype=torch.float64), 2.5)
    # 1 - sigmoid(5 (r / t - 1)) by hand: 1 / (1 + e^-5), 1/2, 1 / (1 + e^5), 0
    torch.testing.assert_close(weights, torch.tensor([1 / (1 + np.exp(-5)), 0.5, 1 / (1 + np.exp(5)), 0.0], dtype=torch.float64))
