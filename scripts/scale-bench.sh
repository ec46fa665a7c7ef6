#!/usr/bin/env bash
# scale-bench.sh [FILES]   one vault of FILES small files [1000000] in directories of 1,000 on the local disk, and a repository beside it:
# wall and CPU seconds and peak memory of each step, for docs/SCALE.md. Needs 8 KiB of disk and two inodes a file. EFS names a built binary.
. "$(dirname "$0")/lib.sh"
need_fuse
need python3:python3 time:time bc:bc
[ -n "${EFS:-}" ] || build_release
files=${1:-1000000}
work_dir
export XDG_CONFIG_HOME=$WORK/config XDG_CACHE_HOME=$WORK/cache ENVELOPEFS_KMS_DIR=$WORK/kms
cd "$WORK"
# row NAME COMMAND...   one line: wall, CPU, memory.
row() {
  local name=$1 wall user sys rss; shift
  /usr/bin/time -o t -f '%e %U %S %M' "$@" > out.log 2>&1 || { tail -n 5 out.log; die "$name failed"; }
  read -r wall user sys rss < <(tail -n 1 t)
  printf '%-28s %9.1f s %9.1f s CPU %7d MiB\n' "$name" "$wall" "$(echo "$user + $sys" | bc)" $((rss / 1024))
}
mkdir mnt
"$EFS" init --kms-key-file vault > /dev/null
"$EFS" mount --log-file log vault mnt
cat > fill.py <<'PY'
import os, random, sys
random.seed(7)
pool = os.urandom(1 << 20)
for n in range(int(sys.argv[1])):
    d = f"mnt/d{n // 1000}"
    if n % 1000 == 0: os.mkdir(d)
    at = random.randrange(1 << 19)
    with open(f"{d}/f{n}", "wb") as f: f.write(pool[at:at + random.randrange(200, 3000)])
PY
cat > change.py <<'PY'
import os, random, sys
random.seed(9)
count = int(sys.argv[1])
for n in random.sample(range(count), count // 100):
    with open(f"mnt/d{n // 1000}/f{n}", "wb") as f: f.write(os.urandom(2000))
PY
row "create" python3 fill.py "$files"
row "stat all, mounted" find mnt -newermt 2100-01-01
"$EFS" umount mnt
"$EFS" mount --log-file log vault mnt
row "stat all, mounted afresh" find mnt -newermt 2100-01-01
row "read all, mounted afresh" bash -c 'find mnt -type f -print0 | xargs -0 cat > /dev/null'
"$EFS" umount mnt
"$EFS" backup init vault repo > /dev/null
row "first backup" "$EFS" backup run vault repo
row "nothing changed" "$EFS" backup run vault repo
"$EFS" mount --log-file log vault mnt
row "change 1 %" python3 change.py "$files"
"$EFS" umount mnt
row "1 % changed" "$EFS" backup run vault repo
row "verify" "$EFS" backup verify repo
row "restore" "$EFS" backup restore repo back
row "check" "$EFS" check vault
row "headers export" "$EFS" headers export vault
row "rewrap" "$EFS" rewrap vault
printf '%-28s %s of vault, %s of repository, %s objects, %s of headers\n' "sizes" "$(du -sh vault | cut -f1)" "$(du -sh repo | cut -f1)" \
  "$(find repo -type f | wc -l)" "$(du -h vault/.envelopefs/headers | cut -f1)"
