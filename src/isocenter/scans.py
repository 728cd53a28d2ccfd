"""A scan comes in: decoded once, however often and whichever way the same bytes come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from isocenter.core.errors import NotFoundError
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.io import door, picture
from isocenter.io.upload import Upload
from isocenter.runtime import cached
from isocenter.store.volumes import VolumeStore


class Scans:
    """The scans of one server. volumes: those that are decoded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.volumes = VolumeStore(settings.volume_cache_bytes)

    def open(self, upload: Upload, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> Volume:
        """The volume in an upload; decoded once, however often the same bytes come. `window`: see `picture.to_hounsfield`."""

        def read(modality: str | None) -> Volume:
            return door.read_upload(upload, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.read((upload.digest, upload.suffix, series_uid, modality, window), lambda: _windowed(read, modality, window))

    def keep(self, upload: Upload, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> tuple[str, Volume]:
        """As `open`, and a key by which later requests may name it: of the bytes and of how they were read, never of a name."""
        volume = self.open(upload, series_uid=series_uid, modality=modality, window=window)
        how = repr((upload.digest, upload.suffix, series_uid, modality, window))
        key = hashlib.sha256(how.encode()).hexdigest()[:32]
        return key, self.volumes.put(volume, ("kept", key))

    def kept(self, key: str) -> Volume:
        """What `keep` gave a key to. Raises `NotFoundError` when it is gone."""
        volume = self.volumes.find(("kept", key))
        if volume is None:
            raise NotFoundError(
                "no scan is kept under this key, or not any more; send it again (behind a balancer with several servers: have it send "
                "a client always to the same one)"
            )
        return volume

    def known(
        self, digest: str, suffix: str, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None
    ) -> Volume | None:
        """The volume that was made of the same bytes in the same way before, if it is still here; nothing is decoded."""
        return self.volumes.find((digest, suffix, series_uid, modality, window))

    def open_stored(
        self, path: Path, digest: str, suffix: str, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None
    ) -> Volume:
        """As `open`, for an upload that was kept as a file: found again under the same digest, whichever way it comes."""

        def read(modality: str | None) -> Volume:
            return door.read_path(path, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.read((digest, suffix, series_uid, modality, window), lambda: _windowed(read, modality, window))

    def open_path(self, path: Path, *, series_uid: str | None = None, modality: str | None = None, window: str | None = None) -> Volume:
        """The volume in a file or a folder of this machine; of files alone also scans that were cached for networks, see `runtime.cached`."""

        def read(modality: str | None) -> Volume:
            if path.suffix in cached.SUFFIXES and not path.is_dir():
                return cached.read(path, self.settings, modality)
            return door.read_path(path, limits=self.settings, series_uid=series_uid, modality=modality)

        return self.volumes.put(_windowed(read, modality, window))


def _windowed(read: Callable[[str | None], Volume], modality: str | None, window: str | None) -> Volume:
    """What `read` gives for a modality; with a window, a picture as the CT that it shows."""
    if window is None:
        return read(modality)
    picture.check_window(window, modality)
    return picture.to_hounsfield(read(None), window)
