"""An archive of a study as a folder: names stay where they are plain, and nothing is ever written outside or over something."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from isocenter.core.errors import InputError, LimitError
from isocenter.core.settings import Limits
from isocenter.io.unpack import unpack


def zipped(tmp_path: Path, *members: tuple[str, bytes]) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, data in members:
            made.writestr(name, data)
    place = tmp_path / "a.zip"
    place.write_bytes(buffer.getvalue())
    return place


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_study_in_one_folder(tmp_path: Path) -> None:
    archive = zipped(tmp_path, ("my study/study.json", b"{}"), ("my study/v 1/scan.nii.gz", b"1"))
    root = unpack(archive, tmp_path / "out", Limits())
    assert root == tmp_path / "out" / "my study"
    assert files(root) == {"study.json": b"{}", "v 1/scan.nii.gz": b"1"}


def test_a_bids_subject_keeps_its_folder(tmp_path: Path) -> None:
    root = unpack(zipped(tmp_path, ("sub-01/ses-1/x.nii", b"1")), tmp_path / "out", Limits())
    assert files(root) == {"sub-01/ses-1/x.nii": b"1"}


def test_odd_names_become_numbers(tmp_path: Path) -> None:
    odd = ("a\nb/x.dcm", b"1"), (".hidden/y.nii.gz", b"2"), ("c" * 300, b"3"), ("/".join("d" * 30), b"4"), ("~/.ssh/z", b"5"), ("-rf", b"6")
    found = files(unpack(zipped(tmp_path, *odd), tmp_path / "out", Limits()))
    assert sorted(found.values()) == [b"1", b"2", b"3", b"4", b"5", b"6"]
    assert all("/" not in name and name[0].isdigit() for name in found)
    assert {name.partition(".")[2] for name in found} >= {"dcm", "nii.gz"}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        archive = zipped(tmp_path, ("x", b"1"), ("x", b"2"), ("x/y", b"3"))
    assert sorted(files(unpack(archive, tmp_path / "out", Limits())).values()) == [b"1", b"2", b"3"]


def test_what_leads_out_is_refused(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/etc/x", "C:/x", "a\\..\\..\\x"):
        with pytest.raises(InputError, match="outside"):
            unpack(zipped(tmp_path, (name, b"1")), tmp_path / "out", Limits())
    assert not (tmp_path / "x").exists()


def test_limits_and_empty_archives(tmp_path: Path) -> None:
    with pytest.raises(LimitError):
        unpack(zipped(tmp_path, *((f"{k}", b"1") for k in range(9))), tmp_path / "out", Limits(max_archive_members=8))
    with pytest.raises(InputError, match="no files"):
        unpack(zipped(tmp_path), tmp_path / "other", Limits())
