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
MIN_VARIANCE = 1e-16  # of a stated noise [m^2, rad^2]
PRODUCTS = 60 + 12  # of the entries of a row with each other, and with its constant
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
        """Usable, with finite numbers: no sum of them is finite where one of them is not."""
        sums = self.points_BN3.sum(-1) + self.bearings_BN3.sum(-1) + self.scales_BN + self.angles_BN
        return self.usable_BN & sums.isfinite()

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
        points_BN3 = self.points_BN3.detach()  # around any centre the residuals are the same: it has no part in their derivative
        return torch.where(self.known_BN[..., None], points_BN3, torch.nan).nanmedian(1).values.nan_to_num(0)

    @cached_property
    def spread_B(self) -> Tensor:
        """How far the points lie apart [m], as the standard deviation along an axis: what the residual of an outlier is like."""
        square_BN = (self.points_BN3 - self.centre_B3[:, None]).square().sum(-1)
        median_B = torch.where(self.known_BN, square_BN, torch.nan).nanmedian(1).values.nan_to_num(1)
        return (median_B / 2.366).clamp(min=1e-12).sqrt()  # median of chi-square with three degrees of freedom

    @cached_property
    def spread_square_B1(self) -> Tensor:
        """Its square (B, 1) [m^2]."""
        return self.spread_B[:, None].square()

    @cached_property
    def unit_scale_B1(self) -> Tensor:
        """Factor that makes the median scale as large as the spread of the points."""
        median_B = torch.where(self.known_BN, self.scales_BN, torch.nan).nanmedian(1).values.nan_to_num(1)
        return (self.spread_B / median_B.clamp(min=1e-12))[:, None]

    @cached_property
    def homogeneous_B4N(self) -> Tensor:
        """Points around the centre, and ones; zeros and a one for what is not known."""
        local = self.points_BN3 - self.centre_B3[:, None]
        local = torch.where(self.known_BN[..., None], local, torch.zeros_like(local))
        return torch.cat([local, torch.ones_like(local[..., :1])], -1).mT.contiguous()

    @cached_property
    def known_bearings_BN3(self) -> Tensor:
        """Zeros for what is not known."""
        return torch.where(self.known_BN[..., None], self.bearings_BN3, torch.zeros_like(self.bearings_BN3))

    @cached_property
    def rows_B13M(self) -> tuple[Tensor, Tensor]:
        """residual = pose vector @ rows: across the ray (B, 13, 2 N), the first directions first, and along it (B, 13, N)."""
        rows = self._rows(self.points_BN3.dtype)
        return rows[..., :-len(self.known_BN[0])], rows[..., -len(self.known_BN[0]):]

    def _rows(self, dtype: torch.dtype) -> Tensor:
        """(B, 13, 3 N): both directions across the ray, then along it."""
        bearings = self.known_bearings_BN3.to(dtype)
        axes_B3AN = torch.stack([*across(bearings), bearings], 1).permute(0, 3, 1, 2).contiguous()
        rows = axes_B3AN[:, :, None] * self.homogeneous_B4N.to(dtype)[:, None, :, None]
        constant = torch.zeros_like(axes_B3AN[:, :1])
        if self.origins_BN3 is not None:
            constant = -(axes_B3AN * self.origins_BN3.to(dtype).mT[:, :, None]).sum(1, keepdim=True)
        if self.ranges_BN is not None:
            constant = torch.cat([constant[:, :, :2], constant[:, :, 2:] - self.measured_ranges_BN.to(dtype)[:, None, None]], 2)
        return torch.cat([rows.flatten(1, 2), constant], 1).flatten(2)

    @cached_property
    def axes_B6N(self) -> Tensor:
        """Products of the entries of each bearing with itself, one triangle of the matrix."""
        first, second = torch.triu_indices(3, 3, device=self.points_BN3.device)
        bearings = self.known_bearings_BN3.mT
        return bearings.index_select(1, first) * bearings.index_select(1, second)

    @cached_property
    def products_across_BNP(self) -> Tensor:
        """weights @ products = what the sum of outer products of the rows across the ray consists of; `layout` says where.

        A row is an axis times a homogeneous point, hence 6 products of axes times 10 of points; and 12 with the constant of the row, where
        it has one: P is 60 or PRODUCTS.
        """
        first, second = torch.triu_indices(3, 3, device=self.points_BN3.device)
        axes = ((first == second)[:, None] & self.known_BN[:, None]).double() - self.axes_B6N
        if self.origins_BN3 is None:
            return self._products(axes, None)
        bearings, origins = self.known_bearings_BN3.mT, self.origins_BN3.mT
        return self._products(axes, bearings * (bearings * origins).sum(1, keepdim=True) - origins)

    @cached_property
    def products_along_BNP(self) -> Tensor:
        """The same for the rows along the ray."""
        bearings, ranges = self.known_bearings_BN3.mT, self.measured_ranges_BN[:, None]
        if self.origins_BN3 is not None:
            ranges = ranges + (bearings * self.origins_BN3.mT).sum(1, keepdim=True)
        return self._products(self.axes_B6N, -bearings * ranges)

    def _products(self, axes_B6N: Tensor, constant_B3N: Tensor | None) -> Tensor:
        points = self.homogeneous_B4N
        first, second = torch.triu_indices(4, 4, device=points.device)
        quadratic = (axes_B6N[:, :, None] * (points.index_select(1, first) * points.index_select(1, second))[:, None]).flatten(1, 2)
        if constant_B3N is None:
            return quadratic.mT
        return torch.cat([quadratic, (constant_B3N[:, :, None] * points[:, None]).flatten(1, 2)], 1).mT

    @cached_property
    def layout(self) -> Tensor:
        """(12, 13) which of the sums of products is that of two entries of the rows; the last column: of an entry and the constant."""
        entry = torch.arange(12, device=self.points_BN3.device)
        axis, point = entry // 4, entry % 4
        pairs = 10 * _pair(axis[:, None], axis, 3) + _pair(point[:, None], point, 4)
        return torch.cat([pairs, 60 + entry[:, None]], 1)

    @cached_property
    def measured_ranges_BN(self) -> Tensor:
        """The ranges, 0 where there are none."""
        return torch.where(self.measured_BN, self.ranges_BN, torch.zeros_like(self.ranges_BN))

    @cached_property
    def single(self) -> Single:
        """What weights and scores need, in float32: they decide how much a residual counts, not where the optimum is."""
        ranges = variance = None
        freedom: Tensor | float = 2.0 * SHAPE - 2
        if self.ranges_BN is not None:
            ranges = self.measured_ranges_BN.float()[:, None]
            noise = self.range_noise_BN.square().clamp(min=MIN_VARIANCE)
            variance = torch.where(self.measured_BN, noise, torch.inf).float()[:, None]
            freedom = freedom - self.measured_BN.float()[:, None]
        # Zero information times a variance that is no number would be none either, and spoil the sums over all.
        scale_square, angle_square = (torch.where(self.known_BN, noise, 1.0).square().clamp(min=MIN_VARIANCE).float()[:, None]
                                      for noise in (self.scales_BN, self.angles_BN))
        return Single(self._rows(torch.float32), scale_square, angle_square, freedom, ranges, variance)

    @cached_property
    def generators(self) -> Tensor:
        """(13, 78): pose vector @ generators is its derivative (13, 6) by a left perturbation (rotation, translation)."""
        options = {'dtype': self.points_BN3.dtype, 'device': self.points_BN3.device}
        turn = se3.skew(torch.eye(3, **options)).permute(2, 1, 0)  # from row b to row a by the rotation about axis j: (b, a, j)
        columns = torch.eye(4, **options)
        turned = (turn[:, None, :, None] * columns[:, None, :, None]).reshape(12, 12, 3)  # from (b, c) to (a, d)
        shifted = (torch.eye(3, **options)[:, None] * columns[3][:, None]).reshape(12, 3)
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
        if count not in self.parts:
            self.parts[count] = self._part(torch.arange(count, device=self.points_BN3.device) * total // count)
        return self.parts[count]

    def _part(self, chosen: Tensor) -> Correspondences:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        part = Correspondences(**{name: None if value is None else value[:, chosen] for name, value in values.items()})
        # What all had to compute in any case is not computed again.
        part.__dict__.update(centre_B3=self.centre_B3, spread_B=self.spread_B, generators=self.generators, layout=self.layout,
                             unit_scale_B1=self.unit_scale_B1, known_BN=self.known_BN[:, chosen], measured_BN=self.measured_BN[:, chosen],
                             homogeneous_B4N=self.homogeneous_B4N[..., chosen], single=self.single.part(chosen))
        return part

    def vectors(self, poses_BK44: Tensor) -> Tensor:
        """Pose vectors (B, K, 13) of rig_from_map."""
        rotation = poses_BK44[..., :3, :3]
        translation = poses_BK44[..., :3, 3:] + rotation @ self.centre_B3[:, None, :, None]
        flat = torch.cat([rotation, translation], -1).flatten(-2)
        return torch.cat([flat, torch.ones_like(flat[..., :1])], -1)

    def moves(self, vectors_BK13: Tensor) -> Tensor:
        """Derivative (..., 13, 6) of pose vectors by a left perturbation."""
        return (vectors_BK13 @ self.generators).view(*vectors_BK13.shape, 6)

    def moved(self, vectors_BK13: Tensor, tangent_BK6: Tensor) -> Tensor:
        """Pose vectors after a left perturbation, by a rotation of 2 atan(|omega| / 2) as in se3.cayley, and by so much less of a shift."""
        flat, tangent = vectors_BK13.flatten(0, 1), tangent_BK6.flatten(0, 1)
        half = tangent[:, :3] / 2.0
        shrunk = (half * half).sum(1, keepdim=True) + 1.0
        tangent = (tangent / shrunk)[..., None]
        first = torch.bmm(self.moves(flat), tangent)[..., 0]
        second = torch.bmm(self.moves(first), tangent)[..., 0]
        return (flat + first + second * shrunk / 2.0).view_as(vectors_BK13)

    def poses(self, vectors_BK13: Tensor) -> Tensor:
        """The inverse of vectors()."""
        matrix = vectors_BK13[..., :12].unflatten(-1, (3, 4))
        rotation = matrix[..., :3]
        translation = matrix[..., 3:] - rotation @ self.centre_B3[:, None, :, None]
        return se3.from_rotation_translation(rotation, translation[..., 0])

    def residuals(self, vectors_BK13: Tensor) -> Residuals:
        """Of all correspondences at all poses, float32."""
        single = self.single
        first, second, along = torch.bmm(vectors_BK13.float(), single.rows_B13M).chunk(3, -1)
        ranges = along if single.ranges is None else along + single.ranges
        # The rows of what is not known are zero. A comparison, and a choice by it, would take four times as long on a CPU.
        seen = (ranges - MIN_RANGE).relu().sign()
        blur = ranges * ranges * single.angle_square
        return Residuals(first, second, torch.addcmul(first * first, second, second), along, ranges, seen, blur)

    def whitened(self, residuals: Residuals, scale_BK: Tensor) -> Whitened:
        """The residuals over their noise; scale_BK: factor on the noise of the points."""
        single = self.single
        variance = (scale_BK * scale_BK).float()[..., None] * single.scale_square
        across = residuals.seen_BKN / (variance + residuals.blur_BKN)
        square = residuals.across_BKN * across
        if single.ranges is None:
            return Whitened(square, across, None)
        along = residuals.seen_BKN / (variance + single.range_variance)
        return Whitened(torch.addcmul(square, residuals.along_BKN * along, residuals.along_BKN), across, along)


@dataclass(frozen=True)
class Single:
    """rows_B13M: across the ray and along it, as in Correspondences, (B, 13, 3 N); the rest (B, 1, N). freedom: degrees of freedom of the
    noise, a number where all are equal. range_variance: infinite where there is no depth."""

    rows_B13M: Tensor
    scale_square: Tensor
    angle_square: Tensor
    freedom: Tensor | float
    ranges: Tensor | None
    range_variance: Tensor | None

    def part(self, chosen: Tensor) -> Single:
        """Of some correspondences."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {name: value[..., chosen] if isinstance(value, Tensor) else value for name, value in values.items()}
        rows = self.rows_B13M.unflatten(-1, (3, -1))[..., chosen].flatten(-2)
        return Single(**{**kept, 'rows_B13M': rows})


@dataclass(frozen=True)
class Residuals:
    """first_BKN, second_BKN: from the ray in the two directions across it [m]; across_BKN: their squared sum [m^2]. along_BKN: from the
    measured range [m]; range_BKN: along the ray [m]. seen_BKN: one for what is known and in front of the camera, else zero. blur_BKN:
    variance across the ray that the noise of the bearing makes at that range [m^2]."""

    first_BKN: Tensor
    second_BKN: Tensor
    across_BKN: Tensor
    along_BKN: Tensor
    range_BKN: Tensor
    seen_BKN: Tensor
    blur_BKN: Tensor


@dataclass(frozen=True)
class Whitened:
    """square_BKN: squared residuals over their variances. across_BKN, along_BKN: information across and along the ray [1/m^2], 0 where
    nothing is seen or measured; along: None without any depth."""

    square_BKN: Tensor
    across_BKN: Tensor
    along_BKN: Tensor | None


def _pair(first: Tensor, second: Tensor, size: int) -> Tensor:
    """Where torch.triu_indices(size, size) has the pair, or the pair turned round."""
    low = torch.minimum(first, second)
    return low * (2 * size - low - 1) // 2 + torch.maximum(first, second)


def across(bearings: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors (..., 3) across each bearing (Duff et al. 2017: no branch, no singular direction)."""
    x, y, z = bearings.unbind(-1)
    sign = torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z))
    a = -1 / (sign + z)
    b = x * y * a
    return torch.stack([1 + sign * x * x * a, sign * b, -sign * x], -1), torch.stack([b, sign + y * y * a, -y], -1)


def stacked(one: Correspondences, one_weights: Tensor, two: Correspondences, two_weights: Tensor) -> tuple[Correspondences, Tensor]:
    """Two batches of problems as one: the shorter one is filled up with correspondences that are not usable, depth with none."""
    length = max(one_weights.shape[1], two_weights.shape[1])

    def pad(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, 0) * (values.dim() - 2) + (0, length - values.shape[1]))

    def both(name: str) -> Tensor | None:
        first, second = getattr(one, name), getattr(two, name)
        if first is None and second is None:
            return None
        first = torch.zeros_like(one.scales_BN) if first is None else first
        second = torch.zeros_like(two.scales_BN) if second is None else second
        return torch.cat([pad(first), pad(second)])

    names = ('points_BN3', 'bearings_BN3', 'scales_BN', 'angles_BN', 'usable_BN', 'ranges_BN', 'range_noise_BN')
    return Correspondences(**{name: both(name) for name in names}), torch.cat([pad(one_weights), pad(two_weights)])
