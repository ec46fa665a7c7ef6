# Shared by the scripts; source it, don't run it. Installs only what is missing, and undoes its mounts.
# shellcheck shell=bash
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# One target directory for every script, so that nothing is built twice.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$REPO/target}
SUITES=${SUITES:-${XDG_CACHE_HOME:-$HOME/.cache}/envelopefs-suites}

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "needs root for: $* (run as root, or install sudo)"; fi
}

# need COMMAND:PACKAGE...   installs the Debian/Ubuntu packages whose command is not there.
need() {
  local pair missing=()
  for pair in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "please install: ${missing[*]} (no apt-get here)"
  say "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
  command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
  command -v cargo >/dev/null || die "no Rust toolchain: install one from https://rustup.rs"
  need cc:build-essential
}

need_fuse() {
  need fusermount3:fuse3
  [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
  [ -e /dev/fuse ] || die "/dev/fuse is missing: this kernel or container offers no FUSE"
  # What udev gives it; without udev (containers, small machines) ordinary users could not mount.
  [ "$(stat -c %a /dev/fuse)" = 666 ] || as_root chmod 666 /dev/fuse || true
}

# Cleanup: the last registered runs first.
CLEANUPS=()
at_exit() { CLEANUPS=("$*" "${CLEANUPS[@]}"); }
run_cleanups() {
  local status=$? line
  trap - EXIT
  for line in "${CLEANUPS[@]}"; do eval "$line" >/dev/null 2>&1 || true; done
  exit "$status"
}
trap run_cleanups EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# work_dir   makes a temporary directory that goes away at exit, with whatever is mounted in it; sets WORK.
work_dir() {
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/envelopefs.XXXXXX")
  chmod 755 "$WORK"
  at_exit "rm -rf --one-file-system '$WORK'"
  at_exit "unmount_below '$WORK'"
}

# unmount_below DIR   takes every mount below DIR away, innermost first.
unmount_below() {
  local dir=$1 mnt
  awk -v d="$dir/" 'index($2, d) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mnt; do
    fusermount3 -uz "$mnt" 2>/dev/null || umount "$mnt" 2>/dev/null || umount -l "$mnt" 2>/dev/null || true
  done
}

# build_release   builds the release binary once; sets EFS.
build_release() {
  need_rust
  say "building envelopefs (release)"
  cargo build --release --locked --manifest-path "$REPO/Cargo.toml"
  EFS=$CARGO_TARGET_DIR/release/envelopefs
}

# mount_new DIR [OPTIONS]   makes the vault DIR/vault and mounts it on DIR/mnt.
mount_new() {
  local dir=$1 options=${2:-}
  mkdir -p "$dir/mnt"
  "$EFS" init "$dir/vault" --kms-dir "$dir/kms" --kms-key-file
  "$EFS" mount "$dir/vault" "$dir/mnt" --kms-dir "$dir/kms" ${options:+-o "$options"}
}

# suite NAME VERSION   installs a test suite from the crate registry into the cache; prints its path.
suite() {
  [ -x "$SUITES/bin/$1" ] || cargo install --quiet --root "$SUITES" "$1@$2" >&2
  printf '%s\n' "$SUITES/bin/$1"
}
