"""Changing the experts of a map: new files first, the manifest last and at once, old files after it.

A crash in between leaves the old map or the new one, and perhaps files that no manifest names. No file of another expert is written.
"""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import save as save_tensors

from dsac_ros.errors import MapError
from dsac_ros.maps.bundle import load_expert, load_prototypes, load_training, sha256, write_bundle
from dsac_ros.maps.manifest import FILE, MAX_EXPERTS, ExpertEntry, Manifest, changing, check_name, placed, read_manifest, write_manifest
from dsac_ros.networks.gating import Prototypes

FOLDERS = ('experts', 'gating')


@dataclass(frozen=True)
class Origin:
    """An expert in a map, and the entry that it has where it goes to."""

    path: Path
    entry: ExpertEntry
    goes_to: ExpertEntry

    def files(self) -> dict[str, Path]:
        """Name where it goes to -> file here."""
        names = [('file', True), ('gating_file', True), ('training_file', False)]
        pairs = [(getattr(self.goes_to, name), self.path / getattr(self.entry, name), needed) for name, needed in names]
        return {name: file for name, file, needed in pairs if needed or file.exists()}


def origins(path: Path, site_frame: str, name: str | None = None, site_from_here: np.ndarray | None = None) -> list[Origin]:
    """The experts of a map, checked, on their way to a site.

    Args:
        name: in the site, where the map has one expert. site_from_here: where the frame of the map lies in that of the site; None: they are
            one frame, by their names.
    """
    manifest = read_manifest(path)
    if site_from_here is None and manifest.frame_id != site_frame:
        raise MapError(f'{path}: its poses are in frame {manifest.frame_id!r}, those of the site in {site_frame!r}; say where the one lies '
                       'in the other with --site-from-map')
    if name is not None and len(manifest.entries) > 1:
        raise MapError(f'{path}: has {len(manifest.entries)} experts, a name is for one')
    _check_gating(path, manifest)
    found = []
    for entry in manifest.entries:
        load_expert(path, manifest.frame_id, entry)
        load_prototypes(path, entry)
        moved = entry if site_from_here is None else placed(entry, site_from_here @ entry.site_from_map_44)
        found.append(Origin(path, entry, _renamed(moved, name or entry.name)))
    return found


def check_addable(site: Path, name: str, site_from_map: np.ndarray | None = None) -> Manifest:
    """Raise MapError where add_experts could not add an expert that is still to be made: before the minutes of work and not after.

    Returns the manifest of the site. site_from_map: where the frame of the expert lies in that of the site; None: they are one.
    """
    manifest = read_manifest(site)
    _check_gating(site, manifest)
    new = _renamed(manifest.entries[0], name)
    _distinct([*manifest.entries, new if site_from_map is None else placed(new, site_from_map)])
    for folder in (site, *(site / name for name in FOLDERS)):
        try:
            if folder.is_dir():
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise MapError(f'{folder}: cannot be written: {error.strerror}') from error
    return manifest


def add_experts(site: Path, source: Path, name: str | None = None, site_from_map: np.ndarray | None = None) -> list[str]:
    """Copy the experts of another map into this one; their names here. Raises MapError, and then nothing has changed."""
    with changing(site) as manifest:
        _check_gating(site, manifest)
        added = origins(source, manifest.frame_id, name, site_from_map)
        entries = _distinct([*manifest.entries, *(origin.goes_to for origin in added)])
        for origin in added:
            for target, file in origin.files().items():
                _copy(file, site / target)
        write_manifest(site, replace(manifest, entries=entries))
    return [origin.goes_to.name for origin in added]


def remove_expert(site: Path, name: str) -> None:
    """Raises MapError for a name that is not there, and for the last expert."""
    with changing(site) as manifest:
        gone = manifest.entries[manifest.index(name)]
        if len(manifest.entries) == 1:
            raise MapError(f'{site}: {name!r} is its only expert; remove the folder instead')
        write_manifest(site, replace(manifest, entries=tuple(entry for entry in manifest.entries if entry is not gone)))
        for file in (gone.file, gone.gating_file, gone.training_file):
            (site / file).unlink(missing_ok=True)


