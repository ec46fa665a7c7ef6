#!/usr/bin/env bash
# scale-drills.sh [seaweedfs] [glusterfs]   a vault on a distributed filesystem, which is an ordinary vault there: two mounts of it
# with --shared, through two clients of that filesystem, as two hosts have it. What one writes and closes the other reads; a tree
# comes back equal through a client that has cached nothing; GlusterFS loses one of two replicas under load and heals it.
# All servers are on loopback and go at the end. EFS names a built binary, FILES the number of small files [2000].
. "$(dirname "$0")/lib.sh"
need_fuse
need curl:curl python3:python3 md5sum:coreutils
[ -n "${EFS:-}" ] || build_release
files=${FILES:-2000}
export SUITES
work_dir
export ENVELOPEFS_KMS_DIR=$WORK/kms
cd "$WORK"
now() { date +%s.%N; }
took() { echo "$(now) $1" | awk '{ printf "%.1f s", $1 - $2 }'; }
# A daemon that has just ended may hold its lower directory for a moment.
lower_off() { for _ in $(seq 100); do umount "$1" 2>/dev/null && return; sleep 0.1; done; umount "$1"; }
wait_mounted() { for _ in $(seq 300); do mountpoint -q "$1" && return; sleep 0.1; done; die "$1 was not mounted"; }
ports() { python3 -c '
import socket, sys
n = int(sys.argv[1])
for port in range(24000, 60000, 16):
    try:
        for k in range(n): socket.create_server(("127.0.0.1", port + k)).close()
        print(port); break
    except OSError: pass' "$1"; }
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 md5sum); }
hosts() { for n in 1 2; do mkdir -p "mnt$n"; "$EFS" mount -o shared --log-file "log$n" "lower$n/vault" "mnt$n"; done; }
apart() { for n in 1 2; do "$EFS" umount "mnt$n"; done; }

# in_turns COUNT   each mount writes a file in turn, the other one reads it as soon as it shows what was written; prints how long that took.
in_turns() {
  python3 - "$1" <<'PY'
import os, sys, time
waited = []
for turn in range(int(sys.argv[1])):
    one, other = (1, 2) if turn % 2 else (2, 1)
    data = os.urandom((100, 50_000, 1_500_000)[turn % 3])
    with open(f"mnt{one}/turn-{turn}", "wb") as f: f.write(data)
    begun = time.monotonic()
    while True:
        try:
            with open(f"mnt{other}/turn-{turn}", "rb") as f: seen = f.read()
            if seen == data: break
        except OSError as e: seen = e
        if time.monotonic() - begun > 30: sys.exit(f"turn {turn}: the other mount has {seen if isinstance(seen, OSError) else len(seen)}")
        time.sleep(0.005)
    waited.append(time.monotonic() - begun)
print(f"{len(waited)} files, each read by the other mount: {sum(w < 0.05 for w in waited)} at once, the last after {max(waited):.2f} s")
PY
}

# tree   writes a tree of small files and two of 64 MiB through the first mount.
tree() {
  python3 - "$files" <<'PY'
import os, random, sys
random.seed(7)
for n in range(int(sys.argv[1])):
    d = f"mnt1/d{n % 100}"
    if n < 100: os.mkdir(d)
    with open(f"{d}/f{n}", "wb") as f: f.write(os.urandom(random.choice([500, 3000, 9000, 30000])))
for n in range(2):
    with open(f"mnt1/large{n}", "wb") as f:
        for _ in range(64): f.write(os.urandom(1 << 20))
PY
}

# drill START STOP   the common part; START mounts the clients lower1 and lower2, STOP unmounts them.
drill() {
  local begun
  "$EFS" init --kms-key-file lower1/vault >/dev/null
  for _ in $(seq 100); do [ -e lower2/vault/.envelopefs/vault.toml ] && break; sleep 0.1; done
  hosts
  in_turns 60
  begun=$(now); tree; echo "$files small files and two of 64 MiB written in $(took "$begun")"
  begun=$(now); sums mnt1 > one; echo "read back in $(took "$begun")"
  apart; "$2"; "$1"; hosts
  begun=$(now); sums mnt2 > two; echo "read by clients that had cached nothing in $(took "$begun")"
  diff one two && echo "equal: $(wc -l < one) files"
  apart
  "$EFS" check lower1/vault
}

