"""Objects by their content, in a folder and in a bucket of Swift's S3 API."""

from __future__ import annotations

import io
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3

from isocenter.core.errors import NotFoundError, StoreError
from isocenter.core.settings import Settings
from isocenter.jobs.backend import Backend
from isocenter.store.artifacts import SharedArtifacts, open_artifacts
from isocenter.store.objects import Folder, Objects
from isocenter.store.presign import presigned
from isocenter.store.s3 import PART, Bucket
from tests.jobs.servers import Swift


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "folder":
        return Folder(tmp_path / "objects")
    return Bucket(request.getfixturevalue("swift").settings(tmp_path, f"b{blake3(request.node.name.encode()).hexdigest()[:12]}"))


def test_what_goes_in_comes_out(objects: Objects, tmp_path: Path) -> None:
    for data in (b"", b"small", os.urandom(PART + 1_500_000)):
        path = tmp_path / "file"
        path.write_bytes(data)
        stored = objects.put(path)
        assert (stored.digest, stored.bytes) == (blake3(data).hexdigest(), len(data))
        assert objects.put(data) == stored
        assert objects.put(io.BytesIO(data), stored.digest) == stored
        assert b"".join(objects.read(stored.digest)) == data
        assert objects.fetch(stored.digest, tmp_path).read_bytes() == data
        assert objects.size(stored.digest) == len(data)
        assert [s for s, _ in objects.items() if s.digest == stored.digest] == [stored]
        objects.delete(stored.digest)
        objects.delete(stored.digest)
        assert not objects.has(stored.digest)
        with pytest.raises(NotFoundError):
            list(objects.read(stored.digest))
    objects.check()


def test_no_name_from_outside_becomes_a_path(objects: Objects) -> None:
    for name in ("", "..", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "/", "\0" * 64):
        with pytest.raises(NotFoundError):
            objects.size(name)


def test_many_writers_of_one_file_leave_one(objects: Objects) -> None:
    data = os.urandom(300_000)
    threads = [threading.Thread(target=objects.put, args=(data,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [s.bytes for s, _ in objects.items()] == [300_000]


def test_a_file_that_rotted_is_not_handed_out(tmp_path: Path) -> None:
    objects = Folder(tmp_path)
    stored = objects.put(b"right" * 1000)
    path = objects.fetch(stored.digest, tmp_path)
    path.chmod(0o600)
    path.write_bytes(b"wrong" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        objects.fetch(stored.digest, tmp_path)
    pieces = objects.read(stored.digest)
    with pytest.raises(StoreError, match="damaged"):
        next(pieces)  # the only piece, held back until it is known to be right


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 2**20:
                raise OSError(28, "No space left on device")
            return super().read(size)

    objects = Folder(tmp_path)
    data = b"z" * (3 * 2**20)
    with pytest.raises(StoreError, match="full"):
        objects.put(Breaks(data), blake3(data).hexdigest())
    with pytest.raises(StoreError, match="changed"):
        objects.put(io.BytesIO(b"other"), blake3(data).hexdigest())
    assert list(objects.items()) == []
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_nearly_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nearly full"):
        Folder(tmp_path, min_free_bytes=2**60).check()


def test_links_are_signed_for_the_address_that_clients_know(swift: Swift, tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    bucket = Bucket(swift.settings(tmp_path, "links", minio_public_endpoint=f"http://localhost:{swift.port}"))
    stored = bucket.put(b"for a client")
    link = bucket.link(stored.digest, name="a.txt", media_type="text/plain")
    assert link is not None
    assert link.startswith(f"http://localhost:{swift.port}/")
    with urllib.request.urlopen(link, timeout=20) as answer:
        assert answer.read() == b"for a client"
        # Saved under its name, not under its digest.
        assert answer.headers["Content-Disposition"] == 'attachment; filename="a.txt"'
        assert answer.headers["Content-Type"].split(";")[0] == "text/plain"
    for forged in (link.replace("a.txt", "b.txt"), link.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000")):
        assert forged != link
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(forged, timeout=20)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(link.replace("X-Amz-Signature=", "X-Amz-Signature=0"), timeout=20)
    assert Bucket(swift.settings(tmp_path, "links")).link(stored.digest, name="a", media_type="b") is None


def test_a_signature_is_that_of_the_standards_own_example() -> None:
    """The S3 API reference's presigned GET of test.txt in examplebucket, of 24 May 2013."""
    for port in ("", ":443"):  # a port that the scheme implies is left out, as clients do
        link = presigned(
            f"https://examplebucket.s3.amazonaws.com{port}/test.txt",
            access_key="AKIAIOSFODNN7EXAMPLE",
            secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            region="us-east-1",
            seconds=86400,
            now=datetime(2013, 5, 24, tzinfo=UTC),
        )
        assert link.startswith("https://examplebucket.s3.amazonaws.com/test.txt?")
        assert link.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


def _shared(settings: Settings) -> SharedArtifacts:
    made = open_artifacts(settings)
    assert isinstance(made, SharedArtifacts)
    return made


def test_result_files_of_one_server_are_handed_out_by_another(swift: Swift, tmp_path: Path) -> None:
    one, two = (_shared(swift.settings(tmp_path / name, "shelf", artifact_ttl="0.000001")) for name in ("one", "two"))
    name = one.put("mask", b"made by one", ".nii.gz")
    assert one.path(name).read_bytes() == two.path(name).read_bytes() == b"made by one"
    assert one.path(name) != two.path(name)
    with pytest.raises(NotFoundError):
        two.path("mask_AAAAAAAA.npz")
    deadline = time.monotonic() + 60
    while one.files() or two.files() or any(True for _ in one.shelf.items()):
        assert time.monotonic() < deadline
        one.sweep()
        two.sweep()
    with pytest.raises(NotFoundError):
        two.path(name)


def test_a_full_disk_of_a_server_whose_files_lie_elsewhere_is_said(swift: Swift, tmp_path: Path) -> None:
    backend = Backend(swift.settings(tmp_path, "elsewhere", min_free_bytes=str(2**60)))
    backend.objects.check()
    with pytest.raises(StoreError, match="nearly full"):
        backend.check()
    assert not backend.writable
    backend.close()


def test_a_wrong_key_is_refused_in_words_that_hold_no_key(swift: Swift, tmp_path: Path) -> None:
    bucket = Bucket(swift.settings(tmp_path, "wrong", minio_secret_key="not-the-secret"))
    with pytest.raises(StoreError) as caught:
        bucket.put(b"x")
    assert "not-the-secret" not in caught.value.message


def test_a_store_that_is_away_is_said_and_comes_back(swift: Swift, tmp_path: Path) -> None:
    bucket = Bucket(swift.settings(tmp_path, "away"))
    stored = bucket.put(b"before")
    swift.kill()
    started = time.monotonic()
    with pytest.raises(StoreError, match="cannot be reached"):
        bucket.put(b"while it is away")
    assert time.monotonic() - started < 120
    swift.start()
    assert bucket.has(stored.digest)
    assert b"".join(bucket.read(bucket.put(b"after").digest)) == b"after"
