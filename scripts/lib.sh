# Sourced by scripts/fsd, scripts/test, scripts/check and scripts/bench: the one way to a working environment.
# Sets FSD_ROOT (the checkout). Call `ensure_venv [EXTRAS]`; afterwards "$FSD_PY" is the environment's Python.
# shellcheck shell=bash

FSD_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
FSD_VENV=${FSD_VENV:-$FSD_ROOT/.venv}
FSD_PY=$FSD_VENV/bin/python

say() { printf '%s\n' "$*" >&2; }
die() { say "fsd: $*"; exit 1; }

# apt_install PACKAGE…: installs Debian packages where that is allowed (root, or sudo that asks nothing). Non-zero, with one line, otherwise.
apt_install() {
    local as=()
    command -v apt-get >/dev/null 2>&1 || { say "fsd: this system has no apt-get; please install: $*"; return 1; }
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || { say "fsd: not allowed to install packages; please run: apt-get install $*"; return 1; }
        as=(sudo -n)
    fi
    local env=(env DEBIAN_FRONTEND=noninteractive) log
    log=$(mktemp)
    # The package lists of a fresh image are missing or old, so a first failure is answered by one update.
    if "${as[@]}" "${env[@]}" apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1 ||
        { "${as[@]}" "${env[@]}" apt-get update -q >>"$log" 2>&1 &&
            "${as[@]}" "${env[@]}" apt-get install -y -q --no-install-recommends "$@" >>"$log" 2>&1; }; then
        rm -f "$log"
        return 0
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
    say "fsd: apt-get could not install: $*"
    return 1
}

# mount_packages: the Debian packages that pyfuse3 is built with and that are missing, one a line.
mount_packages() {
    local headers='import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
    command -v pkg-config >/dev/null 2>&1 || echo pkg-config
    command -v cc >/dev/null 2>&1 || printf '%s\n' gcc libc6-dev
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    "${FSD_PYTHON:-python3}" -c "$headers" 2>/dev/null || echo python3-dev
    command -v fusermount3 >/dev/null 2>&1 || echo fuse3
}

# extras_of ARGUMENT…: what the command that they name needs beyond the base. Only a mount needs pyfuse3, and only pyfuse3 needs a compiler;
# without them everything else still works.
extras_of() {
    local word value=
    for word in "$@"; do
        case $value$word in
        --data | --state | --config) value=" " ;; # these take the next word
        " "*) value= ;;
        -*) ;;
        *) [ "$word" != mount ] || echo mount; return ;;
        esac
    done
}

# The interpreter a new environment is made from: $FSD_PYTHON, else python3; at least 3.11.
_base_python() {
    local python=${FSD_PYTHON:-python3}
    command -v "$python" >/dev/null 2>&1 || apt_install python3 python3-venv || die "no Python: install Python 3.11 or newer"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$python" -V 2>&1) is too old: fsd needs Python 3.11 or newer (FSD_PYTHON names another one)"
    printf '%s\n' "$python"
}

_make_venv() {
    local python
    python=$(_base_python) || exit 1
    # Debian keeps ensurepip in a package of its own, python3-venv; without it the first try leaves half an environment.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3-venv || die "Python's venv module is missing: install python3-venv"
    fi
    rm -rf "$FSD_VENV"/{bin,lib,lib64,pyvenv.cfg} "$FSD_VENV"/.stamp-*
    "$python" -m venv "$FSD_VENV" || die "could not make the virtual environment $FSD_VENV"
}

# What an environment is made of: the metadata, what is compiled, and where the checkout is.
_wanted() {
    printf '%s %s\n' "$(cat "$FSD_ROOT"/setup.{cfg,py} "$FSD_ROOT"/fsd/core/*.c | sha256sum)" "$FSD_ROOT"
}

# _stamped EXTRAS: is the environment what setup.cfg asks for? (Any extras contain the base.)
_stamped() {
    local want stamp
    [ -x "$FSD_PY" ] || return 1
    want=$(_wanted)
    for stamp in "$FSD_VENV/.stamp-${1:-}"*; do
        [ -f "$stamp" ] && [ "$(<"$stamp")" = "$want" ] && return 0
    done
    return 1
}

# ensure_venv [EXTRAS]: a virtual environment with this checkout and its pinned dependencies (EXTRAS as in setup.cfg, comma separated).
# One hash and one comparison when nothing changed. Safe to call from several processes at once; an interrupted set-up is done again.
ensure_venv() {
    local extras=${1:-}
    _stamped "$extras" && return 0
    mkdir -p "$FSD_VENV" || die "cannot make $FSD_VENV"
    (
        flock 9 || die "cannot lock $FSD_VENV/.lock"
        _stamped "$extras" && exit 0
        say "fsd: setting up $FSD_VENV${extras:+ ($extras)} …"
        "$FSD_PY" -m pip --version >/dev/null 2>&1 || _make_venv
        "$FSD_PY" -m pip install --quiet --disable-pip-version-check --editable "$FSD_ROOT${extras:+[$extras]}" >&2 ||
            die "pip could not install the dependencies (see above)"
        _wanted >"$FSD_VENV/.stamp-$extras"
    ) 9>"$FSD_VENV/.lock" || exit 1
}
