#!/usr/bin/env bash
# pjdfstest.sh [--dir DIR]   the POSIX suite pjdfstest on a fresh mount as root: serially, then eight at a time.
# With --dir on any directory instead, for a baseline. Exit code 0 only without a failure.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "run it as root: the suite changes owners and users"
need_rust
work_dir
if [ "${1:-}" = --dir ]; then
  DIR=$(realpath "$2")/pjdfstest.$$
  mkdir "$DIR"; at_exit "rm -rf '$DIR'"
else
  need_fuse
  build_release
  mount_new "$WORK" allow_other,suid,dev
  # A new vault's top is its owner's alone; the suite comes as other users too.
  chmod 755 "$WORK/mnt"
  DIR=$WORK/mnt/pjdfstest
  mkdir "$DIR"
fi
chmod 755 "$DIR"
PJD=$(suite pjdfstest 0.2.2)

# Two users that every Debian and Ubuntu has; a naptime above the coarsest timestamp tick (10 ms).
cat > "$WORK/pjd.toml" <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["daemon", "daemon"], ["bin", "bin"]]
TOML

# run NAME   one pass of the whole suite in a directory of its own, its output in a log.
run() {
  mkdir -p "$DIR/$1" && chmod 755 "$DIR/$1"
  "$PJD" -c "$WORK/pjd.toml" -p "$DIR/$1" > "$WORK/$1.log" 2>&1 || true
}

# count NAME   prints a pass's summary and failures; adds them to the total. A pass without a summary failed.
total=0
count() {
  local log=$WORK/$1.log failed
  failed=$(grep -acE ' FAILED *$' "$log" || true)
  grep -aq '^Summary' "$log" || { tail -n 3 "$log"; failed=$((failed + 1)); }
  printf '%-12s %s\n' "$1" "$(grep -a '^Summary' "$log" || echo 'no summary: the suite stopped')"
  [ "$failed" = 0 ] || grep -aE ' FAILED *$' "$log" || true
  total=$((total + failed))
}

say "serially"
run serial; count serial
say "eight at a time"
for i in 1 2 3 4 5 6 7 8; do run "parallel-$i" & done
wait
for i in 1 2 3 4 5 6 7 8; do count "parallel-$i"; done
echo "failed: $total"
[ "$total" = 0 ]
