"""Correspondences of one frame, whatever saw them: one kind of problem for RGB, RGB-D, frames with holes in the depth, and rigs.

A correspondence is a point of the map and the ray that it was seen along; with depth also how far along. Its residual is in metres: the
distance of the transformed point from the ray in two directions across it, and the difference to the measured range along it. Across the
ray it is linear in the noise of the point, hence without the bias of a reprojection error (which the noisy depth of the point divides).
It is linear in the entries of the pose too, so that one matrix product gives the residuals of every hypothesis, and one sum of outer
products the normal equations.

A pose vector (13) is [R | t] row by row, for points around the centre of the problem, and a one.
"""
from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from dsac_ros.geometry import se3

MIN_RANGE = 0.1  # metres: nearer points, and those behind the camera, are no inliers
SHAPE = 4  # half of the sum of degrees of freedom of the noise (ransac.kernel) and dimensions of the residual


@dataclass(frozen=True)
class Correspondences:
    """B problems of N correspondences each; float64, on one device.

    points_BN3: [m, map frame]. bearings_BN3: unit viewing rays [frame of the camera, or of the rig]. scales_BN: standard deviation of a
    point along an axis [m]. angles_BN: standard deviation of a bearing along an axis [rad]. usable_BN: bool.
    ranges_BN, range_noise_BN: measured distance along the bearing and its standard deviation [m], 0 where there is no depth; None: RGB.
    cameras_BN, origins_BN3: for a rig, which camera saw it (integers, ascending) and the centre of that camera [m, rig frame].
    """

    points_BN3: Tensor
    bearings_BN3: Tensor
    scales_BN: Tensor
    angles_BN: Tensor
    usable_BN: Tensor
    ranges_BN: Tensor | None = None
    range_noise_BN: Tensor | None = None
    cameras_BN: Tensor | None = None
    origins_BN3: Tensor | None = None

    @cached_property
    def known_BN(self) -> Tensor:
        """Usable, with finite numbers."""
        numbers = torch.cat([self.points_BN3, self.bearings_BN3, self.scales_BN[..., None], self.angles_BN[..., None]], -1)
        return self.usable_BN & numbers.isfinite().all(-1)

    @cached_property
    def count_B1(self) -> Tensor:
        """How many are known, at least one."""
        return self.known_BN.sum(1, keepdim=True).clamp(min=1).double()

    @cached_property
    def measured_BN(self) -> Tensor:
        """Which have depth, too."""
        if self.ranges_BN is None:
            return torch.zeros_like(self.known_BN)
        return self.known_BN & (self.ranges_BN > 0) & self.ranges_BN.isfinite() & self.range_noise_BN.isfinite()

    @cached_property
    def centre_B3(self) -> Tensor:
        """Median of the points: residuals are computed around it, so that a map far from its origin costs no digits."""
        return torch.where(self.known_BN[..., None], self.points_BN3, torch.nan).nanmedian(1).values.nan_to_num(0)

    @cached_property
    def spread_B(self) -> Tensor:
        """How far the points lie apart [m], as the standard deviation along an axis: what the residual of an outlier is like."""
        square_BN = (self.points_BN3 - self.centre_B3[:, None]).square().sum(-1)
        median_B = torch.where(self.known_BN, square_BN, torch.nan).nanmedian(1).values.nan_to_num(1)
        return (median_B / 2.366).clamp(min=1e-12).sqrt()  # median of chi-square with three degrees of freedom

    @cached_property
    def rows_B13M(self) -> tuple[Tensor, Tensor]:
        """residual = pose vector @ rows: across the ray (B, 13, 2 N), the first directions first, and along it (B, 13, N)."""
        local = self.points_BN3 - self.centre_B3[:, None]
        local = torch.where(self.known_BN[..., None], local, torch.zeros_like(local))
        homogeneous = torch.cat([local, torch.ones_like(local[..., :1])], -1).mT[:, None]  # (B, 1, 4, N)
        bearings = torch.where(self.known_BN[..., None], self.bearings_BN3, torch.zeros_like(self.bearings_BN3))
        axes = torch.stack([*across(bearings), bearings], 1).mT  # (B, axis, 3, N)
        rows = (axes[:, :, :, None] * homogeneous[:, :, None]).flatten(2, 3)
        constant = torch.zeros_like(rows[:, :, :1])
        if self.origins_BN3 is not None:
            constant = -(axes * self.origins_BN3.mT[:, None]).sum(2, keepdim=True)
        rows = torch.cat([rows, constant], 2)
        along = rows[:, 2]
        if self.ranges_BN is not None:
            along = torch.cat([along[:, :12], along[:, 12:] - self.measured_ranges_BN[:, None]], 1)
        return torch.cat([rows[:, 0], rows[:, 1]], -1), along

    @cached_property
    def measured_ranges_BN(self) -> Tensor:
        """The ranges, 0 where there are none."""
        return torch.where(self.measured_BN, self.ranges_BN, torch.zeros_like(self.ranges_BN))

    @cached_property
    def single(self) -> Single:
        """What weights and scores need, in float32: they decide how much a residual counts, not where the optimum is."""
        rows_across, rows_along = self.rows_B13M
        ranges = variance = None
        freedom: Tensor | float = 2.0 * SHAPE - 2
        if self.ranges_BN is not None:
            ranges = self.measured_ranges_BN.float()[:, None]
            variance = torch.where(self.measured_BN, self.range_noise_BN.square(), torch.ones_like(self.ranges_BN)).float()[:, None]
            freedom = freedom - self.measured_BN.float()[:, None]
        # Zero information times a variance that is no number would be none either, and spoil the sums over all.
        scale_square, angle_square = (torch.where(self.known_BN, noise.square(), torch.ones_like(noise)).float()[:, None]
                                      for noise in (self.scales_BN, self.angles_BN))
        return Single(rows_across.float(), rows_along.float(), scale_square, angle_square, freedom, ranges, variance)

    @cached_property
    def generators(self) -> Tensor:
        """(13, 78): pose vector @ generators is its derivative (13, 6) by a left perturbation (rotation, translation)."""
        options = {'dtype': self.points_BN3.dtype, 'device': self.points_BN3.device}
        turn = se3.skew(torch.eye(3, **options)).permute(2, 1, 0)  # from row b to row a by the rotation about axis j: (b, a, j)
        columns = torch.eye(4, **options)
        turned = torch.einsum('baj,cd->bcadj', turn, columns).reshape(12, 12, 3)
        shifted = torch.einsum('aj,d->adj', torch.eye(3, **options), columns[3]).reshape(12, 3)
        top = torch.cat([turned, torch.zeros_like(turned)], -1)
        bottom = torch.cat([torch.zeros_like(shifted), shifted], -1)
        return torch.nn.functional.pad(torch.cat([top, bottom[None]]), (0, 0, 0, 1)).flatten(1)

    @cached_property
    def parts(self) -> dict[int, Correspondences]:
        """The subsets that were asked for, since every round of hypotheses asks again."""
        return {}

    def subset(self, count: int) -> Correspondences:
        """At most `count` of the correspondences, evenly spread over their order, with the centre and the spread of all."""
        total = self.points_BN3.shape[1]
        if total <= count:
            return self
        if count in self.parts:
            return self.parts[count]
        chosen = torch.arange(count, device=self.points_BN3.device) * total // count
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        part = Correspondences(**{name: None if value is None else value[:, chosen] for name, value in values.items()})
        part.__dict__.update(centre_B3=self.centre_B3, spread_B=self.spread_B, generators=self.generators)
        self.parts[count] = part
        return part

    def vectors(self, poses_BK44: Tensor) -> Tensor:
        """Pose vectors (B, K, 13) of rig_from_map."""
        rotation = poses_BK44[..., :3, :3]
        translation = poses_BK44[..., :3, 3:] + rotation @ self.centre_B3[:, None, :, None]
        flat = torch.cat([rotation, translation], -1).flatten(-2)
        return torch.cat([flat, torch.ones_like(flat[..., :1])], -1)

    def poses(self, vectors_BK13: Tensor) -> Tensor:
        """The inverse of vectors()."""
        matrix = vectors_BK13[..., :12].unflatten(-1, (3, 4))
        rotation = matrix[..., :3]
        translation = matrix[..., 3:] - rotation @ self.centre_B3[:, None, :, None]
        return se3.from_rotation_translation(rotation, translation[..., 0])

    def residuals(self, vectors_BK13: Tensor) -> Residuals:
        """Of all correspondences at all poses, float32."""
        single, vectors = self.single, vectors_BK13.float()
        first, second = (vectors @ single.rows_across).chunk(2, -1)
        along = vectors @ single.rows_along
        ranges = along if single.ranges is None else along + single.ranges
        return Residuals(first * first + second * second, along, ranges, (ranges > MIN_RANGE) & self.known_BN[:, None])

    def whitened(self, residuals: Residuals, scale_BK: Tensor) -> Whitened:
        """The residuals over their noise; scale_BK: factor on the noise of the points."""
        single = self.single
        variance = scale_BK.square().float()[..., None] * single.scale_square
        across = residuals.seen_BKN / (variance + single.angle_square * residuals.range_BKN.square()).clamp(min=1e-18)
        square = residuals.across_BKN * across
        if single.ranges is None:
            return Whitened(square, across, None)
        along = (residuals.seen_BKN & self.measured_BN[:, None]) / (variance + single.range_variance).clamp(min=1e-18)
        return Whitened(square + residuals.along_BKN.square() * along, across, along)


