"""Objects in a bucket of an S3 server (MinIO, AWS, Swift ...), by obstore: streamed, in parts where they are large.

S3 shows an object only when its last part is there. A small one is written on the condition that there is none of its name.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from isocenter.core.errors import NotFoundError, StoreError
from isocenter.store.objects import _AWAY, Stored, checked, source, valid
from isocenter.store.presign import presigned

if TYPE_CHECKING:
    from isocenter.core.settings import Settings

T = TypeVar("T")
#: What is larger goes up in parts of this size.
PART = 8 << 20
#: Seconds after which an object that is there is written once more when it is put: S3 has no other way to say that it is wanted again.
_FRESH = 3600.0
#: Seconds that one request may take, and all its attempts together.
_REQUEST, _ALL = 60, 8


class Bucket:
    """See `Objects`. The bucket is made where there is none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = self._open(settings.minio_endpoint or "")
        self._made = False

    def _open(self, endpoint: str) -> Any:
        from obstore.store import S3Store

        chosen = self._settings
        endpoint = self._address(endpoint)
        return S3Store(
            chosen.minio_bucket_name,
            endpoint=endpoint,
            access_key_id=chosen.minio_access_key,
            secret_access_key=chosen.minio_secret_key,
            region=chosen.minio_region,
            virtual_hosted_style_request=False,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "timeout": timedelta(seconds=_REQUEST),
                "connect_timeout": timedelta(seconds=3),
            },
            retry_config={
                "max_retries": 4,
                "retry_timeout": timedelta(seconds=_ALL),
                "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
            },
        )

    def _address(self, endpoint: str) -> str:
        if "://" not in endpoint:
            endpoint = f"{'https' if self._settings.minio_secure else 'http'}://{endpoint}"
        return endpoint.rstrip("/")

    def put(self, data: bytes | Path | BinaryIO, digest: str | None = None) -> Stored:
        """See `Objects`."""
        import obstore

        with source(data, digest) as (file, stored):
            there = None
            with suppress(NotFoundError):
                there = self.written(stored.digest)
            if there is not None and time.time() - there < _FRESH:
                return stored
            self._make()
            name = _name(stored.digest)
            if stored.bytes <= PART:
                content = file.read()
                how = "create" if there is None else "overwrite"
                with suppress(obstore.exceptions.AlreadyExistsError):
                    _asked(lambda: obstore.put(self._store, name, content, mode=how))
            else:
                _asked(lambda: obstore.put(self._store, name, file, chunk_size=PART, max_concurrency=2))
                if self.size(stored.digest) != stored.bytes:
                    raise StoreError(_AWAY)
        return stored

    def has(self, digest: str) -> bool:
        """See `Objects`."""
        with suppress(NotFoundError):
            self.size(digest)
            return True
        return False

    def size(self, digest: str) -> int:
        """See `Objects`."""
        return int(self._head(digest)["size"])

    def written(self, digest: str) -> float:
        """See `Objects`."""
        return float(self._head(digest)["last_modified"].timestamp())

    def _head(self, digest: str) -> Any:
        import obstore

        return _asked(lambda: obstore.head(self._store, _name(digest)))

    def read(self, digest: str) -> Iterator[bytes]:
        """See `Objects`."""
        import obstore

        answer = _asked(lambda: obstore.get(self._store, _name(digest)))
        yield from checked(_pieces(iter(answer.stream(min_chunk_size=1 << 20))), digest)

    def fetch(self, digest: str, folder: Path) -> Path:
        """See `Objects`: a copy in `folder`."""
        path = folder / valid(digest)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as out:
                for piece in self.read(digest):
                    out.write(piece)
            part.replace(path)
        except OSError:
            raise StoreError("the disk is full or cannot be written to") from None
        return path

    def link(self, digest: str, *, name: str, media_type: str, seconds: int = 3600) -> str | None:
        """A signed address at the server's public name, where that is set: its inner one may be none that clients know."""
        chosen = self._settings
        if not chosen.minio_public_endpoint:
            return None
        return presigned(
            f"{self._address(chosen.minio_public_endpoint)}/{chosen.minio_bucket_name}/{_name(digest)}",
            access_key=chosen.minio_access_key,
            secret_key=chosen.minio_secret_key,
            region=chosen.minio_region,
            seconds=seconds,
            query={"response-content-disposition": f'attachment; filename="{name}"', "response-content-type": media_type},
        )

    def delete(self, digest: str) -> None:
        """See `Objects`."""
        import obstore

        with suppress(NotFoundError):
            _asked(lambda: obstore.delete(self._store, _name(digest)))

    def items(self) -> Iterator[tuple[Stored, float]]:
        """See `Objects`."""
        import obstore

        for page in _pages(_asked(lambda: obstore.list(self._store, "objects"))):
            for entry in page:
                yield Stored(entry["path"].rsplit("/", 1)[-1], int(entry["size"])), entry["last_modified"].timestamp()

    def check(self) -> None:
        """See `Objects`."""
        import obstore

        self._make()
        _asked(lambda: obstore.put(self._store, "probe", b"\0"))

    def _make(self) -> None:
        """Make the bucket. obstore cannot, but it can sign the request that does."""
        import obstore

        if self._made:
            return
        address = obstore.sign(self._store, "PUT", "", timedelta(minutes=5))
        request = urllib.request.Request(address, method="PUT")  # noqa: S310 - the configured server's own address
        try:
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310
                pass
        except urllib.error.HTTPError as error:
            # 409: it is there already. 403: it may be there, for one who may not make any; writing will tell.
            if error.code not in (403, 409):
                raise StoreError(_AWAY) from None
        except OSError:
            raise StoreError(_AWAY) from None
        self._made = True