def merge_sites(paths: Sequence[Path], out: Path, overwrite: bool = False) -> Manifest:
    """A new map of the experts of several, all in one frame. Raises MapError."""
    frame_id = read_manifest(paths[0]).frame_id
    merged = [origin for path in paths for origin in origins(path, frame_id)]
    manifest = Manifest(frame_id, _distinct([origin.goes_to for origin in merged]))
    write_bundle(out, manifest, {target: file for origin in merged for target, file in origin.files().items()}, overwrite)
    return manifest


def exchange_expert(site: Path, name: str, room: Path, out: Path, overwrite: bool = False) -> Manifest:
    """A new map: that of `site`, with the only expert of `room` in the place of the one of that name. Raises MapError."""
    manifest, (new,) = read_manifest(site), read_manifest(room).entries
    kept = [Origin(site, entry, entry) for entry in manifest.entries]
    index = manifest.index(name)
    old = manifest.entries[index]
    kept[index] = Origin(room, new, replace(new, name=old.name, file=old.file, site_from_map=old.site_from_map))
    changed = replace(manifest, entries=tuple(origin.goes_to for origin in kept))
    write_bundle(out, changed, {target: file for origin in kept for target, file in origin.files().items()}, overwrite)
    return changed


def exchange_gating(site: Path, sets: Sequence[Prototypes], record: dict[str, object], out: Path, overwrite: bool = False) -> Manifest:
    """A new map: that of `site` with other prototypes of its experts, in their order. record: for people, of each. Raises MapError."""
    manifest, entries, files = read_manifest(site), [], {}
    for entry, each in zip(manifest.entries, sets, strict=True):
        data = save_tensors(each.tensors())
        entries.append(replace(entry, gating_sha256=sha256(data)))
        files |= Origin(site, entry, entry).files()
        files[entry.gating_file] = data
        files[entry.training_file] = yaml.safe_dump({**load_training(site, entry), **record}, sort_keys=False).encode()
    changed = replace(manifest, entries=tuple(entries))
    write_bundle(out, changed, files, overwrite)
    return changed


def problems(site: Path) -> list[str]:
    """Everything that is wrong with a map, in words; empty when all is well. Raises MapError where the manifest cannot be read."""
    manifest, found = read_manifest(site), []
    for entry in manifest.entries:
        try:
            load_expert(site, manifest.frame_id, entry)
            if entry.gating_sha256:
                load_prototypes(site, entry)
            elif len(manifest.entries) > 1:
                found.append(f'{site}: expert {entry.name!r} has no gating file to tell it from others; map it again with this version')
        except MapError as error:
            found.append(str(error))
    named = {site / file for entry in manifest.entries for file in (entry.file, entry.gating_file, entry.training_file)}
    there = {file for folder in FOLDERS for file in (site / folder).glob('*')} | {file for file in site.glob(f'.{FILE}.*')}
    return found + [f'{file}: no expert of the manifest; left over, it may be removed' for file in sorted(there - named)]


def _check_gating(path: Path, manifest: Manifest) -> None:
    """Raise MapError where an expert cannot be told from others."""
    for entry in manifest.entries:
        if not entry.gating_sha256:
            raise MapError(f'{path}: expert {entry.name!r} has no gating file to tell it from others; map it again with this version')


def _renamed(entry: ExpertEntry, name: str) -> ExpertEntry:
    return replace(entry, name=check_name(name), file=f'experts/{name}.safetensors')


def _distinct(entries: Sequence[ExpertEntry]) -> tuple[ExpertEntry, ...]:
    names, files = [entry.name for entry in entries], [entry.file for entry in entries]
    twice = sorted({name for name, file in zip(names, files) if names.count(name) > 1 or files.count(file) > 1})
    if twice:
        raise MapError(f'two experts would be called {twice[0]!r}; give the new one another name, or remove the old one first')
    if len(entries) > MAX_EXPERTS:
        raise MapError(f'{len(entries)} experts would be in one map, expected at most {MAX_EXPERTS}')
    return tuple(entries)


def _copy(source: Path, target: Path) -> None:
    draft = target.with_name(f'.{target.name}.{os.getpid()}')
    try:
        target.parent.mkdir(exist_ok=True)
        with source.open('rb') as read, draft.open('wb') as write:
            shutil.copyfileobj(read, write)
            write.flush()
            os.fsync(write.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise MapError(f'{target}: cannot be written: {error.strerror}') from error
    finally:
        draft.unlink(missing_ok=True)
