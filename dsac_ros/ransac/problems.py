"""The two kinds of correspondence problem behind one face: generate, score, refine need nothing else of a camera or of depth.

A problem offers `solve` (minimal sets -> hypotheses), `residuals` (hypotheses -> distances in units of the noise) and `linearise`
(hypotheses -> whitened residual rows and their Jacobians). Noise of a correspondence: the predicted scale of its scene coordinate
and the noise of the sensor, as standard deviations added in squares.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsac_ros.geometry import se3
from dsac_ros.geometry.kabsch import kabsch
from dsac_ros.geometry.p3p import p3p

MIN_DEPTH = 0.1  # metres: nearer points, and those behind the camera, are no inliers


@dataclass(frozen=True)
class RayProblem:
    """RGB: points y_i [m, map frame] seen along rays (x/z, y/z); the residual is the reprojection error on the image plane.

    points_N3, rays_N2, scales_N [m] of the points, usable_N bool, noise: of a ray, on the image plane at z = 1 (pixels / focal length).
    """

    points_N3: Tensor
    rays_N2: Tensor
    scales_N: Tensor
    usable_N: Tensor
    noise: float

    def solve(self, sets_K3: Tensor) -> tuple[Tensor, Tensor]:
        """camera_from_map (4 K, 4, 4) of all roots, and the mask of valid ones (4 K,)."""
        ones = torch.ones_like(self.rays_N2[..., :1])
        bearings_N3 = torch.nn.functional.normalize(torch.cat([self.rays_N2, ones], -1), dim=-1)
        poses_K444, valid_K4 = p3p(bearings_N3[sets_K3], self.points_N3[sets_K3])
        valid_K4 = valid_K4 & self.usable_N[sets_K3].all(-1, keepdim=True)
        return poses_K444.flatten(0, 1), valid_K4.flatten()

    def residuals(self, poses_K44: Tensor) -> Tensor:
        """(K, N) distances over their standard deviation; infinite where a point is too near or unusable."""
        return self._measure(poses_K44)[0]

    def distances(self, poses_K44: Tensor) -> Tensor:
        """(K, N) distances on the image plane at z = 1; infinite where a point is too near or unusable."""
        return self._measure(poses_K44)[1]

    def _measure(self, poses_K44: Tensor) -> tuple[Tensor, Tensor]:
        dtype = poses_K44.dtype
        flat = poses_K44[:, :3, :3].reshape(-1, 3) @ self.points_N3.to(dtype).T + poses_K44[:, :3, 3].reshape(-1, 1)
        x, y, z = flat.view(len(poses_K44), 3, -1).unbind(1)
        seen = (z > MIN_DEPTH) & self.usable_N
        inverse = 1 / torch.where(seen, z, torch.ones_like(z))
        u, v = self.rays_N2.to(dtype).unbind(-1)
        square = (x * inverse - u).square() + (y * inverse - v).square()
        variance = (self.scales_N.to(dtype) * inverse).square() + self.noise ** 2
        far = torch.full_like(square, torch.inf)
        return torch.where(seen, (square / variance).sqrt(), far), torch.where(seen, square.sqrt(), far)

    def linearise(self, poses_K44: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whitened residuals (K, N, 2), Jacobians (K, N, 2, 6) for a left perturbation (rotation, translation), and usable ones (K, N)."""
        x, y, z = (self.points_N3 @ poses_K44[:, :3, :3].mT + poses_K44[:, None, :3, 3]).unbind(-1)
        seen = (z > MIN_DEPTH) & self.usable_N
        inverse = 1 / z.clamp(min=MIN_DEPTH)
        u, v = x * inverse, y * inverse
        whiten = ((self.scales_N * inverse).square() + self.noise ** 2).rsqrt()
        residual = (torch.stack([u, v], -1) - self.rays_N2) * whiten[..., None]
        o, uv = torch.zeros_like(u), u * v
        rows = [-uv, 1 + u * u, -v, inverse, o, -u * inverse, -1 - v * v, uv, u, o, inverse, -v * inverse]
        return residual, (torch.stack(rows, -1) * whiten[..., None]).unflatten(-1, (2, 6)), seen


@dataclass(frozen=True)
class PointProblem:
    """RGB-D: points y_i [m, map frame] measured at camera points p_i [m]; the residual is their distance.

    points_N3, camera_N3, scales_N [m], usable_N bool (has depth), noise_N: of the measured points [m].
    """

    points_N3: Tensor
    camera_N3: Tensor
    scales_N: Tensor
    usable_N: Tensor
    noise_N: Tensor

    def solve(self, sets_K3: Tensor) -> tuple[Tensor, Tensor]:
        """camera_from_map (K, 4, 4) and the mask of valid ones (K,)."""
        poses_K44, valid_K = kabsch(self.points_N3[sets_K3], self.camera_N3[sets_K3])
        return poses_K44, valid_K & self.usable_N[sets_K3].all(-1)

    def residuals(self, poses_K44: Tensor) -> Tensor:
        """(K, N) distances over their standard deviation; infinite where unusable."""
        deviation_N = (self.scales_N.square() + self.noise_N.square()).sqrt()
        return self.distances(poses_K44) / deviation_N.to(poses_K44.dtype)

    def distances(self, poses_K44: Tensor) -> Tensor:
        """(K, N) distances [m]; infinite where unusable."""
        dtype = poses_K44.dtype
        flat = poses_K44[:, :3, :3].reshape(-1, 3) @ self.points_N3.to(dtype).T + poses_K44[:, :3, 3].reshape(-1, 1)
        distance = (flat.view(len(poses_K44), 3, -1) - self.camera_N3.to(dtype).T).square().sum(1).sqrt()
        return torch.where(self.usable_N, distance, torch.full_like(distance, torch.inf))

    def linearise(self, poses_K44: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whitened residuals (K, N, 3), Jacobians (K, N, 3, 6) for a left perturbation (rotation, translation), and usable ones (N,)."""
        camera_KN3 = self.points_N3 @ poses_K44[:, :3, :3].mT + poses_K44[:, None, :3, 3]
        whiten = (self.scales_N.square() + self.noise_N.square()).rsqrt()
        eye = torch.eye(3, dtype=camera_KN3.dtype, device=camera_KN3.device).expand(*camera_KN3.shape[:-1], 3, 3)
        jacobian = torch.cat([-se3.skew(camera_KN3), eye], -1)
        return (camera_KN3 - self.camera_N3) * whiten[:, None], jacobian * whiten[:, None, None], self.usable_N
