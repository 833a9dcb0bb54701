"""A site of many rooms against each room alone: poses, near-twins, latency, size, and images of places that are not in it.

    PLACES="$D/kitchen:train:val_near,val_far $D/lounge:train:val $D/bonsai:train:val rooms:201-215 twins:220"
    python -m benchmarks.large_places make site $PLACES --minutes 3
    python -m benchmarks.large_places test site $PLACES --modality rgb
    python -m benchmarks.large_places strangers site rooms:301-305 --modality rgb
    python -m benchmarks.large_places drives site rooms:331-338 --frames 60 --rate 4      # in order, as the node has them
    python -m benchmarks.large_places latency site $PLACES --counts 1 2 5 10 20 50 200 --plot latency.png
    python -m benchmarks.large_places gate site $PLACES             # then test --site gated.dsacmap
    python -m benchmarks.large_places agree FLOOR OTHER_DRIVE       # of FLOOR/site.dsacmap, that --split auto made

`make` goes on where it was. Rooms lie APART_M from each other in the site. With `latency`, experts are copies of those of the site under
other names and with other prototypes, each with its own files: what they cost is real, what they say is not asked.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import save as save_tensors

from benchmarks.integrity import WRONG_DEG, WRONG_M, Count
from benchmarks.integrity import asked as counted
from benchmarks.places import Look, Place, places_of
from dsac_ros.config import FinetuningOptions, GatingOptions, MappingOptions
from dsac_ros.data.opening import open_source
from dsac_ros.data.source import FrameSource
from dsac_ros.errors import DsacError
from dsac_ros.evaluation.metrics import pose_error
from dsac_ros.localizer import Localizer
from dsac_ros.maps.bundle import sha256, write_bundle
from dsac_ros.maps.editing import add_experts, merge_sites
from dsac_ros.maps.manifest import ExpertEntry, read_manifest
from dsac_ros.maps.site import open_site, site_of
from dsac_ros.networks.encoder import shared_encoder
from dsac_ros.networks.gating import Prototypes
from dsac_ros.records import Estimate, Frame
from dsac_ros.tracking.tracker import Tracker
from dsac_ros.training.executors import EXECUTORS, run_jobs
from dsac_ros.training.gating import train_gating
from dsac_ros.training.mapping import map_source

APART_M = 30.0
UNLIKE = 2.0  # noise over descriptor: what it leaves of the likeness of a copy is that of rooms that have nothing to do with each other
LOOK = Look(640, 480, 400.0, 200, 24)
TOP_ONE = GatingOptions(most_experts=1, parts=1, searches=1)
WITHIN_M, WITHIN_DEG = 0.05, 5.0


@dataclass(frozen=True)
class Job:
    """A room to be mapped: a text of places_of, and which one of its places."""

    text: str
    index: int
    out: str
    minutes: float


def map_place(job: Job) -> None:
    torch.set_num_threads(2)
    source = places_of(job.text, LOOK)[job.index].mapped()
    rgb_only = next(iter(source)).depth is None
    map_source(source, job.out, MappingOptions(minutes=job.minutes, rgb_only=rgb_only), 'cpu', Path(job.out).stem, quiet=True)


def make(folder: Path, texts: Sequence[str], minutes: float, executor: str, workers: int) -> int:
    """FOLDER/rooms has a map of each place, FOLDER/site.dsacmap all that could be made."""
    rooms = folder / 'rooms'
    rooms.mkdir(parents=True, exist_ok=True)
    jobs = {place.name: Job(text, index, str(rooms / f'{file_name(place)}.dsacmap'), minutes)
            for text in texts for index, place in enumerate(places_of(text, LOOK))}

    def tell(name: str, error: str) -> None:
        print(f'{name}: {error or "done"}', flush=True)
    begin = time.monotonic()
    failed = run_jobs(map_place, jobs, lambda name: Path(jobs[name].out).exists(), executor, workers, tell)
    print(f'{len(jobs)} rooms, {len(failed)} failed, {time.monotonic() - begin:.0f} s')
    site = folder / 'site.dsacmap'
    there = {entry.name for entry in read_manifest(site).entries} if site.exists() else set()
    for name, job in jobs.items():
        if name in failed or Path(job.out).stem in there:
            continue
        place_in(site, Path(job.out), apart(len(there)))
        there.add(Path(job.out).stem)
    sizes = [sum(file.stat().st_size for file in site.glob(f'*/{entry.name}.*')) / 1e6 for entry in read_manifest(site).entries]
    print(f'{len(sizes)} experts of {np.mean(sizes):.2f} MB in the mean, {max(sizes):.2f} MB at the most')
    return 1 if failed else 0


def place_in(site: Path, room: Path, site_from_map: np.ndarray) -> None:
    """Add a room to a site, which begins with a copy of the first."""
    if not site.exists():
        merge_sites([room], site)
    else:
        add_experts(site, room, site_from_map=site_from_map)


def apart(index: int) -> np.ndarray:
    out = np.eye(4)
    out[0, 3] = APART_M * index
    return out


def file_name(place: Place) -> str:
    return place.name.replace('.', '-')


class Placed:
    """A FrameSource of another, its poses in the frame of the site."""

    def __init__(self, source: FrameSource, site_from_map: np.ndarray, frame_id: str) -> None:
        self.source, self.site_from_map, self.map_frame, self.warnings = source, site_from_map, frame_id, source.warnings

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.source:
            pose = frame.map_from_camera
            yield frame if pose is None else replace(frame, map_from_camera=self.site_from_map @ pose)


def gate(folder: Path, places: Sequence[Place], modality: str, most: int) -> None:
    """FOLDER/gated.dsacmap, whose gating was taught end to end by the frames that were mapped."""
    manifest = read_manifest(folder / 'site.dsacmap')
    entries = {entry.name: entry for entry in manifest.entries}
    sources = [Placed(place.mapped(), entries[file_name(place)].site_from_map_44, manifest.frame_id) for place in places]
    options = FinetuningOptions(modality=modality, max_frames=most, held_out_share=0.2)
    before, after = train_gating(folder / 'site.dsacmap', sources, folder / 'gated.dsacmap', options, 'cpu', overwrite=True, quiet=True)
    print(f'held out: {before}, then {after}')


def asked(places: Iterable[Place], most: int) -> Iterator[tuple[str, Frame]]:
    """Name of the expert, and frames of known pose, evenly spread."""
    for place in places:
        frames = [frame for frame in place.asked() if frame.map_from_camera is not None]
        yield from ((file_name(place), frame) for frame in frames[::max(1, -(-len(frames) // most))])


def answers(site: Path, frames: Sequence[tuple[str, Frame]], modality: str, gating: GatingOptions = GatingOptions()) -> list[Estimate]:
    localizer = Localizer.from_map(site, 'cpu', gating=gating)
    return [localizer.localize(frame, modality) for _, frame in frames]


def right(estimate: Estimate, frame: Frame, site_from_map: np.ndarray) -> bool:
    metres, degrees = pose_error(estimate.map_from_camera, site_from_map @ frame.map_from_camera)
    return bool(estimate.verdict.accepted and metres < WITHIN_M and degrees < WITHIN_DEG)


def test(folder: Path, site: str, places: Sequence[Place], modality: str, most: int) -> None:
    """The joint map against each room alone, that is with the expert chosen by an oracle; and near-twins."""
    entries = {entry.name: entry for entry in read_manifest(folder / site).entries}
    frames = list(asked([place for place in places if file_name(place) in entries], most))
    twins = {file_name(place) for place in places if place.twin}
    placed = [entries[name].site_from_map_44 for name, _ in frames]
    alone = []
    for room in dict.fromkeys(room for room, _ in frames):
        own = [(other, frame) for other, frame in frames if other == room]
        alone += [right(e, frame, np.eye(4)) for e, (_, frame) in zip(answers(folder / 'rooms' / f'{room}.dsacmap', own, modality), own)]
    rows: dict[str, list[Estimate]] = {'shared budget': answers(folder / site, frames, modality),
                                       'top-1 gating': answers(folder / site, frames, modality, TOP_ONE)}
    print(f'{modality}: {len(frames)} frames of {len(entries)} experts, each by itself; accepted and within 5 cm 5 deg of the truth\n'
          '| | frames | oracle % | joint % | joint / oracle % | right expert % | accepted in a wrong room % |\n'
          '|---|---|---|---|---|---|---|')
    for group, is_twin in (('rooms', False), ('near-twins', True)):
        rows_of_group = [index for index, (name, _) in enumerate(frames) if (name in twins) == is_twin]
        for how, estimates in rows.items():
            if rows_of_group:
                chosen = [(estimates[index], *frames[index], placed[index]) for index in rows_of_group]
                oracle = percent(alone[index] for index in rows_of_group)
                joint = percent(right(estimate, frame, where) for estimate, _, frame, where in chosen)
                expert = percent(estimate.expert == name for estimate, name, _, _ in chosen)
                wrong = percent(estimate.verdict.accepted and estimate.expert != name for estimate, name, _, _ in chosen)
                print(f'| {group}, {how} | {len(chosen)} | {oracle:.1f} | {joint:.1f} | {100 * joint / max(oracle, 1e-9):.1f} | '
                      f'{expert:.1f} | {wrong:.1f} |', flush=True)
    joint_ones = [right(estimate, frame, where) for estimate, (_, frame), where in zip(rows['shared budget'], frames, placed)]
    print(f'right, shared budget: {by_room([name for name, _ in frames], joint_ones)}\noracle: '
          f'{by_room([name for name, _ in frames], alone)}')


def by_room(rooms: Sequence[str], good: Sequence[bool]) -> str:
    """How many frames of each room were right, in a line: to compare before and after another room was added."""
    counts = {room: [value for other, value in zip(rooms, good) if other == room] for room in dict.fromkeys(rooms)}
    return ', '.join(f'{room} {sum(values)}/{len(values)}' for room, values in counts.items())


def percent(values: Iterable[bool]) -> float:
    return 100 * float(np.mean(list(values)))


def strangers(folder: Path, places: Sequence[Place], modality: str, most: int) -> None:
    """Of places that are not in the map, and of nothing at all."""
    frames = [frame for _, frame in asked(places, most)]
    height, width = frames[0].image.shape[:2]
    rng = np.random.default_rng(1)
    covered = np.clip(rng.normal(8, 3, (most, height, width, 3)), 0, 255).astype(np.uint8)
    kinds = {'other rooms': frames,
             'noise': [replace(frames[0], image=rng.integers(0, 256, (height, width, 3), np.uint8), stamp_ns=k + 1) for k in range(most)],
             'black': [replace(frames[0], image=np.zeros((height, width, 3), np.uint8), stamp_ns=k + 1) for k in range(most)],
             'covered lens': [replace(frames[0], image=image, stamp_ns=k + 1) for k, image in enumerate(covered)]}
    for kind, those in kinds.items():
        accepted = sum(e.verdict.accepted for e in answers(folder / 'site.dsacmap', [('', frame) for frame in those], modality))
        print(f'{kind}: {accepted} of {len(those)} accepted', flush=True)


def drives(folder: Path, site: str, places: Sequence[Place], modality: str) -> None:
    """Through each place, in the site or not, in order and with what the node remembers from frame to frame."""
    placed = {entry.name: entry.site_from_map_44 for entry in read_manifest(folder / site).entries}
    print(f'{modality}; wrong: more than {WRONG_M} m or {WRONG_DEG} degrees off, or of another place\n'
          '| | frames | accepted % | within 5 cm 5 deg % | wrong |\n|---|---|---|---|---|')
    wholes = {'of the site': Count(), 'of elsewhere': Count()}
    for place in places:
        site_from_map = placed.get(file_name(place))
        frames = (frame if site_from_map is None else replace(frame, map_from_camera=site_from_map @ frame.map_from_camera)
                  for frame in place.asked() if frame.map_from_camera is not None)
        found = counted(Tracker(Localizer.from_map(folder / site, 'cpu')), frames, modality, site_from_map is not None)
        print(drive_row(place.name, found), flush=True)
        whole = wholes['of elsewhere' if site_from_map is None else 'of the site']
        for name, value in asdict(found).items():
            setattr(whole, name, getattr(whole, name) + value)
    for name, whole in wholes.items():
        if whole.frames:
            print(drive_row(name, whole), flush=True)


def drive_row(name: str, found: Count) -> str:
    shares = [f'{100 * value / max(1, found.frames):.1f}' for value in (found.accepted, found.exact)]
    return f'| {name} | {found.frames} | {" | ".join(shares)} | {found.wrong} |'


def write_copies(site_path: Path, count: int, out: Path) -> Path:
    """A map of so many experts, every one with files of its own, made of those of the few."""
    site, manifest = open_site(site_path), read_manifest(site_path)
    generator = torch.Generator().manual_seed(1)
    entries: list[ExpertEntry] = []
    files: dict[str, bytes | Path] = {}
    for index in range(count):
        few = index % len(site.entries)
        entry, each, source = site.entries[few], site.prototypes[few], site_path / site.entries[few].file
        if index >= len(site.entries):
            name = f'{entry.name}-{index}'
            noise = UNLIKE * torch.randn(each.descriptors_MD.shape, generator=generator)
            each = Prototypes(torch.nn.functional.normalize(each.descriptors_MD + noise / each.descriptors_MD.shape[1] ** 0.5, dim=1))
            entry = replace(entry, name=name, file=f'experts/{name}.safetensors', site_from_map=apart(index)[:3].tolist())
        gating = save_tensors(each.tensors())
        entries.append(replace(entry, gating_sha256=sha256(gating)))
        files |= {entry.file: source, entry.gating_file: gating}
    write_bundle(out, replace(manifest, entries=tuple(entries)), files)
    return out


def latency(folder: Path, places: Sequence[Place], counts: Sequence[int], modality: str, most: int, picture: Path | None) -> None:
    """Milliseconds of a frame, of each count in turn frame by frame, so that load on the machine meets all alike."""
    localizers, starts = {}, {}
    frames = [frame for _, frame in islice(asked(places[:1], most), most)]
    shared_encoder('cpu')  # not a part of the start that the number of experts has a say in
    with TemporaryDirectory(dir=folder) as written:
        for count in counts:
            path = write_copies(folder / 'site.dsacmap', count, Path(written) / f'{count}.dsacmap')
            begin = time.perf_counter()
            localizers[count] = Localizer.from_map(path, 'cpu')
            starts[count] = 1e3 * (time.perf_counter() - begin)
        time_frames(localizers, starts, frames, modality, picture)


def time_frames(localizers: dict[int, Localizer], starts: dict[int, float], frames: list[Frame], modality: str,
                picture: Path | None) -> None:
    """Print the table of latency() and draw it."""
    for localizer in localizers.values():
        for frame in frames[:3]:
            localizer.localize(frame, modality)
    counts = list(localizers)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for frame in frames:
        for count, localizer in localizers.items():
            begin = time.perf_counter()
            localizer.localize(frame, modality)
            times[count].append(1e3 * (time.perf_counter() - begin))
    first = np.array(times[counts[0]])
    print('| experts | start [ms] | frame, median [ms] | ratio to the first, median of frames |\n|---|---|---|---|')
    for count in counts:
        print(f'| {count} | {starts[count]:.0f} | {np.median(times[count]):.0f} | {np.median(np.array(times[count]) / first):.2f} |')
    if picture:
        plot(times, picture)


def agree(folder: Path, path: str, modality: str, most: int) -> None:
    """Frames that more than one sub-map accepts by itself: how far apart their poses are, and which of the two is nearer to the truth."""
    site = open_site(folder / 'site.dsacmap')
    frames = [frame for frame in open_source(path, None, require_poses=True) if frame.map_from_camera is not None]
    frames = frames[::max(1, -(-len(frames) // most))]
    poses: list[list[np.ndarray]] = [[] for _ in frames]
    for index in range(len(site.entries)):
        alone = Localizer(site_of(site.read(index)), 'cpu')
        for found, frame in zip(poses, frames):
            estimate = alone.localize(frame, modality)
            if estimate.verdict.accepted:
                found.append(estimate.map_from_camera)
    apart = np.array([pose_error(*pair) for found in poses for pair in combinations(found, 2)]).reshape(-1, 2)
    off = np.array([pose_error(pose, frame.map_from_camera) for found, frame in zip(poses, frames) if len(found) > 1 for pose in found])
    print(f'{modality}: {len(frames)} frames, {sum(len(found) > 0 for found in poses)} accepted by a sub-map, '
          f'{sum(len(found) > 1 for found in poses)} by more than one')
    if len(apart):
        for what, errors in (('apart from each other', apart), ('from the truth', off)):
            median, worst = np.median(errors, axis=0), errors.max(axis=0)
            print(f'{what}: median {100 * median[0]:.2f} cm {median[1]:.2f} deg, at the most {100 * worst[0]:.1f} cm {worst[1]:.1f} deg')


def plot(times: dict[int, list[float]], path: Path) -> None:
    """Frame time by the number of experts: median, and half of the frames around it."""
    counts = list(times)
    low, median, high = np.array([np.percentile(times[count], (25, 50, 75)) for count in counts]).T
    figure = Figure(figsize=(7, 3.5), layout='constrained')
    axes = figure.add_subplot()
    axes.fill_between(counts, low, high, alpha=0.25, label='half of the frames')
    axes.plot(counts, median, marker='o', label='median')
    axes.axhline(1.3 * median[0], color='black', linewidth=0.8, linestyle='--', label=f'1.3 times that of {counts[0]}')
    axes.set(xscale='log', xticks=counts, xticklabels=[str(count) for count in counts], xlabel='experts in the map', ylabel='frame [ms]')
    axes.set_ylim(bottom=0)
    axes.minorticks_off()
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.large_places', description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('make', 'test', 'strangers', 'drives', 'latency', 'gate', 'agree'))
    parser.add_argument('folder', type=Path)
    parser.add_argument('places', nargs='+', help='FOLDER:MAPPED:ASKED[,ASKED] with names of splits, rooms:FIRST-LAST, twins:ROOM; '
                        'agree: a bag or data folder')
    parser.add_argument('--minutes', type=float, default=3.0, help='of mapping each room')
    parser.add_argument('--executor', choices=EXECUTORS, default='local')
    parser.add_argument('--workers', type=int, default=1, help='rooms that are mapped at a time')
    parser.add_argument('--modality', choices=('rgb', 'rgbd'), default='rgb')
    parser.add_argument('--frames', type=int, default=24, help='that are asked about of each place, at the most')
    parser.add_argument('--rate', type=float, default=LOOK.asked_hz, help='frames a second of a drive through a synthetic room')
    parser.add_argument('--counts', type=int, nargs='+', default=[1, 2, 5, 10, 20, 50, 200])
    parser.add_argument('--site', default='site.dsacmap', help='map in the folder that is tested')
    parser.add_argument('--plot', type=Path, help='PNG of latency')
    options = parser.parse_args(arguments)
    try:
        if options.what == 'make':
            return make(options.folder, options.places, options.minutes, options.executor, options.workers)
        if options.what == 'agree':
            agree(options.folder, options.places[0], options.modality, options.frames)
            return 0
        look = replace(LOOK, asked=options.frames, asked_hz=options.rate) if options.what == 'drives' else LOOK
        places = [place for text in options.places for place in places_of(text, look)]
        if options.what == 'test':
            test(options.folder, options.site, places, options.modality, options.frames)
        elif options.what == 'drives':
            drives(options.folder, options.site, places, options.modality)
        elif options.what == 'gate':
            gate(options.folder, places, options.modality, options.frames)
        elif options.what == 'strangers':
            strangers(options.folder, places, options.modality, options.frames)
        else:
            latency(options.folder, places, options.counts, options.modality, options.frames, options.plot)
    except DsacError as error:
        print(f'large_places: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
