#!/usr/bin/env bash
# backup-demo.sh [--short]   a vault that is mounted and busy goes to a real S3 server; vault and KMS cache are destroyed; it comes
# back, mounts and is compared; once more by Debian's restic, without our code. Exit code 0 only when all is equal.
# --short takes a smaller tree. EFS names a binary that is built already; WEED one of SeaweedFS.
. "$(dirname "$0")/lib.sh"
need_fuse
need restic:restic curl:curl diff:diffutils python3:python3 getfattr:attr
[ -n "${EFS:-}" ] || build_release
large=20000000 docs=(src docs)
if [ "${1:-}" = --short ]; then large=3000000 docs=(docs); fi
# The server is found, or brought, where it is kept for all scripts.
export SUITES WEED=${WEED:-$SUITES/seaweedfs/bin/weed}
work_dir
export XDG_CONFIG_HOME=$WORK/config XDG_CACHE_HOME=$WORK/cache ENVELOPEFS_KMS_DIR=$WORK/kms
export AWS_ACCESS_KEY_ID=efsaccess AWS_SECRET_ACCESS_KEY=efssecret AWS_REGION=us-east-1
export S3_WORK=$WORK/s3 S3_PORT
S3_PORT=$(python3 -c '
import socket
for port in range(21000, 60000, 16):
    try:
        for n in range(8): socket.create_server(("127.0.0.1", port + n)).close()
        print(port); break
    except OSError: pass')
export AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT
REPO_AT=s3://vaults/host
cd "$WORK"
efs() { "$EFS" "$@"; }
seen() { (cd "$1" && find . -printf '%p %y %m %U %G %T@ %l\n' | sort && find . -type f -exec md5sum {} + | sort); }

say "1. an S3 server, a vault, a mount"
"$REPO/scripts/s3-server.sh" start
at_exit "S3_WORK=$S3_WORK '$REPO/scripts/s3-server.sh' stop"
curl -fsS -X PUT --aws-sigv4 aws:amz:us-east-1:s3 --user efsaccess:efssecret "$AWS_ENDPOINT_URL/vaults"
mkdir mnt
efs init --kms-key-file vault
efs mount --log-file log vault mnt
for dir in "${docs[@]}"; do cp -a "$REPO/$dir" mnt/; done
for n in 1 2 3; do head -c "$large" /dev/urandom > "mnt/large-$n"; done

say "2. a backup while somebody writes"
efs backup init vault "$REPO_AT"
( cd mnt; for n in $(seq 1 400); do echo "line $n" >> busy; printf '%08d' "$n" | dd of=large-1 bs=1 seek=$((n * large / 500)) conv=notrunc status=none; done ) &
writer=$!
efs backup run vault "$REPO_AT" || [ $? = 3 ]
wait "$writer"

say "3. the last run, beside the mount; only what changed is sent"
efs backup run vault "$REPO_AT"
efs backup list "$REPO_AT"
efs backup verify --read 20% "$REPO_AT"
seen mnt > before
efs umount mnt

say "4. the disk is gone: vault, key file, cache. The bucket and the KMS are left"
rm -rf vault config cache
efs backup restore --vault-key "$REPO_AT" vault
efs mount --log-file log vault mnt
seen mnt > after
efs umount mnt
diff before after
echo "equal: $(wc -l < after) lines of names, attributes and sums"
efs backup verify --deep --vault-key "$REPO_AT"

say "5. restic alone, by the second password of a new key file"
efs backup init vault "$REPO_AT-restic" && efs backup run vault "$REPO_AT-restic"
restic -q -r "s3:$AWS_ENDPOINT_URL/vaults/host-restic" --password-file config/envelopefs/backup.key --cache-dir rc \
  restore latest --target out
efs mount --log-file log out/vault mnt
seen mnt > after
efs umount mnt
diff before after
echo "equal, without our code"
