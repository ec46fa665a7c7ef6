#!/usr/bin/env bash
# rewrap-bench.sh [FILES]   rewraps a vault of 100,000 files whose key, in the embedded KMS, was rotated, and prints the time
# per file: with one file at a time and with eight, the caches warm. DIR names where the vault is made (default: TMPDIR).
. "$(dirname "$0")/lib.sh"
need_rust
need_fuse
cd "$REPO"
files=${1:-100000}
cargo build --locked --release --quiet
efs=${EFS:-$CARGO_TARGET_DIR/release/envelopefs}
export TMPDIR=${DIR:-${TMPDIR:-/tmp}}
work_dir
export ENVELOPEFS_KMS_DIR=$WORK/kms
mkdir "$WORK/plain"
"$efs" init "$WORK/vault" --kms-key-file >/dev/null
"$efs" mount "$WORK/vault" "$WORK/plain" --log-file "$WORK/log"
say "$files files of 100 bytes"
python3 - "$WORK/plain" "$files" <<'P'
import os, sys
top, files = sys.argv[1], int(sys.argv[2])
for n in range(files):
    if n % 1000 == 0:
        os.mkdir(f"{top}/{n // 1000}")
    with open(f"{top}/{n // 1000}/{n}", "wb") as file:
        file.write(b"x" * 100)
P
"$efs" umount "$WORK/plain"
for jobs in 1 8; do
  "$efs" kms rotate-key alias/envelopefs >/dev/null
  "$efs" keys "$WORK/vault" >/dev/null
  begin=$(date +%s%N)
  "$efs" rewrap "$WORK/vault" --jobs "$jobs" --json >"$WORK/out"
  end=$(date +%s%N)
  python3 - "$WORK/out" "$files" "$jobs" $((end - begin)) <<'P'
import json, sys
done, files, jobs, ns = json.load(open(sys.argv[1])), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
assert (done["changed"], done["failed_count"]) == (files, 0), done
print(f"--jobs {jobs}: {files} files in {ns / 1e9:.2f} s, {ns / 1e3 / files:.1f} us a file")
P
done
