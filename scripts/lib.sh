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

# variants "$@": takes what the suites that judge mounts have in common, and leaves the rest in REST:
#   --user          as an ordinary user, through fusermount3 (root becomes `nobody` for it)
#   --off FEATURE   mounts do without a feature of the kernel: passthrough, readdirplus, no_open, prune or io_uring
#   --uring         mounts go through io_uring
# VARIANT says which, for people.
variants() {
    AS_USER= URING= VARIANT= REST=()
    while (($#)); do
        case $1 in
            --user) AS_USER=1 VARIANT+=", as an ordinary user" ;;
            --uring)
                URING=1 VARIANT+=", through io_uring"
                # The programs look whether it is so, as with what is off.
                export OUTFS_TEST_WITH=io_uring
                ;;
            --off)
                case ${2-} in
                    passthrough | readdirplus | no_open | prune | io_uring) ;;
                    *) fail "--off takes passthrough, readdirplus, no_open, prune or io_uring" ;;
                esac
                export OUTFS_TEST_WITHOUT=${OUTFS_TEST_WITHOUT:+$OUTFS_TEST_WITHOUT,}$2
                VARIANT+=", without $2"
                shift
                ;;
            *) REST+=("$1") ;;
        esac
        shift
    done
}

# apart SECONDS PROGRAM ARGUMENT…: runs it as root, with $OUTFS_BIN, in a process and mount namespace of its own:
# whatever happens, no daemon and no mount outlives it.
apart() {
    local limit=$1 with=()
    shift
    [[ -z ${URING-} ]] || with=(with_uring)
    "${with[@]}" timeout -k 5 "$limit" unshare --mount --pid --fork --kill-child --mount-proc "$@"
}

# user_place: USER_PLACE is a new directory where an ordinary user may run copies of $OUTFS_BIN and of the programs named.
user_place() {
    USER_PLACE=$(mktemp -d "${TMPDIR:-/tmp}/outfs-user.XXXXXX")
    mkdir "$USER_PLACE/tmp"
    cp "$OUTFS_BIN" "$USER_PLACE/outfs"
    (($# == 0)) || cp "$@" "$USER_PLACE/"
    chmod 755 "$USER_PLACE"
    chown -R nobody "$USER_PLACE"
}

# user_apart SECONDS PROGRAM ARGUMENT…: the same as `nobody`, in USER_PLACE. Some machines give /dev/fuse to root only; here
# there is one for all.
user_apart() {
    local limit=$1
    shift
    apart "$limit" bash -c '
        set -e
        place=$1
        shift
        mknod -m 666 "$place/fuse" c 10 229
        mount --bind "$place/fuse" /dev/fuse
        mountpoint -q /sys/fs/fuse/connections || mount -t fusectl fusectl /sys/fs/fuse/connections
        cd "$place"
        export HOME=$place TMPDIR=$place/tmp OUTFS_BIN=$place/outfs
        exec setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"
    ' - "$USER_PLACE" "$@"
}

# load_apart SECONDS ARGUMENT…: runs the program LOAD as the variant says.
load_apart() {
    local limit=$1
    shift
    if [[ -z ${AS_USER-} ]]; then
        apart "$limit" "$LOAD" "$@"
        return
    fi
    user_place "$LOAD"
    local failed=0
    user_apart "$limit" "$USER_PLACE/$(basename "$LOAD")" "$@" || failed=$?
    rm -rf "$USER_PLACE"
    return $failed
}

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
