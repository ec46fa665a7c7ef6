#!/usr/bin/env bash
# bench.sh [OPTIONS]   installs fio and the filesystems to compare with, builds release, and runs `envelopefs bench kernel`,
# `bench pipeline` and `bench mount OPTIONS` as root (--quick, --repetitions N, --jobs LIST, --peers LIST, --lower tmpfs,ext4, ...).
# Tables, JSON and HTML go to $OUT (default: a new directory below the one for temporary files).
. "$(dirname "$0")/lib.sh"
need_fuse
need fio:fio gocryptfs:gocryptfs securefs:securefs encfs:encfs cryfs:cryfs mkfs.ext4:e2fsprogs losetup:mount tar:tar
build_release
# Mounts take requests by io_uring where the kernel offers it: EnvelopeFS and the null filesystem alike.
OFFER=/sys/module/fuse/parameters/enable_uring
[ ! -e "$OFFER" ] || echo Y | as_root tee "$OFFER" > /dev/null || true
OUT=${OUT:-$(mktemp -d "${TMPDIR:-/tmp}/envelopefs-bench-out.XXXXXX")}
mkdir -p "$OUT"
EFS_COMMIT=$(git -C "$REPO" describe --always --dirty 2>/dev/null || true)
export EFS_COMMIT
quick=()
for word in "$@"; do [ "$word" != --quick ] || quick=(--quick); done

# bench NAME ARGUMENTS...
bench() {
  say "bench $1"
  as_root env EFS_COMMIT="$EFS_COMMIT" "$EFS" bench "$@" --json "$OUT/$1.json" --html "$OUT/$1.html" | tee "$OUT/$1.md"
}
bench kernel "${quick[@]}"
bench pipeline "${quick[@]}"
bench mount "$@"
say "reports are in $OUT"