@dataclass(frozen=True)
class Single:
    """Rows as in Correspondences; the rest (B, 1, N). freedom: degrees of freedom of the noise, a number where all are equal."""

    rows_across: Tensor
    rows_along: Tensor
    scale_square: Tensor
    angle_square: Tensor
    freedom: Tensor | float
    ranges: Tensor | None
    range_variance: Tensor | None


@dataclass(frozen=True)
class Residuals:
    """across_BKN: squared distance from the ray [m^2]. along_BKN: from the measured range [m]; range_BKN: along the ray [m]. seen_BKN: in
    front of the camera, and known."""

    across_BKN: Tensor
    along_BKN: Tensor
    range_BKN: Tensor
    seen_BKN: Tensor


@dataclass(frozen=True)
class Whitened:
    """square_BKN: squared residuals over their variances. across_BKN, along_BKN: information across and along the ray [1/m^2], 0 where
    nothing is seen or measured; along: None without any depth."""

    square_BKN: Tensor
    across_BKN: Tensor
    along_BKN: Tensor | None


def across(bearings: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors (..., 3) across each bearing (Duff et al. 2017: no branch, no singular direction)."""
    x, y, z = bearings.unbind(-1)
    sign = torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z))
    a = -1 / (sign + z)
    b = x * y * a
    return torch.stack([1 + sign * x * x * a, sign * b, -sign * x], -1), torch.stack([b, sign + y * y * a, -y], -1)


def stacked(one: Correspondences, one_weights: Tensor, two: Correspondences, two_weights: Tensor) -> tuple[Correspondences, Tensor]:
    """Two problems as one batch: the shorter one is filled up with correspondences that are not usable, depth with none."""
    length = max(one_weights.shape[1], two_weights.shape[1])

    def pad(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, 0) * (values.dim() - 2) + (0, length - values.shape[1]))

    def both(name: str) -> Tensor | None:
        first, second = getattr(one, name), getattr(two, name)
        if first is None and second is None:
            return None
        first = torch.zeros_like(second) if first is None else first
        second = torch.zeros_like(first) if second is None else second
        return torch.cat([pad(first), pad(second)])

    names = ('points_BN3', 'bearings_BN3', 'scales_BN', 'angles_BN', 'usable_BN', 'ranges_BN', 'range_noise_BN')
    return Correspondences(**{name: both(name) for name in names}), torch.cat([pad(one_weights), pad(two_weights)])
