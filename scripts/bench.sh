#!/usr/bin/env bash
# bench.sh [OPTIONS]   installs fio and the peers, builds release, and runs `envelopefs bench mount OPTIONS` as root:
# --lower tmpfs,ext4  --repetitions N  --size MIB  --files N  --json
. "$(dirname "$0")/lib.sh"
need_fuse
need fio:fio gocryptfs:gocryptfs securefs:securefs mkfs.ext4:e2fsprogs
build_release
work_dir
as_root "$EFS" bench mount --work "$WORK" "$@"
