"""What speaks for a pose, for people to look at: the landmarks or cells of a frame, where they were seen and how far off they are.

Computed when somebody asks, after the frame is answered; until then the localizer only keeps what it has on the device anyway.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dsac_ros.geometry.camera import pixels_of
from dsac_ros.ransac.kernel import soft_inliers
from dsac_ros.records import Estimate, Frame

if TYPE_CHECKING:
    from dsac_ros.localizer import Localizer

RADIUS_PX = 16.0  # around the projection of a landmark, in an image 480 pixels high: what the last search of a frame takes
MIN_INLIER = 0.5  # of soft_inliers: within the standard deviations of even odds


@dataclass(frozen=True, eq=False)
class Support:
    """What was compared with the map, N of `kind` 'landmarks' or 'cells'.

    points_N3: [m, map frame]. seen_N2, expected_N2: pixels where the image has them and where the pose puts them. residuals_px_N: between
    the two, along the optical axis of an ideal camera. inlier_N: bool.
    """

    kind: str
    points_N3: np.ndarray
    seen_N2: np.ndarray
    expected_N2: np.ndarray
    residuals_px_N: np.ndarray
    inlier_N: np.ndarray


@torch.inference_mode()
def support_of(localizer: Localizer, frame: Frame, estimate: Estimate) -> Support:
    """Of the frame that the localizer was asked for last. Landmarks where the pose is by them, else cells, else nothing."""
    seen, kind = localizer.seen, 'landmarks' if estimate.landmarks or localizer.seen.cells is None else 'cells'
    site_from_map = seen.sub_map.bundle.entry.site_from_map_44
    pose_44 = torch.from_numpy(np.linalg.inv(estimate.map_from_camera) @ site_from_map).to(localizer.device)
    if kind == 'cells':
        problem = seen.cells
    elif seen.view is not None and torch.isfinite(pose_44).all():
        problem = seen.sub_map.positioning.matches(seen.view, pose_44, RADIUS_PX * seen.view.pixel)
    else:
        return Support(kind, np.zeros((0, 3)), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, bool))
    residuals = problem.residuals(problem.vectors(pose_44[None, None]))
    white = problem.whitened(residuals, torch.ones_like(problem.spread_B)[:, None])
    inlier_N = soft_inliers(white.square_BKN[0, 0].sqrt(), localizer.estimator.inlier_sigmas) > MIN_INLIER
    angles_N = residuals.across_BKN[0, 0].sqrt() / residuals.range_BKN[0, 0]
    usable_N = residuals.seen_BKN[0, 0] > 0
    parts = [problem.points_BN3[0], problem.bearings_BN3[0], angles_N[:, None], (inlier_N & usable_N)[:, None]]
    rows = torch.cat([part.double() for part in parts], 1)[usable_N].cpu().numpy()
    points_N3, bearings_N3 = rows[:, :3], rows[:, 3:6]
    local_N3 = points_N3 @ pose_44[:3, :3].cpu().numpy().T + pose_44[:3, 3].cpu().numpy()
    ahead = (local_N3[:, 2] > 0.01) & (bearings_N3[:, 2] > 0.01)  # a fisheye sees what no pixel of ours is drawn for
    points_N3 = points_N3 @ site_from_map[:3, :3].T + site_from_map[:3, 3]
    return Support(kind, points_N3[ahead], pixels_of(frame.camera, bearings_N3[ahead]), pixels_of(frame.camera, local_N3[ahead]),
                   rows[ahead, 6] * frame.camera.fx, rows[ahead, 7] > 0)
