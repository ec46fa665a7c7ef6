#!/usr/bin/env bash
# backup-bench.sh [FILES]   `envelopefs backup` beside Debian's restic: one vault, one S3 server, in turns. FILES small files
# [20000] and two of 256 MiB. Prints CPU and wall seconds, peak memory, bytes sent. EFS names a built binary.
. "$(dirname "$0")/lib.sh"
need_fuse
need restic:restic curl:curl python3:python3 time:time
[ -n "${EFS:-}" ] || build_release
files=${1:-20000}
work_dir
export XDG_CONFIG_HOME=$WORK/config XDG_CACHE_HOME=$WORK/cache ENVELOPEFS_KMS_DIR=$WORK/kms
export AWS_ACCESS_KEY_ID=efsaccess AWS_SECRET_ACCESS_KEY=efssecret AWS_REGION=us-east-1
export S3_WORK=$WORK/s3 S3_PORT=${S3_PORT:-31000} RESTIC_PASSWORD=bench RESTIC_CACHE_DIR=$WORK/rc
export AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT
cd "$WORK"
"$REPO/scripts/s3-server.sh" start
at_exit "S3_WORK=$S3_WORK '$REPO/scripts/s3-server.sh' stop"
for bucket in ours theirs; do
  curl -fsS -X PUT --aws-sigv4 aws:amz:us-east-1:s3 --user efsaccess:efssecret "$AWS_ENDPOINT_URL/$bucket-bench"
done
mkdir mnt
"$EFS" init --kms-key-file vault
"$EFS" mount --log-file log vault mnt
python3 - "$files" <<'PY'
import os, random, sys
random.seed(7)
for n in range(int(sys.argv[1])):
    d = f"mnt/d{n % 2000}"
    if n < 2000: os.mkdir(d)
    with open(f"{d}/f{n}", "wb") as f: f.write(os.urandom(random.choice([500, 3000, 9000, 30000, 60000])))
for n in range(2):
    with open(f"mnt/large{n}", "wb") as f:
        for _ in range(256): f.write(os.urandom(1 << 20))
PY
"$EFS" umount mnt

theirs=(restic -q -r "s3:$AWS_ENDPOINT_URL/theirs-bench")
ours=("$EFS" backup)
size() { curl -fsS --aws-sigv4 aws:amz:us-east-1:s3 --user efsaccess:efssecret "$AWS_ENDPOINT_URL/$1-bench?list-type=2" |
  grep -o '<Size>[0-9]*' | cut -c7- | awk '{ n += $1 } END { print n + 0 }'; }
# row NAME BUCKET COMMAND...   one line: wall, CPU, memory, bytes that the bucket grew by
row() {
  local name=$1 bucket=$2 before; shift 2
  before=$(size "$bucket")
  /usr/bin/time -o t -f '%e %U %S %M' "$@" > out.log 2>&1 || { cat out.log; die "$name failed"; }
  read -r wall user sys rss < t
  printf '%-24s %-8s %8.1f s %8.1f s CPU %6d MiB %10.1f MiB sent\n' "$name" "$bucket" "$wall" \
    "$(echo "$user + $sys" | bc)" $((rss / 1024)) "$(echo "($(size "$bucket") - $before) / 1048576" | bc -l)"
}
need bc:bc
"${ours[@]}" init vault s3://ours-bench/r > /dev/null
"${theirs[@]}" init > /dev/null
row "first backup" ours "${ours[@]}" run vault s3://ours-bench/r
row "first backup" theirs "${theirs[@]}" backup vault
"$EFS" mount --log-file log vault mnt
python3 - "$files" <<'PY'
import os, random, sys
random.seed(9)
for n in random.sample(range(int(sys.argv[1])), int(sys.argv[1]) // 100):
    with open(f"mnt/d{n % 2000}/f{n}", "wb") as f: f.write(os.urandom(20000))
for n in range(2):
    with open(f"mnt/large{n}", "r+b") as f:
        for k in random.sample(range(512), 5):
            f.seek(k << 19); f.write(os.urandom(1 << 19))
PY
"$EFS" umount mnt
row "1 % changed" ours "${ours[@]}" run vault s3://ours-bench/r
row "1 % changed" theirs "${theirs[@]}" backup vault
row "nothing changed" ours "${ours[@]}" run vault s3://ours-bench/r
row "nothing changed" theirs "${theirs[@]}" backup vault
row "restore" ours "${ours[@]}" restore s3://ours-bench/r back
row "restore" theirs "${theirs[@]}" restore latest --target back-restic
list() { (cd "$1" && find . -path ./.envelopefs -prune -o -type d -printf '%p %y %m %U %G %T@\n' -o -printf '%p %y %m %U %G %s %T@\n' | sort;
  find . -path ./.envelopefs -prune -o -type f -print0 | sort -z | xargs -0 md5sum; getfattr -hR -d -m user.efs . 2>/dev/null | sort) 2>/dev/null; }
(cd vault && list .) > a || true; (cd back && list .) > b || true
diff a b | head -n 6 || true
printf 'lines that differ after our restore: %d of %d\n' "$(diff a b | grep -c '^[<>]' || true)" "$(wc -l < a)"
