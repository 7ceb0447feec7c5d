"""Archives as streams: what others read in them, and that their length is known before."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile

import pytest

from dav.http import archives
from dav.http.archives import Member

MEMBERS = [
    Member(b"top", True, 0, 1_600_000_000),
    Member("top/ü & <".encode(), False, 5, 1_600_000_000, executable=True),
    Member(b"top/bad\xff", False, 3, 0),
    Member(b"top/bad\xfe", False, 3, 9_999_999_999),
    Member(b"top/" + b"long/" * 40 + b"x", False, 1500, 1),
    Member(b"top/empty", False, 0, 1_600_000_000),
    *(Member(b"top/%d" % index, False, 600, 1_600_000_000) for index in range(5)),
]


def content(number: int) -> list[bytes]:
    size = MEMBERS[number].size
    return [bytes([number]) * (size // 2), bytes([number]) * (size - size // 2)]


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 1000])
def test_zip(monkeypatch, tmp_path, limit):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    data = b"".join(archives.zip_pieces(MEMBERS, content))
    assert len(data) == archives.zip_length(MEMBERS)
    assert data == b"".join(archives.zip_pieces(MEMBERS, content))
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None
        names = found.namelist()
        assert names[:4] == ["top/", "top/ü & <", "top/bad\ufffd", "top/bad\ufffd (2)"]
        assert found.read("top/ü & <") == b"\1" * 5 and found.infolist()[1].external_attr >> 16 == 0o100755
        assert [info.file_size for info in found.infolist()] == [member.size for member in MEMBERS]
        assert found.infolist()[1].date_time == (2020, 9, 13, 12, 26, 40)
    (tmp_path / "a.zip").write_bytes(data)
    assert (
        subprocess.run(["python3", "-m", "zipfile", "-t", tmp_path / "a.zip"], capture_output=True).returncode
        == 0
    )


def test_more_files_than_an_old_zip_counts(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5)
    data = b"".join(archives.zip_pieces(MEMBERS, content))
    assert len(data) == archives.zip_length(MEMBERS)
    assert len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == len(MEMBERS)


def test_tar(tmp_path):
    data = b"".join(archives.tar_pieces(MEMBERS, content))
    assert len(data) == archives.tar_length(MEMBERS)
    (tmp_path / "a.tar").write_bytes(data)
    subprocess.run(["tar", "-xf", tmp_path / "a.tar", "-C", tmp_path], check=True)
    for number, member in enumerate(MEMBERS):
        path = tmp_path / member.name.decode("utf-8", "surrogateescape")
        assert path.is_dir() if member.folder else path.read_bytes() == b"".join(content(number))
    assert tarfile.open(fileobj=io.BytesIO(data)).getmembers()[1].mode == 0o755


def test_parts():
    data = b"".join(archives.tar_pieces(MEMBERS, content))
    for offset, count in ((0, 1), (511, 2), (700, 3000), (len(data) - 5, 5)):
        assert (
            b"".join(archives.part(archives.tar_pieces(MEMBERS, content), offset, count))
            == data[offset:][:count]
        )