seaweedfs() {
  say "SeaweedFS: two clients of one filer"
  export WEED=${WEED:-$SUITES/seaweedfs/bin/weed} S3_WORK=$WORK/weed S3_PORT
  S3_PORT=$(ports 8)
  "$REPO/scripts/s3-server.sh" start
  at_exit "S3_WORK='$S3_WORK' '$REPO/scripts/s3-server.sh' stop"
  weed_start() {
    for n in 1 2; do
      mkdir -p "lower$n" "cache$n"
      "$WEED" mount -filer="127.0.0.1:$((S3_PORT + 5)).$((S3_PORT + 6))" -filer.path=/vaults -dir="$WORK/lower$n" \
        -cacheDir="$WORK/cache$n" -dirAutoCreate >> "weed-mount$n.log" 2>&1 &
      wait_mounted "lower$n"
    done
  }
  weed_stop() { for n in 1 2; do lower_off "lower$n"; rm -rf "cache$n"; done; sleep 1; }
  weed_start
  drill weed_start weed_stop
  weed_stop
}

# The translators of a replicated volume, without the management daemon: two bricks, and the client's own replication.
gluster_files() {
  local n port=$1
  for n in 1 2; do
    mkdir -p "brick$n"
    cat > "brick$n.vol" <<VOL
volume posix
  type storage/posix
  option directory $WORK/brick$n
end-volume
volume locks
  type features/locks
  subvolumes posix
end-volume
volume brick
  type performance/io-threads
  subvolumes locks
end-volume
volume server
  type protocol/server
  option transport-type tcp
  option transport.socket.listen-port $((port + n))
  option transport.socket.bind-address 127.0.0.1
  option auth.addr.brick.allow 127.0.0.1
  subvolumes brick
end-volume
VOL
    cat >> client.vol <<VOL
volume client$n
  type protocol/client
  option transport-type tcp
  option remote-host 127.0.0.1
  option remote-port $((port + n))
  option remote-subvolume brick
  option ping-timeout 10
end-volume
VOL
  done
  cat >> client.vol <<'VOL'
volume replicate
  type cluster/replicate
  option afr-pending-xattr client1,client2
  option data-self-heal on
  option metadata-self-heal on
  option entry-self-heal on
  subvolumes client1 client2
end-volume
VOL
}
brick() {
  glusterfsd -N -f "$WORK/brick$1.vol" -l "$WORK/glusterfsd$1.log" -p "$WORK/brick$1.pid" &
  bricks[$1]=$!
}

glusterfs() {
  say "GlusterFS: two replicas, two clients"
  need glusterfsd:glusterfs-server glusterfs:glusterfs-client
  rm -rf kms lower1 lower2
  declare -gA bricks
  gluster_files "$(ports 4)"
  brick 1; brick 2
  at_exit 'kill -9 "${bricks[1]}" "${bricks[2]}"'
  sleep 2
  gluster_start() {
    for n in 1 2; do
      mkdir -p "lower$n"
      command glusterfs -f "$WORK/client.vol" -l "$WORK/client$n.log" --acl "$WORK/lower$n"
      wait_mounted "lower$n"
    done
  }
  gluster_stop() { for n in 1 2; do lower_off "lower$n"; done; }
  gluster_start
  drill gluster_start gluster_stop
  say "GlusterFS: one brick is killed under load"
  hosts
  python3 - <<'PY' &
import os, sys
for n in range(600):
    with open(f"mnt{n % 2 + 1}/load-{n}", "wb") as f: f.write(os.urandom(20000))
PY
  load=$!
  sleep 1
  kill -9 "${bricks[2]}"; wait "${bricks[2]}" 2>/dev/null || true
  wait "$load" && echo "600 files written, through both mounts, without an error"
  sums mnt1 > one
  apart
  brick 2
  sleep 2
  gluster_stop; gluster_start
  # Whoever looks at a file heals it.
  find lower1/vault -exec stat {} + > /dev/null
  find lower1/vault -type f -print0 | xargs -0 cat > /dev/null
  for _ in $(seq 120); do
    [ "$(find brick1/vault -type f | wc -l)" = "$(find brick2/vault -type f | wc -l)" ] && break
    sleep 0.5
  done
  kill -9 "${bricks[1]}"; wait "${bricks[1]}" 2>/dev/null || true
  sleep 1
  hosts
  sums mnt2 > two
  diff one two && echo "equal, read from the brick that had been killed: $(wc -l < two) files"
  apart
  gluster_stop
}

for drill in "${@:-seaweedfs glusterfs}"; do
  for name in $drill; do "$name"; done
done
