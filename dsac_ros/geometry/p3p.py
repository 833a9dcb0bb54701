"""Three bearings and three points -> up to four camera poses, batched, without a data-dependent branch.

The adjoint method of Ding, Yang, Larsson, Olsson, Astrom: Revisiting the P3P Problem (CVPR 2023): a member of the pencil of two
quadrics in the three distances is degenerate, hence a pair of lines, found through its adjugate; each line meets a quadric in two points.
"""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.geometry.kabsch import between, components_first, finite_poses, triangle_frame

MIN_SINE = 1e-3  # of the angles of the triangle of points: below, the set is a sliver and its pose arbitrary
POLISH_STEPS = 1


def p3p(bearings_K33: Tensor, points_K33: Tensor) -> tuple[Tensor, Tensor]:
    """All poses that see three points along three bearings.

    Args:
        bearings_K33: (..., 3, 3) unit viewing rays, one a row, camera frame.
        points_K33: (..., 3, 3) points, one a row, map frame.
    Returns:
        camera_from_map (..., 4, 4, 4) and a mask of the valid ones (..., 4). Invalid slots hold finite numbers.
    """
    # Components first, (3, 3 points, ...), as in kabsch; and numbers with a point, since an integer costs a conversion at each use.
    bearings, points, squares, usable = _largest_side_last(components_first(bearings_K33), components_first(points_K33))
    cosines = (bearings * bearings.roll(-1, 1)).sum(0)
    m01, m12, m02 = cosines
    a01, a12, a02 = squares
    safe = torch.where(usable, a12, 1.0)
    a, b = a01 / safe, a02 / safe

    g = 2.0 * (m01 * m02 * m12 - 1.0)
    n01, n12, n02 = cosines * cosines - 1.0
    less_a, less_b = 1.0 - a, 1.0 - b
    s = _real_root(b * (n02 - b * n12), b * (g - (2.0 * a + b) * n12) - less_a * n02, a * (g - (a + 2.0 * b) * n12) - less_b * n01,
                   a * (n01 - a * n12))
    lines = _split_conic(s * less_b - a, -m02 * s, m12 * (a + b * s), 1.0 + s, -m01, less_a - b * s)

    # The member of the pencil that is "orthogonal" to the degenerate one meets its lines at a good angle whatever s is.
    v = torch.rsqrt(1.0 + s * s)
    u = -s * v
    quadric = (v * less_b - a * u, u + v, u * less_a - b * v, -m02 * v, m12 * (a * u + b * v), -m01 * u)
    ratios, real = _meet(lines, quadric)  # (3, 4, ...) proportional to (d0, d1, d2)
    _, d1, d2 = ratios
    both = d1 * d1 + d2 * d2
    size = both - 2.0 * d1 * d2 * m12
    valid = real & (ratios.amin(0) > 0.0) & (size > 1e-12 * both) & usable
    scale = (a12 / torch.where(valid, size, 1.0)).sqrt()
    depths = torch.where(valid, ratios * scale, 1.0)
    depths, residual = _polish(depths, cosines[:, None], squares[:, None])
    valid = valid & (depths.amin(0) > 0.0) & (residual < 1e-3 * a12)

    seen = depths * bearings[:, :, None]  # (3, 3 points, 4, ...)
    rotation = between(triangle_frame(points)[:, :, None], triangle_frame(seen))
    poses, valid = finite_poses(rotation, seen[:, 0] - (rotation * points[:, 0, None]).sum(1), valid)
    return poses.movedim(0, -3), valid.movedim(0, -1)


