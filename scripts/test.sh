#!/usr/bin/env bash
# test.sh [TEST FILTER...]   installs what the tests need on Debian or Ubuntu, then runs `check.sh`: everything,
# real mounts included. Exit code 0 only when all of it passed. As root, more is tested than as an ordinary user
# (foreign owners, device nodes, small loop disks).
. "$(dirname "$0")/lib.sh"
need_rust
need_fuse
need restic:restic curl:curl setfattr:attr setfacl:acl sqlite3:sqlite3 rsync:rsync git:git mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs \
  losetup:mount setpriv:util-linux tar:tar diff:diffutils mkfs.btrfs:btrfs-progs rclone:rclone aws:awscli \
  pkcs11-tool:opensc softhsm2-util:softhsm2 openssl:openssl pgrep:procps
# For the KMS's console. Ubuntu has it as a snap only, which cannot be driven.
(need chromium:chromium) || echo "Chromium was not installed: the test of the console is skipped"
rustup component add rustfmt clippy >/dev/null 2>&1 || true
exec "$REPO/scripts/check.sh" "$@"
