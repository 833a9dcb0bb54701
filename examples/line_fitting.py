"""Differentiable RANSAC on its smallest problem: fit a line to a noisy image, end to end. A tutorial, to be read from top to bottom.

    python examples/line_fitting.py --out lines            (under a minute)
    python examples/line_fitting.py --out lines --seeds 0 1 2

Every patch of an image looks for the line and predicts one point of it, as every cell of a scene coordinate network predicts one point of
the map. Most patches see no line, and some see the arc of a circle, which is as good a piece of a line to somebody who looks through a
keyhole. RANSAC makes one line of the points: it draws pairs, lets all points vote for the lines through them, and refines the best.

Regression trains each point to be near the line. It never asks what RANSAC makes of the points: which of them are drawn together, which
outvote the right line, which errors cancel. End to end, the loss of the line itself is what is minimised (DSAC, Brachmann et al. 2017;
the toy problem is theirs). A choice has no derivative, but the expected loss of a random choice has: follow the steps 1 to 6 in
`ransac` and `end_to_end_loss`.

The script trains by regression, then goes on from there in two ways for equal time, and compares the lines on held-out images.
"""
from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from dsac_ros.endtoend.expectation import Expectation, expected_loss, followed_alpha, log_likelihood, over_draws
from dsac_ros.ransac.kernel import soft_inliers
from dsac_ros.ransac.sampling import draw_minimal_sets, mixed

SIZE, PATCH = 64, 8  # of an image and of the grid of patches [px]; x and y are measured from the centre of the image
HALF = SIZE / 2
INLIER_PX = 2.0  # a point at this distance has half a vote
UNIFORM_SHARE = 0.1  # of the draws, that no point is ever out of the game
HYPOTHESES, HYPOTHESES_TEST = 32, 64
BITS = 2.5  # of entropy in the choice between the 32 lines: about six of them have a say
EMPTY_LOSS = HALF  # of a pool without any line [px]: as bad as a line across nowhere
BATCH, TRAINING_IMAGES, HELD_OUT_IMAGES = 32, 2000, 500


# The images.

@dataclass(frozen=True)
class Images:
    """pixels_B1HW: a bright line with gaps, circles, noise. ends_B22: where the line leaves the image, x and y [px]."""

    pixels_B1HW: Tensor
    ends_B22: Tensor

    def some(self, count: int, generator: torch.Generator) -> Images:
        """A random batch, mirrored and turned at random: eight times the images for nothing."""
        index = torch.randint(len(self.pixels_B1HW), (count,), generator=generator)
        pixels, ends = self.pixels_B1HW[index], self.ends_B22[index]
        mirror_x, mirror_y, swap = torch.randint(2, (3,), generator=generator).tolist()
        if mirror_x:
            pixels, ends = pixels.flip(-1), ends * torch.tensor([-1.0, 1.0])
        if mirror_y:
            pixels, ends = pixels.flip(-2), ends * torch.tensor([1.0, -1.0])
        return Images(pixels.mT, ends.flip(-1)) if swap else Images(pixels, ends)


def grid(count: int, step: float) -> Tensor:
    """(count * count, 2) x and y of a centred grid, row by row."""
    places = (torch.arange(count) - (count - 1) / 2) * step
    return torch.stack(torch.meshgrid(places, places, indexing='xy'), -1).flatten(0, 1)


def draw_images(count: int, generator: torch.Generator) -> Images:
    """Each with one line, two gaps in it, and two circles of about the same look."""
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    def brush(distance: Tensor) -> Tensor:
        return uniform(0.5, 1.0, 1) * (1.5 - distance.abs()).clamp(0, 1)

    pixels = grid(SIZE, 1.0)
    angle, offset = uniform(0, math.pi), uniform(-20, 20)
    normal = torch.stack([angle.cos(), angle.sin()], -1)
    ink = brush(normal @ pixels.T - offset[:, None])
    for _ in range(2):
        ink = ink * (torch.cdist(uniform(-30, 30, 1, 2), pixels[None])[:, 0] > uniform(5, 11, 1))
    for _ in range(2):
        ink = torch.maximum(ink, brush(torch.cdist(uniform(-HALF, HALF, 1, 2), pixels[None])[:, 0] - uniform(4, 26, 1)))
    ink = ink + 0.2 * torch.randn(ink.shape, generator=generator)
    return Images(ink.view(count, 1, SIZE, SIZE), border_ends(normal, offset))