def _largest_side_last(bearings: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Permute cyclically so that the side between points 1 and 2 is the longest; squares of the sides 01, 12, 20; and which triangles are
    no slivers."""
    sides = points - points.roll(-1, 1)
    squares = (sides * sides).sum(0)
    longest, which = squares.max(0)
    order = torch.stack([which + 2, which, which + 1]) % 3
    index = order.expand(points.shape)
    across = torch.linalg.cross(sides[:, 0], sides[:, 1], dim=0)
    tiny = torch.finfo(points.dtype).tiny ** 0.25
    finite = (points + bearings).sum((0, 1)).isfinite()
    usable = ((across * across).sum(0) > (MIN_SINE * longest) ** 2) & (longest > tiny) & finite
    return bearings.gather(1, index), points.gather(1, index), squares.gather(0, order), usable


def _real_root(k3: Tensor, k2: Tensor, k1: Tensor, k0: Tensor) -> Tensor:
    """One real root of k3 s^3 + k2 s^2 + k1 s + k0, polished by two Newton steps."""
    eps = torch.finfo(k3.dtype).eps
    leading = torch.where(k3.abs() < eps, eps, k3)
    b, c, d = k2 / leading, k1 / leading, k0 / leading
    third = b / 3.0
    square = third * third
    p, q = c / 3.0 - square, third * (square - c / 2.0) + d / 2.0  # s = x - third: x^3 + 3 p x + 2 q = 0
    discriminant = q * q + p * p * p
    # The larger of the two cube roots, the other one from their product: no cancellation.
    big = q.abs() + discriminant.clamp(min=0.0).sqrt()
    big = -torch.copysign(big.pow(1 / 3), q)
    single = big - p / torch.where(big.abs() < eps, 1.0, big)
    radius = (-p).clamp(min=eps).sqrt()
    cosine = (-q / (radius * radius * radius)).clamp(-1.0, 1.0)
    triple = 2.0 * radius * (cosine.acos() / 3.0).cos()
    s = torch.where(discriminant >= 0.0, single, triple) - third
    twice = 2.0 * b
    for _ in range(2):
        slope = (3.0 * s + twice) * s + c
        step = (((s + b) * s + c) * s + d) / slope
        s = s - torch.where(slope.abs() < eps, 0.0, step)
    return s


def _split_conic(c00: Tensor, c01: Tensor, c02: Tensor, c11: Tensor, c12: Tensor, c22: Tensor) -> Tensor:
    """The two lines (2, 3, ...) of a degenerate conic over (d2, d0, d1)."""
    g01, g02, g12 = c01 * c22 - c02 * c12, c02 * c11 - c01 * c12, c00 * c12 - c01 * c02
    diagonal = torch.stack([c12 * c12 - c11 * c22, c02 * c02 - c00 * c22, c01 * c01 - c00 * c11])  # of the adjugate, negated
    g00, g11, g22 = diagonal
    adjugate = torch.stack([g00, g01, g02, g01, g11, g12, g02, g12, g22]).unflatten(0, (3, 3))
    largest, index = diagonal.max(0)
    row = adjugate.gather(0, index.expand(1, 3, *index.shape))[0]
    tiny = torch.finfo(c00.dtype).tiny ** 0.5
    v0, v1, v2 = row * torch.rsqrt(largest.clamp(min=tiny))
    # Rows of C + [v]x and C - [v]x are both multiples of one line; the first row may vanish, so take the longest.
    zero = torch.zeros_like(v0)
    cross = torch.stack([zero, -v2, v1, v2, zero, -v0, -v1, v0, zero])
    conic = torch.stack([c00, c01, c02, c01, c11, c12, c02, c12, c22])
    both = torch.stack([conic + cross, conic - cross]).unflatten(1, (3, 3))  # (2, 3 rows, 3, ...)
    longest = (both * both).sum(2).argmax(1)
    return both.gather(1, longest[:, None, None].expand(2, 1, 3, *index.shape))[:, 0]


def _meet(lines: Tensor, quadric: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Where each line meets the quadric q22 d2^2 + q00 d0^2 + q11 d1^2 + 2 q02 d0 d2 + 2 q12 d1 d2 + 2 q01 d0 d1 = 0.

    Returns (3, 4, ...) multiples of d0, d1, d2, of a sign that leaves no distance negative where that can be, and the mask of real ones.
    """
    q22, q00, q11, q02, q12, q01 = quadric
    l2, l0, l1 = lines.unbind(1)
    swap = l0.abs() > l2.abs()  # eliminate the distance with the larger coefficient: d_e = m d1 + n d_k
    le, lk = torch.where(swap, l0, l2), torch.where(swap, l2, l0)
    qee, qkk = torch.where(swap, q00, q22), torch.where(swap, q22, q00)
    qe1, qk1 = torch.where(swap, q01, q12), torch.where(swap, q12, q01)
    tiny = torch.finfo(le.dtype).tiny ** 0.5
    le = -torch.where(le.abs() < tiny, tiny, le)
    m, n = l1 / le, lk / le
    # A t^2 + 2 B t + C = 0 in t = d1 / d_k
    of_m, of_n = qee * m + qe1, qee * n + q02
    A = (of_m + qe1) * m + q11
    B = of_m * n + q02 * m + qk1
    C = (of_n + q02) * n + qkk
    discriminant = B * B - A * C
    real = discriminant >= 0.0
    t = -B - torch.copysign(discriminant.clamp(min=0.0).sqrt(), B)
    # Two roots as directions (d1 : d_k), free of division: t / A and C / t.
    d1, dk = torch.stack([t, C]), torch.stack([A, t])
    d1, dk = torch.where(dk < 0.0, -d1, d1), dk.abs()
    de = m * d1 + n * dk
    found = torch.stack([torch.where(swap, de, dk), d1, torch.where(swap, dk, de)])
    return found.flatten(1, 2), real.expand(2, *real.shape).flatten(0, 1)


def _polish(depths: Tensor, cosines: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Newton on the three law-of-cosines equations.

    Args:
        depths: (3, 4, ...). cosines, squares: (3, 1, ...) of the pairs 01, 12, 20.
    Returns:
        depths, and the largest residual (4, ...) of an equation, that of a square of a side.
    """
    for step in range(POLISH_STEPS + 1):
        following = depths.roll(-1, 0)
        by_first, by_second = depths - following * cosines, following - depths * cosines
        equations = depths * by_first + following * by_second - squares
        if step == POLISH_STEPS:
            break
        # Half of the Jacobian is [[p0, q0, 0], [0, p1, q1], [q2, 0, p2]]; by Cramer's rule, for all three depths alike.
        p, q = by_first, by_second
        last = p.roll(-2, 0)
        solved = equations * p.roll(-1, 0) * last - q * (equations.roll(-1, 0) * last - q.roll(-1, 0) * equations.roll(-2, 0))
        change = solved / (2.0 * (p.prod(0) + q.prod(0)))
        depths = depths - torch.where(change.isfinite(), change, 0.0)
    return depths, equations.abs().amax(0)
