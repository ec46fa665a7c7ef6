#!/usr/bin/env bash
# quickstart.sh [DIR]   the first five minutes: builds, makes a vault on the embedded KMS, mounts it, copies a real
# tree in, compares, shows what lies below, rotates the master key, unmounts. With DIR the vault stays there.
. "$(dirname "$0")/lib.sh"
need_fuse
need diff:diffutils rsync:rsync getfattr:attr
build_release

if [ $# -gt 0 ]; then
  mkdir -p "$1"; HERE=$(cd "$1" && pwd)
  [ -z "$(ls -A "$HERE")" ] || die "$HERE is not empty"
  at_exit "unmount_below '$HERE'"
else
  work_dir; HERE=$WORK
fi
VAULT=$HERE/vault MNT=$HERE/mnt KMS=$HERE/kms TREE=$HERE/tree
efs() { "$EFS" "$@"; }

say "1. a vault on the embedded KMS; its root key is sealed by a key file, for unattended use"
mkdir -p "$MNT"
efs init "$VAULT" --kms-dir "$KMS" --kms-key-file

say "2. mounted"
efs mount "$VAULT" "$MNT" --kms-dir "$KMS"
grep " $MNT " /proc/mounts

say "3. a real tree goes in, comes back and is compared"
mkdir -p "$TREE"
rsync -a --exclude target --exclude .git "$REPO/" "$TREE/envelopefs/"
for extra in /usr/include /usr/share/doc; do
  [ -d "$extra" ] && rsync -a --safe-links --max-size=4m "$extra" "$TREE/" 2>/dev/null || true
done
cp -a "$TREE" "$MNT/tree"
sync -f "$MNT"
diff -r --no-dereference "$TREE" "$MNT/tree"
echo "equal: $(find "$TREE" -type f | wc -l) files, $(du -sh "$TREE" | cut -f 1)"

say "4. what lies below: ciphertext, names too"
printf 'The quick brown fox reads this only through the mount.\n' > "$MNT/hello.txt"
# The mount shows the lower file's inode number, which is how it is found here.
lower() { find "$VAULT" -inum "$(stat -c %i "$1")" -type f | head -n 1; }
HELLO=$(lower "$MNT/hello.txt")
(cd "$VAULT" && find . -name .envelopefs -prune -o -type f -print | sed -n '1,6p')
echo "hello.txt is ${HELLO#"$VAULT"/}:"
od -A x -t x1z "$HELLO" | sed -n '1,4p'
if grep -rqa 'quick brown fox' "$VAULT" || find "$VAULT" -name '*hello*' | grep -q .; then die "plaintext in the vault"; fi

say "5. its header: which key of which version wraps its data key"
efs inspect "$HELLO" --kms-dir "$KMS"

say "6. the master key gets a new version; old files still open, new ones use it"
KEY=$(efs info "$VAULT" --kms-dir "$KMS" --json | sed -n 's/.*"uri": *"kms:embedded\/\([^"]*\)".*/\1/p' | head -n 1)
efs kms rotate-key --kms-dir "$KMS" "$KEY"
efs umount "$MNT"
efs mount "$VAULT" "$MNT" --kms-dir "$KMS"
cat "$MNT/hello.txt"
echo 'written after the rotation' > "$MNT/new.txt"
for name in hello.txt new.txt; do
  printf '%s: ' "$name"; efs inspect "$(lower "$MNT/$name")" --kms-dir "$KMS" | grep -im 1 version
done
diff -r --no-dereference "$TREE" "$MNT/tree"
echo "the tree is still equal"

say "7. unmounted and checked: every name and block opens"
efs umount "$MNT"
efs check "$VAULT" --kms-dir "$KMS"

say "that was all. Next, with $EFS as envelopefs:"
cat <<NEXT
  envelopefs init ~/vault                    # asks for a passphrase
  mkdir -p ~/plain && envelopefs mount ~/vault ~/plain
  cp -a ~/Documents ~/plain/ && envelopefs umount ~/plain
  envelopefs --help
NEXT