class Shelf:
    """Result files under names of their own, beside the objects: what one server made, another hands out."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = Bucket(settings)

    def put(self, name: str, path: Path) -> None:
        """Keep a file."""
        import obstore

        self._bucket._make()
        _asked(lambda: obstore.put(self._bucket._store, f"files/{name}", path))

    def read(self, name: str) -> Iterator[bytes]:
        """Its bytes, piece by piece. Raises `NotFoundError`."""
        import obstore

        answer = _asked(lambda: obstore.get(self._bucket._store, f"files/{name}"))
        yield from _pieces(iter(answer.stream(min_chunk_size=1 << 20)))

    def delete(self, name: str) -> None:
        """Forget it."""
        import obstore

        with suppress(NotFoundError):
            _asked(lambda: obstore.delete(self._bucket._store, f"files/{name}"))

    def items(self) -> Iterator[tuple[str, int, float]]:
        """Name, bytes and when it was written (seconds since 1970)."""
        import obstore

        self._bucket._make()
        for page in _pages(_asked(lambda: obstore.list(self._bucket._store, "files"))):
            for entry in page:
                yield entry["path"].rsplit("/", 1)[-1], int(entry["size"]), entry["last_modified"].timestamp()


def _name(digest: str) -> str:
    return f"objects/{valid(digest)[:2]}/{digest}"


def _asked(work: Callable[[], T]) -> T:
    """`work`, with what the library raises turned into our own; its words hold addresses and keys."""
    import obstore
    from obstore import exceptions

    try:
        return work()
    except (exceptions.NotFoundError, FileNotFoundError):
        raise NotFoundError("there is no such file (any more)") from None
    except exceptions.AlreadyExistsError:
        raise
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise StoreError("the object store refuses the access key; see MINIO_ACCESS_KEY and MINIO_SECRET_KEY") from None
    except (obstore.exceptions.BaseError, OSError):
        raise StoreError(_AWAY) from None


def _pieces(stream: Iterator[Any]) -> Iterator[bytes]:
    """The pieces of an answer."""
    end: Any = object()
    while (piece := _asked(lambda: next(stream, end))) is not end:
        yield bytes(piece)


def _pages(stream: Any) -> Iterator[list[Any]]:
    pages = iter(stream)
    end: Any = object()
    while (page := _asked(lambda: next(pages, end))) is not end:
        yield page