def border_ends(normal_B2: Tensor, offset_B: Tensor) -> Tensor:
    """(B, 2, 2) the points where the lines normal * x = offset cross the border of the image."""
    foot = normal_B2 * offset_B[:, None]
    along = torch.stack([-normal_B2[:, 1], normal_B2[:, 0]], -1)
    steps = (torch.tensor([[-HALF], [HALF]]) - foot[:, None]) / torch.where(along.abs() > 1e-6, along, 1e-6)[:, None]
    enter, leave = steps.amin(1).amax(-1), steps.amax(1).amin(-1)
    return foot[:, None] + torch.stack([enter, leave], -1)[..., None] * along[:, None]


# The network.

class PatchNetwork(nn.Module):
    """A point and a weight for each patch, from the 12 x 12 pixels around it: too few to tell a line from a large circle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 64, 12, PATCH, 2), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
                                    nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 3, 1))
        self.register_buffer('centres_N2', grid(SIZE // PATCH, PATCH))

    def forward(self, pixels_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, N, 2) [px] and log-weights (B, N)."""
        output_BN3 = self.layers(3 * (pixels_B1HW - 0.2)).flatten(2).mT
        return self.centres_N2 + PATCH * output_BN3[..., :2], output_BN3[..., 2] - 2


def regression_loss(network: PatchNetwork, images: Images) -> Tensor:
    """Likelihood of each point's distance to the nearest point of the line, Laplace with a predicted scale.

    The weight is one over the scale: a patch that says it does not know is drawn less. So regression has its weights, too.
    """
    points_BN2, log_weights_BN = network(images.pixels_B1HW)
    first, second = images.ends_B22.unbind(1)
    along = nn.functional.normalize(second - first, dim=-1)[:, None]
    from_first = network.centres_N2 - first[:, None]
    targets_BN2 = first[:, None] + (from_first * along).sum(-1, keepdim=True) * along
    error_BN = (points_BN2 - targets_BN2).norm(dim=-1)
    return (error_BN * log_weights_BN.exp() - 2 * log_weights_BN).mean()


# What RANSAC has to know of a line.

@dataclass(frozen=True)
class LineProblem:
    """Points (B, N, 2) with log-weights (B, N), and the line that they should give. A line is its unit normal and offset, (B, K, 3)."""

    points_BN2: Tensor
    log_weights_BN: Tensor
    ends_B22: Tensor

    def solve(self, sets_BKS: Tensor) -> tuple[Tensor, Tensor]:
        """The line through two points, and whether there is one: the points must not be the same."""
        images = torch.arange(len(sets_BKS))[:, None]
        first, second = (self.points_BN2[images, sets_BKS[..., place]] for place in (0, 1))
        along = second - first
        valid = along.detach().norm(dim=-1) > 1
        along = nn.functional.normalize(torch.where(valid[..., None], along, 1.0), dim=-1)
        normal = torch.stack([-along[..., 1], along[..., 0]], -1)
        return torch.cat([normal, (normal * first).sum(-1, keepdim=True)], -1), valid

    def votes(self, lines_BK3: Tensor) -> Tensor:
        """(B, K, N) how far each point is an inlier of each line, times its weight; the weights of an image sum to one."""
        near = soft_inliers(distances(lines_BK3, self.points_BN2), INLIER_PX)
        return near * self.log_weights_BN.softmax(-1)[:, None]

    def score(self, lines_BK3: Tensor) -> Tensor:
        return self.votes(lines_BK3).sum(-1)

    def refine(self, lines_BK3: Tensor) -> Tensor:
        """Least squares of the distances, each point with its vote: the longer axis of the cloud, in closed form."""
        share = self.votes(lines_BK3) + 1e-9
        share = share / share.sum(-1, keepdim=True)
        mean = share @ self.points_BN2
        dx, dy = (self.points_BN2[:, None] - mean[:, :, None]).unbind(-1)
        xx, yy, xy = ((share * product).sum(-1) for product in (dx * dx, dy * dy, dx * dy))
        angle = (torch.atan2(2 * xy, xx - yy + 1e-9) + math.pi) / 2  # of the normal
        normal = torch.stack([angle.cos(), angle.sin()], -1)
        return torch.cat([normal, (normal * mean).sum(-1, keepdim=True)], -1)

    def loss(self, lines_BK3: Tensor) -> Tensor:
        """(B, K) mean distance [px] of the true ends from the line."""
        return distances(lines_BK3, self.ends_B22).mean(-1)


def distances(lines_BK3: Tensor, points_BN2: Tensor) -> Tensor:
    """(B, K, N) [px]."""
    return (lines_BK3[..., :2] @ points_BN2.mT - lines_BK3[..., 2:]).abs()


# Differentiable RANSAC. Nothing below knows of lines until the pictures are drawn.

