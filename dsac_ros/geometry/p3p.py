"""Three bearings and three points -> up to four camera poses, batched, without a data-dependent branch.

The adjoint method of Ding, Yang, Larsson, Olsson, Astrom: Revisiting the P3P Problem (CVPR 2023): a member of the pencil of two
quadrics in the three distances is degenerate, hence a pair of lines, found through its adjugate; each line meets a quadric in two points.
"""
from __future__ import annotations

import torch
from torch import Tensor

from dsac_ros.geometry import se3
from dsac_ros.geometry.kabsch import triangle_frame

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
    bearings, points, usable = _largest_side_last(bearings_K33, points_K33)
    m12, m02, m01 = (bearings * bearings.roll(-1, -2)).sum(-1).roll(-1, -1).unbind(-1)
    a12, a02, a01 = (points - points.roll(-1, -2)).square().sum(-1).roll(-1, -1).unbind(-1)
    safe = torch.where(usable, a12, torch.ones_like(a12))
    a, b = a01 / safe, a02 / safe

    g = 2 * m01 * m02 * m12 - 2
    s12, s02, s01 = 1 - m12 * m12, m02 * m02 - 1, m01 * m01 - 1
    s = _real_root(b * (b * s12 + s02), (a - 1) * s02 + b * ((2 * a + b) * s12 + g), a * ((a + 2 * b) * s12 + g) + (b - 1) * s01,
                   a * (a * s12 + s01))
    lines = _split_conic(-a + s * (1 - b), -m02 * s, m12 * (a + b * s), 1 + s, -m01, 1 - a - b * s)

    # The member of the pencil that is "orthogonal" to the degenerate one meets its lines at a good angle whatever s is.
    norm = torch.rsqrt(1 + s * s)
    u, v = -s * norm, norm
    quadric = (-a * u + v * (1 - b), u + v, u * (1 - a) - b * v, -m02 * v, m12 * (a * u + b * v), -m01 * u)
    ratios, real = _meet(lines, quadric)  # (..., 4, 3) proportional to (d0, d1, d2)
    d0, d1, d2 = ratios.unbind(-1)
    size = d1 * d1 + d2 * d2 - 2 * d1 * d2 * m12[..., None]
    positive = (ratios > 0).all(-1) & (size > 1e-12 * (d1 * d1 + d2 * d2))
    valid = real & positive & usable[..., None]
    scale = (a12[..., None] / torch.where(valid, size, torch.ones_like(size))).sqrt()
    depths = torch.where(valid[..., None], ratios * scale[..., None], torch.ones_like(ratios))
    depths, residual = _polish(depths, torch.stack([m01, m02, m12], -1), torch.stack([a01, a02, a12], -1))
    valid = valid & (depths > 0).all(-1) & (residual < 1e-3)

    seen = depths[..., None] * bearings[..., None, :, :]  # (..., 4, 3 points, 3)
    rotation = triangle_frame(seen) @ triangle_frame(points)[..., None, :, :].mT
    translation = seen[..., 0, :] - (rotation @ points[..., None, 0, :, None])[..., 0]
    pose = se3.from_rotation_translation(rotation, translation)
    eye = torch.eye(4, dtype=pose.dtype, device=pose.device)
    valid = valid & pose.isfinite().all(-1).all(-1)
    return torch.where(valid[..., None, None], pose, eye), valid


