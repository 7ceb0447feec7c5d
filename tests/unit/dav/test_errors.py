"""The error table: every domain error has a status, and doubt is never 404."""

from __future__ import annotations

import errno
import os

import pytest
from lxml import etree

from dav.http.errors import HttpError, error_body, from_os_error, status_of
from fsd.core import errors as core

EXPECTED = {
    core.StorageUnavailable: 503,
    core.NotYetKnown: 503,
    core.Elsewhere: 503,
    core.DatabaseDamaged: 503,
    core.SpaceDisabled: 404,
    core.QuotaExceeded: 507,
    core.PreconditionFailed: 412,
    core.Locked: 423,
    core.NameRefused: 400,
    core.Forbidden: 403,
    core.ReadOnlySpace: 403,
    core.AcrossMounts: 403,
    core.ParentMissing: 409,
}


def test_every_domain_error_has_a_status():
    kinds = {
        kind for kind in vars(core).values() if isinstance(kind, type) and issubclass(kind, core.FsdError)
    }
    assert kinds - {core.FsdError} == set(EXPECTED)
    for kind, status in EXPECTED.items():
        assert status_of(kind("x")) == status


def test_only_proven_absence_is_404():
    absent = {code for code in errno.errorcode if status_of(OSError(code, os.strerror(code))) == 404}
    assert absent == {errno.ENOENT, errno.ENOTDIR}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disks_are_507(code):
    assert status_of(OSError(code, "full")) == 507


def test_unavailable_says_when_to_come_back():
    assert ("Retry-After", "5") in from_os_error(core.StorageUnavailable("gone")).headers


def test_paths_on_disk_are_not_told():
    error = from_os_error(FileNotFoundError(errno.ENOENT, "No such file", "/secret/path"))
    assert "secret" not in error.sentence


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (errno.EROFS, 403, "read-only"),
        (errno.EACCES, 403, "server's own user"),
        (errno.EPERM, 403, "server's own user"),
        (errno.EFBIG, 507, "larger"),
        (errno.ENAMETOOLONG, 400, "too long"),
        (errno.EDQUOT, 507, "quota"),
    ],
)
def test_what_the_disk_refuses_is_said(code, status, said):
    error = from_os_error(OSError(code, "strerror", "/secret/path"))
    assert error.status == status and said in error.sentence and "secret" not in error.sentence


def test_bodies_are_xml_with_the_message():
    root = etree.fromstring(error_body(HttpError(423, "a < b & c", "no-conflicting-lock")))
    assert root.find("{http://sabredav.org/ns}message").text == "a < b & c"
    assert root.find("{http://sabredav.org/ns}exception").text == "Sabre\\DAV\\Exception\\Locked"
    assert root.find("{DAV:}no-conflicting-lock") is not None
