#!/usr/bin/env bash
# snapshot-btrfs.sh make VAULT    a read-only snapshot of the Btrfs subvolume that the vault lies in; prints the vault's path in it
# snapshot-btrfs.sh remove PATH   removes that snapshot again
# For `envelopefs backup run --snapshot-hook`. A hook for LVM or ZFS has the same two commands.
set -euo pipefail
die() { echo "snapshot-btrfs.sh: $*" >&2; exit 1; }
# The top of the subvolume that a directory lies in: it has the inode number 256.
top_of() {
  local dir=$1
  until [ "$(stat -c %i -- "$dir")" = 256 ]; do
    [ "$dir" != / ] || die "$1: not on Btrfs"
    dir=$(dirname -- "$dir")
  done
  printf '%s\n' "$dir"
}
[ $# = 2 ] || { sed -n 2,4p "$0" >&2; exit 2; }
path=$(realpath -- "$2")
top=$(top_of "$path")
case $1 in
make)
  [ "$(stat -f -c %T -- "$top")" = btrfs ] || die "$path: not on Btrfs"
  # Beside the subvolume where that is the same filesystem, else in it.
  snapshot=$(dirname -- "$top")/.snapshot-for-backup.$$
  btrfs subvolume snapshot -r "$top" "$snapshot" >/dev/null 2>&1 || {
    snapshot=$top/.snapshot-for-backup.$$
    btrfs subvolume snapshot -r "$top" "$snapshot" >&2
  }
  printf '%s\n' "$snapshot${path#"$top"}" ;;
remove)
  case ${top##*/} in .snapshot-for-backup.*) ;; *) die "$path: no snapshot that was made for a backup" ;; esac
  btrfs subvolume delete "$top" >&2 ;;
*) sed -n 2,4p "$0" >&2; exit 2 ;;
esac