def _largest_side_last(bearings: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Permute cyclically so that the side between points 1 and 2 is the longest; flag triangles that are no slivers."""
    sides = points - points.roll(-1, -2)  # 01, 12, 20
    square = sides.square().sum(-1)
    shift = square.argmax(-1) - 1
    index = (torch.arange(3, device=points.device) + shift[..., None]) % 3
    index = index[..., None].expand(points.shape)
    area = torch.linalg.cross(sides[..., 0, :], sides[..., 1, :]).norm(dim=-1)
    longest = square.amax(-1)
    tiny = torch.finfo(points.dtype).tiny ** 0.5
    usable = (area > MIN_SINE * longest) & (longest > tiny) & points.isfinite().all(-1).all(-1) & bearings.isfinite().all(-1).all(-1)
    return bearings.gather(-2, index), points.gather(-2, index), usable


def _real_root(k3: Tensor, k2: Tensor, k1: Tensor, k0: Tensor) -> Tensor:
    """One real root of k3 s^3 + k2 s^2 + k1 s + k0, polished by two Newton steps."""
    eps = torch.finfo(k3.dtype).eps
    inverse = 1 / torch.where(k3.abs() < eps, torch.full_like(k3, eps), k3)
    b, c, d = k2 * inverse, k1 * inverse, k0 * inverse
    third = b / 3
    p, q = (c - b * third) / 3, (third * (2 * third * third - c) + d) / 2  # s = x - third: x^3 + 3 p x + 2 q = 0
    discriminant = q * q + p * p * p
    # The larger of the two cube roots, the other one from their product: no cancellation.
    big = q.abs() + discriminant.clamp(min=0).sqrt()
    big = -torch.copysign(big.pow(1 / 3), q)
    single = big - p / torch.where(big.abs() < eps, torch.ones_like(big), big)
    radius = (-p).clamp(min=eps).sqrt()
    cosine = (-q / (radius * radius * radius)).clamp(-1, 1)
    triple = 2 * radius * (cosine.acos() / 3).cos()
    s = torch.where(discriminant >= 0, single, triple) - third
    for _ in range(2):
        slope = (3 * s + 2 * b) * s + c
        step = (((s + b) * s + c) * s + d) / slope
        s = s - torch.where(slope.abs() < eps, torch.zeros_like(s), step)
    return s


def _split_conic(c00: Tensor, c01: Tensor, c02: Tensor, c11: Tensor, c12: Tensor, c22: Tensor) -> Tensor:
    """The two lines (..., 2, 3) of a degenerate conic over (d2, d0, d1)."""
    adjugate = -torch.stack([
        c11 * c22 - c12 * c12, c02 * c12 - c01 * c22, c01 * c12 - c02 * c11,
        c02 * c12 - c01 * c22, c00 * c22 - c02 * c02, c01 * c02 - c00 * c12,
        c01 * c12 - c02 * c11, c01 * c02 - c00 * c12, c00 * c11 - c01 * c01], -1).unflatten(-1, (3, 3))
    diagonal = adjugate.diagonal(dim1=-2, dim2=-1)
    largest, index = diagonal.max(-1)
    column = adjugate.gather(-1, index[..., None, None].expand(*index.shape, 3, 1))[..., 0]
    tiny = torch.finfo(c00.dtype).tiny ** 0.5
    _, v1, v2 = (column * torch.rsqrt(largest.clamp(min=tiny))[..., None]).unbind(-1)
    v0 = column[..., 0] * torch.rsqrt(largest.clamp(min=tiny))
    # Rows of C + [v]x and C - [v]x are both multiples of one line; the first row may vanish, so take the longest.
    cross = torch.stack([torch.zeros_like(v0), -v2, v1, v2, torch.zeros_like(v0), -v0, -v1, v0, torch.zeros_like(v0)], -1)
    conic = torch.stack([c00, c01, c02, c01, c11, c12, c02, c12, c22], -1)
    both = torch.stack([conic + cross, conic - cross], -2).unflatten(-1, (3, 3))  # (..., 2, rows, 3)
    longest = both.square().sum(-1).argmax(-1)
    return both.gather(-2, longest[..., None, None].expand(*longest.shape, 1, 3))[..., 0, :]


def _meet(lines: Tensor, quadric: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Where each line meets the quadric q22 d2^2 + q00 d0^2 + q11 d1^2 + 2 q02 d0 d2 + 2 q12 d1 d2 + 2 q01 d0 d1 = 0.

    Returns (..., 4, 3) directions (d0, d1, d2), signs fixed so that the larger parameter is positive, and the mask of real ones.
    """
    q22, q00, q11, q02, q12, q01 = (q[..., None] for q in quadric)
    l2, l0, l1 = lines.unbind(-1)
    swap = l0.abs() > l2.abs()  # eliminate the distance with the larger coefficient: d_e = m d1 + n d_k
    le, lk = torch.where(swap, l0, l2), torch.where(swap, l2, l0)
    qee, qkk = torch.where(swap, q00, q22), torch.where(swap, q22, q00)
    qe1, qk1 = torch.where(swap, q01, q12), torch.where(swap, q12, q01)
    tiny = torch.finfo(le.dtype).tiny ** 0.5
    le = torch.where(le.abs() < tiny, torch.full_like(le, tiny), le)
    m, n = -l1 / le, -lk / le
    # A t^2 + 2 B t + C = 0 in t = d1 / d_k
    A = qee * m * m + q11 + 2 * qe1 * m
    B = qee * m * n + q02 * m + qe1 * n + qk1
    C = qee * n * n + qkk + 2 * q02 * n
    discriminant = B * B - A * C
    real = discriminant >= 0
    root = discriminant.clamp(min=0).sqrt()
    t = -B - torch.where(B >= 0, root, -root)
    # Two roots as directions (d1 : d_k), free of division: t / A and C / t.
    d1 = torch.stack([t, C], -1)
    dk = torch.stack([A, t], -1)
    sign = torch.where(dk < 0, -torch.ones_like(dk), torch.ones_like(dk))
    d1, dk = d1 * sign, dk * sign
    length = (d1 * d1 + dk * dk).clamp(min=tiny).rsqrt()
    d1, dk = d1 * length, dk * length
    de = m[..., None] * d1 + n[..., None] * dk
    swap = swap[..., None]
    found = torch.stack([torch.where(swap, de, dk), d1, torch.where(swap, dk, de)], -1)
    return found.flatten(-3, -2), real[..., None].expand(*real.shape, 2).flatten(-2)


def _polish(depths: Tensor, cosines: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Newton on the three law-of-cosines equations, of pairs 01, 02, 12; returns depths (..., 4, 3) and the relative residual (..., 4)."""
    m, a = cosines[..., None, :], squares[..., None, :]
    unit = squares[..., 2:, None].clamp(min=torch.finfo(a.dtype).tiny ** 0.5)
    eye = torch.eye(3, dtype=depths.dtype, device=depths.device)
    of_first, of_second = torch.cat([eye[:1], eye[:2]]), torch.cat([eye[1:], eye[2:]])
    for step in range(POLISH_STEPS + 1):
        first, second = depths @ of_first.mT, depths @ of_second.mT
        by_first, by_second = first - second * m, second - first * m
        equations = (first * by_first + second * by_second - a) / unit
        if step == POLISH_STEPS:
            break
        # Cramer's rule, with a column of the Jacobian in each row.
        columns = (by_first[..., None, :] * of_first.mT + by_second[..., None, :] * of_second.mT) * (2 / unit)[..., None]
        cofactors = torch.linalg.cross(columns.roll(-1, -2), columns.roll(-2, -2))
        determinant = (columns[..., 0, :] * cofactors[..., 0, :]).sum(-1, keepdim=True)
        change = (cofactors @ equations[..., None])[..., 0] / determinant
        depths = depths - torch.where(change.isfinite(), change, torch.zeros_like(change))
    return depths, equations.abs().amax(-1)
