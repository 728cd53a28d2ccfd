"""Fetching, from a real server that breaks off, lies, refuses and sends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from isocenter.core.errors import ModelError
from isocenter.io import fetch
from isocenter.io.fetch import FetchError, Wanted
from tests.io.hub import Hub, serving

DATA = np.random.default_rng(0).bytes(3_500_001)
SHA256 = hashlib.sha256(DATA).hexdigest()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 375042383\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(fetch, "_delay", lambda idle: 0.01)
    with serving() as found:
        found.files["/w.bin"] = DATA
        yield found


def wanted(hub: Hub, **known: object) -> Wanted:
    return Wanted(f"{hub.url}/w.bin", "w.bin", **known)  # type: ignore[arg-type]


def test_a_file_is_hashed_on_the_way_and_progress_is_told(hub: Hub, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    came = fetch.download(wanted(hub, sha256=SHA256, bytes=len(DATA)), tmp_path / "w.bin", lambda done, total: told.append((done, total)))
    assert (came.sha256, came.bytes, came.stated) == (SHA256, len(DATA), None)
    assert (tmp_path / "w.bin").read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["w.bin"]
    assert told[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_it_goes_on_where_the_connection_broke_off(hub: Hub, tmp_path: Path) -> None:
    hub.drop = 3
    came = fetch.download(wanted(hub, sha256=SHA256), tmp_path / "w.bin")
    assert came.sha256 == SHA256
    starts = [int(asked[6:-1]) for asked in hub.ranges_asked()]
    assert len(starts) == 3
    assert starts == sorted(starts)
    assert starts[0] > len(DATA) // 3


def test_another_process_goes_on_with_what_came(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_TRIES", 1)
    hub.drop = 1
    monkeypatch.setattr(fetch, "_pause_or_raise", lambda error, url, idle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch.download(wanted(hub), tmp_path / "w.bin")
    assert (tmp_path / "w.bin.part").stat().st_size == len(DATA) // 2
    monkeypatch.undo()
    fetch.download(wanted(hub, sha256=SHA256), tmp_path / "w.bin")
    assert hub.ranges_asked() == [f"bytes={len(DATA) // 2}-"]


def test_a_file_that_has_changed_meanwhile_begins_anew(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "w.bin.part.json").write_text(f'{{"url": "{hub.url}/w.bin", "validator": "\\"of another file\\""}}')
    assert fetch.download(wanted(hub), tmp_path / "w.bin").sha256 == SHA256
    assert hub.ranges_asked() == ["bytes=1000-"]


def test_a_server_that_cannot_go_on_in_the_middle(hub: Hub, tmp_path: Path) -> None:
    hub.drop, hub.ranges = 2, False
    assert fetch.download(wanted(hub), tmp_path / "w.bin").sha256 == SHA256


def test_all_bytes_came_but_the_last_answer_was_lost(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(DATA)
    etag = hashlib.md5(DATA).hexdigest()
    (tmp_path / "w.bin.part.json").write_text(f'{{"url": "{hub.url}/w.bin", "validator": "\\"{etag}\\""}}')
    assert fetch.download(wanted(hub, sha256=SHA256), tmp_path / "w.bin").bytes == len(DATA)


@pytest.mark.parametrize(
    ("content", "known", "says"),
    [
        (DATA, {"sha256": "ab" * 32}, "hash"),
        (DATA, {"md5": "ab" * 16}, "MD5"),
        (DATA[:-5], {"bytes": len(DATA)}, f"{len(DATA) - 5} bytes"),
        (POINTER, {}, "Git LFS"),
        (b"\n<!DOCTYPE html><html>log in", {}, "web page"),
    ],
)
def test_what_is_not_the_file_is_not_kept(hub: Hub, tmp_path: Path, content: bytes, known: dict[str, object], says: str) -> None:
    hub.files["/w.bin"] = content
    with pytest.raises(ModelError, match=says):
        fetch.download(wanted(hub, **known), tmp_path / "w.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_cut_file_of_unknown_length_is_seen_by_its_hash(hub: Hub, tmp_path: Path) -> None:
    hub.drop, hub.length = 1, False
    with pytest.raises(ModelError, match="not kept"):
        fetch.download(wanted(hub, sha256=SHA256), tmp_path / "w.bin")
    assert fetch.download(wanted(hub, sha256=SHA256), tmp_path / "w.bin").bytes == len(DATA)


@pytest.mark.parametrize(("token", "status", "says"), [(None, 401, "HF_TOKEN"), ("wrong", 403, "conditions")])
def test_a_server_that_wants_an_account(hub: Hub, tmp_path: Path, token: str | None, status: int, says: str) -> None:
    hub.token = "right"
    with pytest.raises(FetchError, match=says) as told:
        fetch.download(wanted(hub, token=token), tmp_path / "w.bin")
    assert told.value.status == status
    assert len(hub.asked) == 1  # asking again would not help
    assert fetch.download(wanted(hub, token="right"), tmp_path / "w.bin").sha256 == SHA256


def test_what_is_not_there_and_a_server_that_is_busy(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no such file") as told:
        fetch.download(Wanted(f"{hub.url}/absent", "absent"), tmp_path / "absent")
    assert told.value.status == 404
    hub.refuse = [503, 429]
    assert fetch.download(wanted(hub), tmp_path / "w.bin").sha256 == SHA256
    hub.refuse = [503] * 20
    with pytest.raises(FetchError, match="503"):
        fetch.download(wanted(hub), tmp_path / "w.bin")


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_delay", lambda idle: 0.01)
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch.download(Wanted("http://127.0.0.1:9/w", "w"), tmp_path / "w")
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/w"):
        with pytest.raises(FetchError, match="only http"):
            fetch.download(Wanted(url, "w"), tmp_path / "w")


def test_a_redirect_to_another_host_gets_no_token_and_states_the_hash(hub: Hub, tmp_path: Path) -> None:
    with serving() as store:
        store.files["/store/blob"] = DATA
        hub.token = "secret"
        hub.linked["/w.bin"] = f"{store.url}/store/blob"
        came = fetch.download(wanted(hub, token="secret"), tmp_path / "w.bin")
        assert (came.sha256, came.stated) == (SHA256, SHA256)
        assert [authorization for _, _, authorization in hub.asked] == ["Bearer secret"]
        assert [authorization for _, _, authorization in store.asked] == [""]
        store.files["/store/blob"] = DATA[:-1] + b"?"
        with pytest.raises(ModelError, match="states"):
            fetch.download(wanted(hub, token="secret"), tmp_path / "again.bin")


def test_it_goes_on_behind_a_redirect(hub: Hub, tmp_path: Path) -> None:
    with serving() as store:
        store.files["/store/blob"] = DATA
        store.drop = 2
        hub.linked["/w.bin"] = f"{store.url}/store/blob"
        assert fetch.download(wanted(hub, sha256=SHA256), tmp_path / "w.bin").bytes == len(DATA)
        assert len(store.ranges_asked()) == 2
        assert len(hub.asked) == 3  # the address behind it is good for once only, so it is asked for each time


def test_a_redirect_to_something_that_is_no_web_address_is_not_followed(hub: Hub, tmp_path: Path) -> None:
    hub.linked["/w.bin"] = "file:///etc/passwd"
    with pytest.raises(ModelError, match="safe"):
        fetch.download(wanted(hub), tmp_path / "w.bin")


def test_a_disk_without_room_is_said_before_anything_is_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000})())
    with pytest.raises(ModelError, match="free on this disk"):
        fetch.download(wanted(hub), tmp_path / "w.bin")


def test_small_files_have_a_limit(hub: Hub) -> None:
    hub.drop = 2
    assert fetch.get(f"{hub.url}/w.bin")[0] == DATA
    with pytest.raises(FetchError, match="small file"):
        fetch.get(f"{hub.url}/w.bin", limit=1000)
