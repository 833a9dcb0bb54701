"""Gating trained end to end: prototypes moved by the gradient of the pose loss that is to be expected of the sub-maps that may run.

Encoder, heads and landmarks stay as they are. What a sub-map makes of a frame does not depend on gating, so its pose loss is computed
once, and the exact expectation over sub-maps (ESAC, Brachmann & Rother 2019; endtoend.expectation.over_experts) is differentiated in the
prototypes alone. What is of none of them is not trained: there are no frames of it.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dsac_ros.config import FinetuningOptions
from dsac_ros.data.source import FrameSource
from dsac_ros.endtoend.expectation import over_experts
from dsac_ros.endtoend.losses import pose_loss
from dsac_ros.errors import MapError
from dsac_ros.localizer import resolve_device
from dsac_ros.maps.bundle import check_place
from dsac_ros.maps.editing import exchange_gating
from dsac_ros.maps.site import Site, open_site
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.networks.gating import Gating, Prototypes
from dsac_ros.progress import progress_bar
from dsac_ros.training.episodes import Episodes, encode, frames_of
from dsac_ros.training.localising import localised

CANDIDATES = 4  # sub-maps of which a frame has a loss: the nearest one, and those that gating finds likeliest
STEPS = 300
LEARNING_RATE = 3e-4  # of unit vectors of 768 numbers
CHECK_EVERY = 10
BATCH = 8  # frames that a sub-map localises at once


@dataclass(frozen=True)
class Lessons:
    """Of V views: descriptors_VD, the sub-maps experts_VM that may run, and the pose losses_VM of each of them by itself."""

    descriptors_VD: Tensor
    experts_VM: Tensor
    losses_VM: Tensor


@dataclass(frozen=True)
class Lesson:
    """What came of it on held-out frames: expected pose loss, and share of frames whose likeliest sub-map is the one with the least."""

    loss: float
    right: float

    def then(self, after: Lesson) -> str:
        """What has changed, for people."""
        return (f'on frames held out the likeliest sub-map was the right one in {100 * self.right:.1f} %, now in '
                f'{100 * after.right:.1f} %; expected pose loss {self.loss:.1f}, now {after.loss:.1f}')


def train_gating(path: str | Path, sources: list[FrameSource], out: str | Path, options: FinetuningOptions = FinetuningOptions(),
                 device: str = 'auto', overwrite: bool = False, quiet: bool = False) -> tuple[Lesson, Lesson]:
    """Write a map with better prototypes to `out`; what held-out frames say before and after.

    Args:
        sources: recordings with poses in the frame of the site, of all places that are to be told apart; of one camera each.
        options: of these modality, max_frames (of each source), held_out_share, cut_off and seed are used.

    Raises DataError, MapError.
    """
    path, out = Path(path), Path(out)
    check_place(out, overwrite)
    site, where = open_site(path), resolve_device(device)
    if len(site.entries) < 2:
        raise MapError(f'{path}: has one sub-map; there is nothing to tell apart')
    encoder, found = shared_encoder(str(where)), []
    with progress_bar('localise', len(sources), quiet) as bar:
        for source in sources:
            parts = frames_of([source], site, options)
            found.append([lessons(site, encode(frames, encoder, 0, options.seed, where, int), options) for frames in parts])
            bar.update()
    taught, watched = (together(each) for each in zip(*found))
    sets, before, after = improved(site.prototypes, taught, watched)
    record = {'gated': {'from': str(path), 'sources': [str(getattr(s, 'path', 'frames')) for s in sources], 'frames': len(taught.losses_VM),
                        'held_out_frames': len(watched.losses_VM), 'before': asdict(before), 'after': asdict(after)}}
    exchange_gating(path, sets, record, out, overwrite)
    return before, after


def lessons(site: Site, views: Episodes, options: FinetuningOptions) -> Lessons:
    """Every view localised by each of its candidates, as if that were the only sub-map."""
    device = views.features_VNC.device
    gating = Gating([Prototypes(each.descriptors_MD.to(device)) for each in site.prototypes])
    experts_VM = candidates(site, gating, views)
    losses_VM = torch.zeros(experts_VM.shape, dtype=torch.float64, device=device)
    for index in experts_VM.unique().tolist():
        expert = site.read(index).expert.to(device)
        map_from_site_44 = torch.from_numpy(site.map_from_site_E44[index]).to(device)
        rows_R, columns_R = (experts_VM == index).nonzero(as_tuple=True)
        for part in range(0, len(rows_R), BATCH):
            rows_B, columns_B = rows_R[part:part + BATCH], columns_R[part:part + BATCH]
            batch = views.some(rows_B)
            poses_B44 = localised(expert, batch, rows_B.tolist(), options)
            truths_B44 = map_from_site_44 @ batch.map_from_camera_V44
            losses_VM[rows_B, columns_B] = pose_loss(poses_B44[:, None], truths_B44, cut_off=options.cut_off)[:, 0]
    return Lessons(views.descriptors_VD.float(), experts_VM, losses_VM)


def together(each: Iterable[Lessons]) -> Lessons:
    return Lessons(*(torch.cat(values) for values in zip(*((part.descriptors_VD, part.experts_VM, part.losses_VM) for part in each))))


def candidates(site: Site, gating: Gating, views: Episodes) -> Tensor:
    """(V, M) indices: first the sub-map whose mapped points the camera is nearest to, then the likeliest others."""
    places_V3 = views.map_from_camera_V44[:, :3, 3].cpu().numpy()
    nearest_V = torch.tensor([int(site.distances(place_3).argmin()) for place_3 in places_V3], device=views.features_VNC.device)
    ranked_VE = gating.similarities(views.descriptors_VD.float())
    ranked_VE = ranked_VE.scatter(1, nearest_V[:, None], 2.0)  # above any similarity
    return ranked_VE.topk(min(CANDIDATES, gating.experts), dim=1).indices


def improved(sets: tuple[Prototypes, ...], taught: Lessons, watched: Lessons) -> tuple[list[Prototypes], Lesson, Lesson]:
    """The prototypes with the least expected loss on the watched frames, and what these say of the first and of the last."""
    gating = Gating([replace(each, descriptors_MD=each.descriptors_MD.to(taught.descriptors_VD.device)) for each in sets])
    weights_SD = gating.descriptors_SD.clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([weights_SD], lr=LEARNING_RATE, weight_decay=0.0)
    before = best = lesson(gating, watched)
    kept_SD = gating.descriptors_SD
    for step in range(1, STEPS + 1):
        gating.descriptors_SD = normalize(weights_SD, dim=1)
        optimiser.zero_grad()
        expected(gating, taught).mean().backward()
        optimiser.step()
        if step % CHECK_EVERY == 0:
            gating.descriptors_SD = normalize(weights_SD.detach(), dim=1)
            found = lesson(gating, watched)
            if found.loss < best.loss:
                best, kept_SD = found, gating.descriptors_SD
    return [Prototypes(each) for each in kept_SD.split([len(each.descriptors_MD) for each in sets])], before, best


def expected(gating: Gating, given: Lessons) -> Tensor:
    """(V,) pose loss that is to be expected where one sub-map is chosen by gating."""
    logits_VE = gating.similarities(given.descriptors_VD) / gating.temperature
    return over_experts(logits_VE.double(), given.experts_VM, given.losses_VM)


@torch.no_grad()
def lesson(gating: Gating, given: Lessons) -> Lesson:
    likeliest_V = gating.similarities(given.descriptors_VD).gather(1, given.experts_VM).argmax(1)
    return Lesson(expected(gating, given).mean().item(), (likeliest_V == given.losses_VM.argmin(1)).float().mean().item())
