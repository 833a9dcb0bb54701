"""Which descriptor of an image tells places apart, what the shipped one was made of, and how honest its probabilities are.

    BASE="--base $D/lounge:train:train rooms:101-112" C="--cache /tmp/gating"
    ON="$KITCHEN:fit:tnear,tfar $BONSAI:fit:held rooms:121-126 twins:127"       # splits of train: none of it is tested on
    python -m benchmarks.gating compare $ON $BASE $C
    python -m benchmarks.gating whiten $BASE $C
    python -m benchmarks.gating calibrate $ON $C
    python -m benchmarks.gating test $D/kitchen:train:val_near,val_far $D/bonsai:train:val rooms:131-134 twins:135 $C

Every place is asked about twice: with itself among those that are known, and without, when "none of these" is right. Places count alike,
whatever their frames; near-twins are asked about apart. `compare` learns every whitening on the base.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.places import Place, places_of
from dsac_ros.errors import DsacError
from dsac_ros.networks.encoder import image_to_tensor, input_size, shared_encoder
from dsac_ros.networks.gating import (
    DIMENSIONS,
    NONE_LOGIT,
    TEMPERATURE,
    WEIGHTS,
    Gating,
    Prototypes,
    Whitening,
    prototypes,
    shipped_whitening,
)
from dsac_ros.records import Frame

POOLINGS = ('mean', 'gem', 'mean and deviation')
POWER = 0.25  # of the shipped whitening
HALF = f'half whitened, {DIMENSIONS}'
NEVER = -9.0  # similarity to a place that is left out
LINEAR_STEPS = 300


def pooled(frames: Iterable[Frame], device: str = 'cpu') -> dict[str, Tensor]:
    """Pooling -> (F, C') of every frame."""
    encoder, rows = shared_encoder(device), {name: [] for name in POOLINGS}
    for frame in frames:
        resized = cv2.resize(frame.image, input_size(frame.camera.width, frame.camera.height), interpolation=cv2.INTER_AREA)
        with torch.inference_mode():
            maps_CHW = encoder(image_to_tensor(resized).to(device))[0].float().cpu()
        mean, deviation = maps_CHW.mean((1, 2)), maps_CHW.std((1, 2))
        rows['mean'].append(mean)
        rows['gem'].append(maps_CHW.clamp(min=1e-6).pow(3).mean((1, 2)).pow(1 / 3))  # Radenovic et al. 2019
        rows['mean and deviation'].append(torch.cat([mean, deviation]))
    return {name: torch.stack(values).clone() for name, values in rows.items()}


@dataclass(frozen=True)
class Seen:
    """A place in numbers: pooling -> (F, C') of its mapped frames, and of those that are asked about."""

    place: Place
    mapped: dict[str, Tensor]
    asked: dict[str, Tensor]


def seen(place: Place, cache: Path) -> Seen:
    """From the cache, where it is there."""
    parts = []
    for what in ('mapped', 'asked'):
        file = cache / f'{place.name}.{what}.safetensors'
        if not file.exists():
            save_file(pooled(getattr(place, what)()), file)
            print(f'{file}', file=sys.stderr, flush=True)
        parts.append(load_file(file))
    return Seen(place, *parts)


def whitened(base: Sequence[Seen], pooling: str, dimensions: int, power: float) -> Whitening:
    """Principal directions of pooled features of places, which count alike; scaled by variance ** -power, so 0.5 gives all of them unit
    deviation, and with 0.25 the places of the base keep some of what tells them from others."""
    rows = [each.mapped[pooling] for each in base]
    weights_N = torch.cat([torch.full((len(row),), 1 / len(row) / len(rows)) for row in rows]).double()
    values_NC = torch.cat(rows).double()
    mean_C = weights_N @ values_NC
    centred_NC = values_NC - mean_C
    variances, directions = torch.linalg.eigh(centred_NC.T @ (centred_NC * weights_N[:, None]))
    scales = variances[-dimensions:].clamp(min=1e-12) ** -power
    return Whitening(mean_C.float(), (directions[:, -dimensions:] * scales).float())


def standardised(base: Sequence[Seen], pooling: str) -> Whitening:
    values_NC = torch.cat([each.mapped[pooling] for each in base])
    return Whitening(values_NC.mean(0), torch.diag(1 / values_NC.std(0)))


@dataclass(frozen=True)
class Question:
    """similarities_QE of frames to places, the right place of each (Q,), and what each frame counts (Q,)."""

    similarities_QE: Tensor
    right_Q: Tensor
    weights_Q: Tensor

    def both_ways(self, temperature: Tensor, none: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (2 Q, E + 1) with the right place and without it, right answers, weights that add up to one."""
        without_QE = self.similarities_QE.scatter(1, self.right_Q[:, None], NEVER)
        all_ = torch.cat([self.similarities_QE, without_QE])
        logits = torch.cat([all_ / temperature, none.expand(len(all_), 1) / temperature], 1)
        right = torch.cat([self.right_Q, torch.full_like(self.right_Q, self.similarities_QE.shape[1])])
        return logits.log_softmax(1), right, self.weights_Q.repeat(2) / 2 / self.weights_Q.sum()


def question(known: Sequence[Seen], asked: Sequence[Seen], similarities: Sequence[Tensor]) -> Question:
    right = [torch.full((len(rows),), known.index(each)) for each, rows in zip(asked, similarities)]
    return Question(torch.cat(list(similarities)), torch.cat(right), torch.cat([torch.full((len(rows),), 1 / len(rows)) for rows in right]))


def by_prototypes(places: Sequence[Seen], asked: Sequence[Seen], pooling: str, whitening: Whitening | None,
                  all_frames: bool = False) -> list[Tensor]:
    """Similarities of the frames of each place that is asked about, to the nearest prototype, or to the nearest frame at all."""
    described = (lambda rows: normalize(rows, dim=-1)) if whitening is None else whitening
    sets = [described(each.mapped[pooling]) for each in places]
    gating = Gating([Prototypes(rows) if all_frames else prototypes(rows) for rows in sets])
    return [gating.similarities(described(each.asked[pooling])) for each in asked]


def by_linear_head(places: Sequence[Seen], asked: Sequence[Seen], pooling: str, whitening: Whitening) -> list[Tensor]:
    """Logits of a linear head trained on all mapped frames, which a new place would train anew."""
    rows_ND = torch.cat([whitening(each.mapped[pooling]) for each in places])
    right_N = torch.cat([torch.full((len(each.mapped[pooling]),), index) for index, each in enumerate(places)])
    share_E = torch.bincount(right_N).float()
    head = torch.nn.Linear(rows_ND.shape[1], len(places))
    optimiser = torch.optim.AdamW(head.parameters(), 0.05, weight_decay=0.01)
    for _ in range(LINEAR_STEPS):
        optimiser.zero_grad()
        cross_entropy(30 * head(rows_ND), right_N, 1 / share_E).backward()
        optimiser.step()
    with torch.inference_mode():
        return [head(whitening(each.asked[pooling])) for each in asked]


def calibrated(asked: Question) -> tuple[float, float]:
    """Temperature, and the similarity that stands for none, of the least log loss."""
    log_temperature = (asked.similarities_QE.std() / 4).log().requires_grad_()
    none = asked.similarities_QE.amax(1).mean().clone().requires_grad_()
    optimiser = torch.optim.LBFGS([log_temperature, none], max_iter=100, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = log_loss(*asked.both_ways(log_temperature.exp(), none))
        value.backward()
        return value
    optimiser.step(loss)
    return float(log_temperature.detach().exp()), float(none.detach())


def log_loss(log_p: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    return -(weights * log_p.gather(1, right[:, None])[:, 0]).sum()


def expected_calibration_error(log_p: Tensor, right: Tensor, weights: Tensor, bins: int = 10) -> float:
    """Of the answer that is most probable (Naeini et al. 2015)."""
    sure, correct = log_p.exp().amax(1), (log_p.argmax(1) == right).float()
    bin_ = (sure * bins).long().clamp(max=bins - 1)
    return float(torch.zeros(bins).index_add_(0, bin_, weights * (sure - correct)).abs().sum())


def row(name: str, asked: Question, temperature: float, none: float) -> str:
    log_p, right, weights = asked.both_ways(torch.tensor(temperature), torch.tensor(none))
    count, mean = len(asked.right_Q), asked.weights_Q / asked.weights_Q.sum()
    refused = (log_p[:, -1].exp() > 0.5).float()
    top = [float((mean * (asked.similarities_QE.topk(k, 1)[1] == asked.right_Q[:, None]).any(1)).sum()) for k in (1, 3)]
    return (f'| {name} | {100 * top[0]:.1f} | {100 * top[1]:.1f} | {float(log_loss(log_p, right, weights)):.3f} | '
            f'{100 * expected_calibration_error(log_p, right, weights):.1f} | {100 * float((mean * (1 - refused[count:])).sum()):.1f} | '
            f'{100 * float((mean * refused[:count]).sum()):.1f} |')


HEADER = ('| | top-1 % | among 3 % | log loss | calibration error % | strangers not refused % | own refused % |\n'
          '|---|---|---|---|---|---|---|')


def split_twins(places: Sequence[Seen]) -> tuple[list[Seen], list[Seen]]:
    return [each for each in places if not each.place.twin], [each for each in places if each.place.twin]


def compare(places: Sequence[Seen], base: Sequence[Seen]) -> None:
    plain, _ = split_twins(places)
    print(f'{len(plain)} places, whitening of {len(base)} others; temperature and none calibrated for each row, on what it is asked')
    print(HEADER)
    for pooling in POOLINGS:
        kinds: dict[str, Whitening | None] = {'as it is': None, 'standardised': standardised(base, pooling)}
        kinds |= {f'whitened, {dimensions}': whitened(base, pooling, dimensions, 0.5) for dimensions in (128, 384)}
        kinds[HALF] = whitened(base, pooling, DIMENSIONS, POWER)
        for kind, whitening in kinds.items():
            rows = {'prototypes': by_prototypes(plain, plain, pooling, whitening)}
            if kind == HALF:
                rows['all frames'] = by_prototypes(plain, plain, pooling, whitening, True)
                rows['linear head'] = by_linear_head(plain, plain, pooling, whitening)
            for what, similarities in rows.items():
                asked = question(plain, plain, similarities)
                print(row(f'{pooling}, {kind}, {what}', asked, *calibrated(asked)), flush=True)


def test(places: Sequence[Seen]) -> None:
    """With what is shipped."""
    whitening = shipped_whitening(torch.device('cpu'))
    plain, twins = split_twins(places)
    print(HEADER)
    for group, name in ((plain, 'all places'), *(([each], each.place.name) for each in plain)):
        asked = question(plain, group, by_prototypes(plain, group, 'mean', whitening))
        print(row(name, asked, TEMPERATURE, TEMPERATURE * NONE_LOGIT))
    if twins:
        known = [*plain, *twins]
        asked = question(known, twins, by_prototypes(known, twins, 'mean', whitening))
        print(row('near-twins, both known', asked, TEMPERATURE, TEMPERATURE * NONE_LOGIT))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.gating', description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('compare', 'whiten', 'calibrate', 'test'))
    parser.add_argument('places', nargs='*', help='FOLDER:MAPPED:ASKED[,ASKED] with names of splits, rooms:FIRST-LAST, twins:ROOM')
    parser.add_argument('--base', nargs='+', default=[], help='places that whitening is learned on')
    parser.add_argument('--cache', type=Path, required=True, help='folder that keeps the pooled features')
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    try:
        places, base = ([seen(place, options.cache) for text in texts for place in places_of(text)]
                        for texts in (options.places, options.base))
        if options.what == 'compare':
            compare(places, base)
        elif options.what == 'whiten':
            whitening = whitened(base, 'mean', DIMENSIONS, POWER)
            save_file({'mean': whitening.mean_C, 'projection': whitening.projection_CD.half().contiguous()}, WEIGHTS)
            print(f'{WEIGHTS}: of {sum(len(each.mapped["mean"]) for each in base)} images, {WEIGHTS.stat().st_size / 1e3:.0f} kB')
        elif options.what == 'calibrate':
            plain, _ = split_twins(places)
            whitening = shipped_whitening(torch.device('cpu'))
            temperature, none = calibrated(question(plain, plain, by_prototypes(plain, plain, 'mean', whitening)))
            print(f'TEMPERATURE = {temperature:.3f}\nNONE_LOGIT = {none:.2f} / TEMPERATURE')
        else:
            test(places)
    except DsacError as error:
        print(f'gating: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
