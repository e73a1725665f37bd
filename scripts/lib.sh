# Shared by the scripts beside it; source it, do not run it.
#
# After sourcing: the working directory is the project, `need` has a fresh Debian or Ubuntu machine's missing
# packages installed, `build_outfs` sets OUTFS_BIN, `say` prints a heading.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PROJECT=$PWD

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# A C compiler with its headers, for SQLite.
C_COMPILER="gcc=gcc libc6-dev=/usr/include/stdio.h"

# need PACKAGE=PROGRAM…: installs the packages whose programs (or files: /path) are missing. Only root installs;
# others are told.
need() {
    local missing=() item found
    for item; do
        found=${item#*=}
        if [[ $found = /* ]]; then
            [[ -e $found ]] || missing+=("${item%%=*}")
        else
            # Users' PATH often lacks /sbin.
            PATH=$PATH:/usr/sbin:/sbin command -v "$found" >/dev/null || missing+=("${item%%=*}")
        fi
    done
    ((${#missing[@]})) || return 0
    if ((EUID)); then
        fail "missing packages: ${missing[*]}; install them with: sudo apt-get install -y ${missing[*]}"
    fi
    command -v apt-get >/dev/null || fail "missing: ${missing[*]} (no apt-get here to install them)"
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
    command -v cargo >/dev/null || fail "cargo is missing; get Rust from https://rustup.rs"
}

need_fuse() {
    [[ -e /dev/fuse ]] || fail "/dev/fuse is missing: load the fuse module (sudo modprobe fuse), or give the container --device /dev/fuse --cap-add SYS_ADMIN"
    [[ -r /dev/fuse && -w /dev/fuse ]] || fail "/dev/fuse cannot be opened by $(id -un)"
}

# with_uring COMMAND…: runs it while the kernel offers FUSE over io_uring to new mounts; then that is as before.
with_uring() (
    switch=/sys/module/fuse/parameters/enable_uring
    before=$(<"$switch")
    trap 'echo "$before" >"$switch"' EXIT
    trap 'exit 130' INT TERM
    echo Y >"$switch"
    "$@"
)
can_have_uring() { [[ -w /sys/module/fuse/parameters/enable_uring ]]; }

# build_outfs: OUTFS_BIN stays when set; else it is built here. OUTFS_PROFILE is dev or release.
build_outfs() {
    if [[ -z ${OUTFS_BIN-} ]]; then
        local profile=${OUTFS_PROFILE:-dev} directory
        cargo build --quiet --profile "$profile" --bin outfs
        [[ $profile = dev ]] && directory=debug || directory=$profile
        OUTFS_BIN=${CARGO_TARGET_DIR:-$PROJECT/target}/$directory/outfs
    fi
    export OUTFS_BIN
}

# load_program NAME: builds tests/load/NAME.rs with the same profile and sets LOAD to it.
load_program() {
    local profile=${OUTFS_PROFILE:-dev} directory
    cargo build --quiet --profile "$profile" --example "$1"
    [[ $profile = dev ]] && directory=debug || directory=$profile
    LOAD=${CARGO_TARGET_DIR:-$PROJECT/target}/$directory/examples/$1
}
