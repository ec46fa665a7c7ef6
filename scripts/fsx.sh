#!/usr/bin/env bash
# fsx.sh [--dir DIR]   the file exerciser fsx on a fresh mount: three seeds, with and without mmap, with and without
# O_DIRECT, OPS (100000) operations each; every read is compared. With --dir on any directory, for a baseline (tmpfs).
. "$(dirname "$0")/lib.sh"
need_rust
work_dir
if [ "${1:-}" = --dir ]; then
  DIR=$(realpath "$2")/fsx.$$
  mkdir "$DIR"; at_exit "rm -rf '$DIR'"
else
  need_fuse
  build_release
  mount_new "$WORK"
  DIR=$WORK/mnt
fi
FSX=$(suite fsx 0.3.2)
OPS=${OPS:-100000} SEEDS=${SEEDS:-1 20240 987654321} MIXES=${MIXES:-plain mmap small}
cc -shared -fPIC -O1 -o "$WORK/direct.so" "$REPO/scripts/fsx-direct.c" -ldl

# Files of up to 3 MiB: several groups and, when cut, inline. Reads, writes, and all that moves space. No operation is
# empty: posix_fallocate of nothing is EINVAL everywhere, which fsx takes for a fault.
mix() {
  cat <<TOML
flen = 3145728
[opsize]
min = 1
max = 262144
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = $1
mapwrite = $1
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 3
copy_file_range = 3
sendfile = 2
posix_fadvise = 1
TOML
}
mix 0 > "$WORK/plain.toml"; mix 10 > "$WORK/mmap.toml"
# And files that keep crossing the inline limit.
mix 5 | sed -e 's/^flen.*/flen = 12288/' -e 's/^max.*/max = 6000/' > "$WORK/small.toml"

# run MIX SEED [direct]   O_DIRECT at any offset and length: FUSE and tmpfs take that, disk filesystems want alignment.
run() {
  local name=$1${3:+-$3} seed=$2 started=$SECONDS
  local file=$DIR/$name-$seed log=$WORK/$name-$seed.log
  if LD_PRELOAD=${3:+$WORK/direct.so} FSX_DIRECT=$file \
    "$FSX" -q -P "$WORK" -N "$OPS" -S "$seed" -f "$WORK/$1.toml" "$file" > "$log" 2>&1; then
    printf '%-14s seed %-10s %s operations, no difference (%d s)\n' "$name" "$seed" "$OPS" $((SECONDS - started))
  else
    printf '%-14s seed %-10s FAILED\n' "$name" "$seed"; tail -n 12 "$log"; echo "$name $seed" >> "$WORK/failed"
  fi
  rm -f "$file"
}
: > "$WORK/failed"
# The seeds beside each other: more than one file at work at a time.
for seed in $SEEDS; do
  (trap - EXIT; for name in $MIXES; do run "$name" "$seed"; run "$name" "$seed" direct; done) &
done
wait
bad=$(wc -l < "$WORK/failed")
echo "failed: $bad"
[ "$bad" = 0 ]
