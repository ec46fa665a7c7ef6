#!/usr/bin/env bash
# crash.sh [--quick] [PART...]   what EnvelopeFS survives, in full, and the table of figures it must reach.
# Parts: cut, peer (gocryptfs on the same power cuts), kill, faults, load, fsync, growth; all of them when none is named.
# --quick takes a twentieth of it. POINTS (2000), KILLS (500), PAIRS (7) and SEED (1) set single counts.
. "$(dirname "$0")/lib.sh"
QUICK=0
if [ "${1:-}" = --quick ]; then QUICK=1; shift; fi
PARTS=${*:-cut peer kill faults load fsync growth}
for part in $PARTS; do
  case $part in cut|peer|kill|faults|load|fsync|growth) ;; *) die "no such part: $part" ;; esac
done
need_rust
need_fuse
need mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs losetup:mount setpriv:util-linux sqlite3:sqlite3 git:git \
  fio:fio gocryptfs:gocryptfs setfattr:attr
[ "$(id -u)" = 0 ] || die "needs root: loop devices, and a debugger on the daemon"
full() { [ "$QUICK" = 1 ] && echo "$2" || echo "$1"; }
POINTS=${POINTS:-$(full 2000 100)} KILLS=${KILLS:-$(full 500 25)} PAIRS=${PAIRS:-$(full 7 3)} SEED=${SEED:-1}
SECONDS_OF_FIO=$(full 20 5)
work_dir
export TMPDIR=$WORK/tmp
mkdir -m 1777 "$TMPDIR"
KEPT=${KEPT:-$WORK/kept}
mkdir -p "$KEPT"
failed=0
ROWS=()
# row WHAT FIGURE VERDICT
row() { ROWS+=("| $1 | $2 | $3 |"); [ "$3" != missed ] || failed=1; }
wanted() { [[ " $PARTS " == *" $1 "* ]]; }
verdict() { if "$@"; then echo reached; else echo missed; fi; }

# test_of BINARY NAME LOG [ENV...]   runs one ignored test of a test program built by cargo; its output goes to LOG.
test_of() {
  local binary=$1 name=$2 log=$3
  shift 3
  env "$@" cargo test --locked --quiet --manifest-path "$REPO/Cargo.toml" --test "$binary" -- \
    --ignored --exact "$name" --nocapture 2>&1 | tee "$log"
}

say "building"
cargo test --locked --no-run --manifest-path "$REPO/Cargo.toml" 2>&1 | tail -n 1

# sum LOG TARGET FIELD   adds up a count over the lines "CRASH target lower workload points N lost N ...".
sum() { awk -v t="$2" -v f="$3" '$1 == "CRASH" && $2 == t { for (i = 5; i < NF; i++) if ($i == f) n += $(i + 1) } END { print n + 0 }' "$1"; }
cuts() {
  local target=$1 points=$2 log=$WORK/cut-$1.log status=0
  say "power cuts of $target"
  test_of crash full "$log" EFS_CRASH_POINTS="$points" EFS_CRASH_SEED="$SEED" EFS_CRASH_TARGET="$target" \
    EFS_CRASH_KEEP="$KEPT" || status=1
  local n repaired lost eio dirs other
  n=$(sum "$log" "$target" points) repaired=$(sum "$log" "$target" repaired) lost=$(sum "$log" "$target" lost) eio=$(sum "$log" "$target" eio)
  dirs=$(sum "$log" "$target" dirs) other=$(sum "$log" "$target" other)
  local figure="$n points: $lost acknowledged lost, $eio EIO, $dirs directories lost, $other else"
  if [ "$target" = gocryptfs ]; then
    row "the same on gocryptfs, as yardstick" "$figure" "$(verdict test "$n" -gt 0)"
  else
    row "power-cut points" "$figure" "$(verdict test "$status$lost$eio$dirs$other" = 00000 -a "$n" -ge "$points")"
    row "of these repaired with check --repair, looked over again" "$repaired images: exit 0, nothing lost, unless told above" \
      "$(verdict test "$status$lost$eio$dirs$other" = 00000 -a "$repaired" -gt 0)"
  fi
}
if wanted cut; then cuts envelopefs "$POINTS"; fi
if wanted peer; then cuts gocryptfs "$((POINTS / 4))"; fi

if wanted kill; then
  say "kill -9"
  log=$WORK/kill.log status=0
  test_of kill kills::a_killed_daemon_loses_nothing_in_full "$log" EFS_KILL_POINTS="$KILLS" EFS_KILL_SEED="$SEED" || status=1
  figure=$(sed -n 's/^kill -9: //p' "$log")
  row "kill -9 points" "${figure:-none}" "$(verdict test "$status" = 0)"
fi
if wanted faults; then
  say "failing system calls"
  log=$WORK/faults.log status=0
  test_of kill faults::a_failing_call_does_no_harm_in_full "$log" EFS_FAULT_EVERY="$(full 1 20)" || status=1
  figure=$(sed -n 's/^fault injection: //p' "$log")
  row "fault injection" "${figure:-none}" "$(verdict test "$status" = 0)"
  for name in mounting mounting_elsewhere unmounting; do
    status=0
    test_of kill "ends::a_call_that_fails_while_${name}_does_no_harm_in_full" "$log" EFS_FAULT_EVERY="$(full 1 20)" || status=1
    figure=$(sed -n 's/^fault injection, [^:]*: //p' "$log")
    row "fault injection, ${name//_/ }" "${figure:-none}" "$(verdict test "$status" = 0)"
  done