class Problem(Protocol):
    """What the loop asks for: poses from three points, planes, epipolar geometry would do as well."""

    log_weights_BN: Tensor

    def solve(self, sets_BKS: Tensor) -> tuple[Tensor, Tensor]: ...
    def score(self, hypotheses_BK: Tensor) -> Tensor: ...
    def refine(self, hypotheses_BK: Tensor) -> Tensor: ...
    def loss(self, hypotheses_BK: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Pool:
    """Hypotheses of each image (B, K, ...): scores, refined ones, their task losses, and the log-likelihood of having been drawn."""

    scores_BK: Tensor
    valid_BK: Tensor
    refined_BK: Tensor
    losses_BK: Tensor
    log_likelihoods_BK: Tensor

    def best(self) -> Tensor:
        """(B, 1) index of the hypothesis that a RANSAC in use would choose."""
        return torch.where(self.valid_BK, self.scores_BK, -torch.inf).argmax(-1, keepdim=True)


def ransac(problem: Problem, draws_BKS: Tensor) -> Pool:
    """RANSAC as it always was, except that nothing is thrown away. `draws_BKS`: random numbers in [0, 1), S for each minimal set."""
    # 1. Draw minimal sets by the weights. Indices have no derivative, but the probability of having drawn them has.
    probabilities_BN = mixed(problem.log_weights_BN.softmax(-1), UNIFORM_SHARE)
    sets_BKS = draw_minimal_sets(probabilities_BN.detach(), draws_BKS)
    # 2. A hypothesis of each set, 3. its score, 4. its refinement and task loss: all differentiable by the predictions.
    hypotheses, valid_BK = problem.solve(sets_BKS)
    refined = problem.refine(hypotheses)
    return Pool(problem.score(hypotheses), valid_BK, refined, problem.loss(refined), log_likelihood(probabilities_BN.log(), sets_BKS))


def end_to_end_loss(pool: Pool, alpha: Tensor) -> tuple[Tensor, Expectation]:
    # 5. Choose by chance, probability softmax(alpha * score), and expect: sum of p * loss. Its gradient moves the predictions in two
    #    ways, to make likely lines better and to make better lines likely (DSAC).
    expectation = expected_loss(pool.scores_BK, pool.losses_BK, pool.valid_BK, alpha, EMPTY_LOSS)
    # 6. The expectation is over what was drawn only. Sets whose presence lowered it should be drawn more often (NG-RANSAC).
    return over_draws(expectation, pool.log_likelihoods_BK).mean(), expectation


# Training.

@dataclass
class Run:
    """A network on its way: what it minimises, and the seconds of CPU time that it has had, whatever else the machine does."""

    network: PatchNetwork
    end_to_end: bool
    generator: torch.Generator
    learning_rate: float
    spent: float = 0.0
    steps: int = 0
    alpha: Tensor = field(default_factory=lambda: torch.tensor(10.0))

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.Adam(self.network.parameters())

    def step(self, images: Images, seconds: float) -> None:
        begun = time.process_time()
        batch = images.some(BATCH, self.generator)
        loss = self.end_to_end_step(batch) if self.end_to_end else regression_loss(self.network, batch)
        for group in self.optimiser.param_groups:  # up at once, and down to zero in the second half of the time
            group['lr'] = self.learning_rate * max(0.0, min(1.0, (self.steps + 1) / 20, 2 - 2 * self.spent / seconds))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.steps += 1
        self.spent += time.process_time() - begun

    def end_to_end_step(self, batch: Images) -> Tensor:
        problem = LineProblem(*self.network(batch.pixels_B1HW), batch.ends_B22)
        pool = ransac(problem, torch.rand(BATCH, HYPOTHESES, 2, generator=self.generator))
        # Were alpha too large, only the best line would be heard; too small, all alike. Scores change as the network learns: follow them.
        self.alpha = followed_alpha(self.alpha, pool.scores_BK, pool.valid_BK, BITS, 0.1)
        return end_to_end_loss(pool, self.alpha)[0]


def train(runs: list[Run], images: Images, seconds: float) -> None:
    """Each for so many seconds, in turns, so that what slows one slows all."""
    while (run := min(runs, key=lambda run: run.spent)).spent < seconds:
        run.step(images, seconds)


@torch.no_grad()
def choose(network: PatchNetwork, images: Images) -> tuple[LineProblem, Pool]:
    """RANSAC in use, with the same random numbers for all."""
    problem = LineProblem(*network(images.pixels_B1HW), images.ends_B22)
    draws = torch.rand(len(images.ends_B22), HYPOTHESES_TEST, 2, generator=torch.Generator().manual_seed(0))
    return problem, ransac(problem, draws)


def held_out_losses(network: PatchNetwork, images: Images) -> Tensor:
    """(B,) [px] of the chosen lines."""
    pool = choose(network, images)[1]
    return pool.losses_BK.gather(1, pool.best())[:, 0]


def compare(seed: int, seconds: float) -> dict[str, PatchNetwork]:
    """Regression for `seconds`, then regression or end to end for as many again."""
    torch.manual_seed(seed)
    images = draw_images(TRAINING_IMAGES, torch.Generator().manual_seed(seed))
    start = Run(PatchNetwork(), False, torch.Generator().manual_seed(seed), 3e-3)
    train([start], images, seconds)
    runs = [Run(copy.deepcopy(start.network), end_to_end, torch.Generator().manual_seed(seed + 1), rate)
            for end_to_end, rate in ((False, 3e-3), (True, 1e-3))]
    train(runs, images, seconds)
    print(f'seed {seed}: {start.steps} steps of regression, then {runs[0].steps} more or {runs[1].steps} end to end', flush=True)
    return {'start': start.network, 'regression': runs[0].network, 'end to end': runs[1].network}


# Figures.

def picture(networks: dict[str, PatchNetwork], images: Images, path: Path) -> None:
    """A row for each image: what is seen, then of each network the points by weight, the hypotheses faintly, the line chosen, the truth."""
    rows, columns = len(images.ends_B22), 1 + len(networks)
    figure = Figure(figsize=(2.6 * columns, 2.75 * rows), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    extent = (-HALF, HALF, HALF, -HALF)
    for row in range(rows):
        axes[row, 0].imshow(images.pixels_B1HW[row, 0].numpy(), cmap='gray', vmin=-0.2, vmax=1.2, extent=extent)
        axes[row, 0].set_title('image', fontsize=9)
    for column, (name, network) in enumerate(networks.items(), 1):
        problem, pool = choose(network, images)
        best = pool.best()[:, 0]
        for row in range(rows):
            panel = axes[row, column]
            panel.imshow(images.pixels_B1HW[row, 0].numpy(), cmap='gray', vmin=-0.2, vmax=4.0, extent=extent)
            lines = pool.refined_BK[row][pool.valid_BK[row]]
            for end in border_ends(lines[:, :2], lines[:, 2]):
                panel.plot(*end.T.numpy(), color='white', linewidth=0.6, alpha=0.15)
            chosen = pool.refined_BK[row, best[row]]
            panel.plot(*border_ends(chosen[None, :2], chosen[None, 2])[0].T.numpy(), color='#56B4E9', linewidth=2.5)
            panel.plot(*images.ends_B22[row].T.numpy(), color='#CC79A7', linewidth=1.5, linestyle='--')
            weights = problem.log_weights_BN[row].softmax(-1)
            order = weights.argsort()
            panel.scatter(*problem.points_BN2[row, order].T.numpy(), c=weights[order].numpy(), cmap='autumn', s=10, vmin=0, zorder=3)
            panel.set_title(f'{name}: {float(pool.losses_BK[row, best[row]]):.1f} px', fontsize=9)
    for panel in axes.flat:
        panel.set(xlim=(-HALF, HALF), ylim=(HALF, -HALF), xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Prints a table, draws OUT/line_fitting.png, and returns the held-out mean losses [px] over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder for the picture')
    parser.add_argument('--seconds', type=float, default=10.0, help='CPU time of each of the three trainings of a seed')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the network is too small for more, and time is counted for all threads
    begun = time.perf_counter()
    held_out = draw_images(HELD_OUT_IMAGES, torch.Generator().manual_seed(10**6))
    totals: dict[str, float] = {}
    for seed in options.seeds:
        networks = compare(seed, options.seconds)
        losses = {name: held_out_losses(network, held_out) for name, network in networks.items()}
        for name, loss in losses.items():
            print(f'  {name:<11} mean {loss.mean():6.2f} px   median {loss.median():5.2f} px   '
                  f'within 2 px {100 * (loss < 2).float().mean():5.1f} %')
            totals[name] = totals.get(name, 0.0) + float(loss.mean()) / len(options.seeds)
        print(f'  end to end {_change(losses["end to end"].mean(), losses["regression"].mean())} than regression for the same time')
    print(f'{len(options.seeds)} seeds: {_change(totals["end to end"], totals["regression"])}; {time.perf_counter() - begun:.0f} s')
    options.out.mkdir(parents=True, exist_ok=True)
    del networks['start']
    picture(networks, Images(held_out.pixels_B1HW[:4], held_out.ends_B22[:4]), options.out / 'line_fitting.png')
    return totals


def _change(loss: Tensor | float, reference: Tensor | float) -> str:
    percent = 100 * (1 - float(loss) / float(reference))
    return f'{abs(percent):.0f} % {"less" if percent > 0 else "more"} loss'


if __name__ == '__main__':
    main()
