"""Volumes are found by content, made once, and bounded; artifacts have names nobody can choose."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from isocenter.core.errors import NotFoundError
from isocenter.core.volume import Source, Volume
from isocenter.store.artifacts import ArtifactStore
from isocenter.store.volumes import VolumeStore


def volume(value: int) -> Volume:
    return Volume(np.full((10, 10, 10), value, np.int16))


def test_equal_requests_at_once_read_once() -> None:
    store, calls = VolumeStore(10**6), []

    def make() -> Volume:
        calls.append(1)
        time.sleep(0.05)
        return volume(1)

    found: list[Volume] = []
    threads = [threading.Thread(target=lambda: found.append(store.read("digest", make))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all(v is found[0] for v in found)


def test_least_recently_used_goes_first_with_its_aliases() -> None:
    store = VolumeStore(4500)
    store.read(1, lambda: volume(1))
    store.read(2, lambda: volume(2))
    assert store.find(1) is not None
    store.read(3, lambda: volume(3))
    assert store.find(2) is None
    assert store.find(1) is not None
    assert store.nbytes <= 4500


def test_equal_content_under_two_names_is_one_volume() -> None:
    store = VolumeStore(10**6)
    assert store.read("a", lambda: volume(1)).key == store.read("b", lambda: volume(1)).key
    assert store.nbytes == 2000


def test_equal_voxels_that_came_two_ways_keep_their_own_description() -> None:
    """A series whose slices are numbered backwards has the same voxels; mixing the two up would turn prompts round."""
    store = VolumeStore(10**6)
    store.read("forwards", lambda: volume(1))
    store.read("backwards", lambda: replace(volume(1), source=Source(flipped=True), modality="CT"))
    forwards, backwards = store.find("forwards"), store.find("backwards")
    assert forwards is not None
    assert backwards is not None
    assert (forwards.source.flipped, backwards.source.flipped) == (False, True)
    assert (forwards.modality, backwards.modality) == (None, "CT")
    assert np.shares_memory(forwards.array, backwards.array)


def test_derived_data_is_made_once_and_counted() -> None:
    store, made = VolumeStore(10**6), []
    kept = store.put(volume(1))

    def make() -> NDArray[np.uint8]:
        made.append(1)
        return np.zeros(100, np.uint8)

    for _ in range(2):
        store.derive(kept, "engine", make)
    assert len(made) == 1
    assert store.nbytes == 2100


def test_artifacts(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts", ttl=3600)
    names = {store.put("seg", b"data") for _ in range(50)}
    assert len(names) == 50
    name = names.pop()
    assert store.path(name).read_bytes() == b"data"
    for wrong in ("", "..", f"../artifacts/{name}", f"{name}/", name.upper(), "seg_\0bcdefgh.npz", "/etc/passwd"):
        with pytest.raises(NotFoundError):
            store.path(wrong)
    assert store.sweep() == 0