fi
if wanted load; then
  say "load"
  log=$WORK/load.log status=0
  for name in many_processes a_million_files a_huge_sparse_file; do
    test_of kill "heavy::${name}_in_full" "$log" EFS_LOAD_SECONDS="$(full 180 15)" EFS_LOAD_FILES="$(full 1000000 20000)" || status=1
    row "load: ${name//_/ }" "$(sed -n 's/.*load: //p' "$log")" "$(verdict test "$status" = 0)"
  done
fi

# ext4_disk DIR MIB   a new ext4 on a loop device.
ext4_disk() {
  mkdir -p "$1"
  truncate -s "$2M" "$1.img"
  mkfs.ext4 -q -m 0 "$1.img"
  mount -o loop "$1.img" "$1"
}
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
# fio_iops FILE SYNC   random 4 KiB overwrites, each synced: operations a second.
fio_iops() {
  fio --name=w --filename="$1" --rw=randwrite --bs=4k --size=64m --time_based --runtime="$SECONDS_OF_FIO" --overwrite=1 \
    "--$2=1" --output-format=terse --terse-version=3 | awk -F';' '{ print $49 }'
}
efs_mounts() {
  [ -n "${EFS:-}" ] || build_release
  [ -d "$WORK/disk" ] || ext4_disk "$WORK/disk" 4096
  local disk=$WORK/disk
  [ -d "$disk/e" ] && return 0
  mkdir -p "$disk/e" "$disk/g/cipher" "$disk/g/mnt" "$disk/n"
  mount_new "$disk/e"
  mount_new "$disk/n" no-journal
  echo password > "$WORK/password"
  gocryptfs -q -init -passfile "$WORK/password" "$disk/g/cipher"
  gocryptfs -q -passfile "$WORK/password" "$disk/g/cipher" "$disk/g/mnt"
}
if wanted fsync; then
  efs_mounts
  for sync in fsync fdatasync; do
    say "4 KiB overwrites with $sync"
    : > "$WORK/ratios"
    for side in e g; do
      dd if=/dev/urandom of="$WORK/disk/$side/mnt/f" bs=1M count=64 conv=fsync status=none
    done
    for i in $(seq "$PAIRS"); do
      if [ $((i % 2)) = 1 ]; then
        ours=$(fio_iops "$WORK/disk/e/mnt/f" "$sync"); theirs=$(fio_iops "$WORK/disk/g/mnt/f" "$sync")
      else
        theirs=$(fio_iops "$WORK/disk/g/mnt/f" "$sync"); ours=$(fio_iops "$WORK/disk/e/mnt/f" "$sync")
      fi
      awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.3f %d %d\n", a / b, a, b }' | tee -a "$WORK/ratios"
    done
    ratio=$(cut -d' ' -f1 "$WORK/ratios" | median)
    ours=$(cut -d' ' -f2 "$WORK/ratios" | median) theirs=$(cut -d' ' -f3 "$WORK/ratios" | median)
    row "4 KiB overwrites, $sync, against gocryptfs" "$ratio times as fast ($ours and $theirs a second, $PAIRS pairs)" \
      "$(verdict awk -v r="$ratio" 'BEGIN { exit !(r >= 1) }')"
  done
  rm -f "$WORK"/disk/*/mnt/f
fi
if wanted growth; then
  efs_mounts
  say "growing files, with and without journal"
  : > "$WORK/growth"
  # grow MOUNT   MiB a second of a new file, synced.
  grow() {
    local began ended
    rm -f "$1/grown"
    sync -f "$WORK/disk"
    began=$(date +%s%N)
    dd if=/dev/zero of="$1/grown" bs=1M count="$(full 768 256)" conv=fsync status=none
    ended=$(date +%s%N)
    awk -v n="$(full 768 256)" -v t=$((ended - began)) 'BEGIN { print n * 1e9 / t }'
  }
  for i in $(seq $((2 * PAIRS))); do
    if [ $((i % 2)) = 1 ]; then with=$(grow "$WORK/disk/e/mnt"); without=$(grow "$WORK/disk/n/mnt")
    else without=$(grow "$WORK/disk/n/mnt"); with=$(grow "$WORK/disk/e/mnt"); fi
    awk -v a="$with" -v b="$without" 'BEGIN { printf "%.2f %d %d\n", 100 * (1 - a / b), a, b }' | tee -a "$WORK/growth"
  done
  given=$(cut -d' ' -f1 "$WORK/growth" | median)
  row "given up for the journal, growing files" "$given % (median of $((2 * PAIRS)) pairs, $(cut -d' ' -f2 "$WORK/growth" | median) MiB/s)" \
    "$(verdict awk -v g="$given" 'BEGIN { exit !(g < 3) }')"
fi
if wanted cut && compgen -G "$KEPT/*" >/dev/null; then
  echo "images that failed are kept in $KEPT (set KEPT to keep them for good)"
fi

say "table"
echo "| what | figure | |"
echo "|---|---|---|"
printf '%s\n' "${ROWS[@]}"
[ "$failed" = 0 ]
