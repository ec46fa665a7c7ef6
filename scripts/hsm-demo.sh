#!/usr/bin/env bash
# hsm-demo.sh [--short]   HSMs from nothing: an own CA; a cluster of three, initialised with certificates of that CA and
# activated; admins and a crypto user; a key made by pkcs11-tool, which all members have; a vault initialised and mounted on the
# cluster through the PKCS#11 module; each member killed while files are written and read, none of which may fail, and brought
# back, and synchronised; all of them killed and started under the mount; a password backup restored into a fresh HSM, which
# then opens the same vault. Exit 0 only where all of it went as it shall. --short leaves out the larger files, and TLS: the
# module talks to the members over Unix sockets only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
short=0; [ "${1:-}" = --short ] && short=1
efs=$(realpath "${EFS:-${CARGO_TARGET_DIR:-target}/debug/envelopefs}")
[ -x "$efs" ] || { echo "hsm-demo.sh: $efs is missing; build it, or name it with EFS" >&2; exit 2; }
# Tests build the module as a dependency of theirs: it is one directory below then, and a build's own may be older.
module=${EFS_MODULE:-}
if [ -z "$module" ]; then
  for found in "${efs%/*}/libenvelopefs.so" "${efs%/*}/deps/libenvelopefs.so"; do
    if [ -f "$found" ] && { [ -z "$module" ] || [ "$found" -nt "$module" ]; }; then module=$found; fi
  done
fi
[ -f "$module" ] || { echo "hsm-demo.sh: no libenvelopefs.so beside $efs; cargo build makes it, or name it with EFS_MODULE" >&2; exit 2; }
for program in pkcs11-tool openssl; do
  command -v "$program" >/dev/null || { echo "hsm-demo.sh: $program is missing: apt install opensc openssl" >&2; exit 2; }
done
work=$(mktemp -d)
declare -A servers=() ports=()
load=
cleanup() {
  : >"$work/enough"
  mountpoint -q "$work/plain" 2>/dev/null && fusermount3 -uz "$work/plain"
  for name in "${!servers[@]}"; do kill "${servers[$name]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
step() { printf '%-76s' "$1"; }
ok() { echo ok; }
fail() { echo "FAILED: $*"; [ ! -f "$work/log" ] || tail -n 20 "$work/log"; exit 1; }
# refused PATTERN COMMAND...   runs a command that must fail, and say why.
refused() {
  local want=$1 text
  shift
  if text=$("$@" 2>&1); then fail "not refused: $*"; fi
  grep -q -- "$want" <<<"$text" || fail "refused otherwise than by $want: $text"
}
# until_true COMMAND...   waits up to 60 s for what comes by itself.
until_true() {
  local n
  for n in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  fail "it does not come: $*"
}

umask 077
export XDG_RUNTIME_DIR=$work
echo admin-password >"$work/admin"
echo user-password >"$work/user"
echo user:user-password >"$work/pin"
echo backup-password >"$work/backup"

# serve NAME...   starts the HSMs of $work/NAME, each on a socket beside it; one with a certificate on TCP too, if not --short.
serve() {
  local name listen
  for name in "$@"; do
    listen=(--listen "unix:$work/$name.sock")
    [ $short = 1 ] || [ ! -f "$work/$name.crt" ] || listen+=(--listen "tcp:127.0.0.1:${ports[$name]:-0}")
    "$efs" hsm serve --dir "$work/$name" "${listen[@]}" >"$work/$name.out" 2>>"$work/$name.err" &
    servers[$name]=$!
  done
  for name in "$@"; do until_true test -S "$work/$name.sock"; done
}
# stop NAME...   as a plug that is pulled.
stop() {
  local name
  for name in "$@"; do
    kill -9 "${servers[$name]}"
    wait "${servers[$name]}" 2>/dev/null || true
    unset "servers[$name]"
    rm -f "$work/$name.sock"
  done
}
# at NAME ARGUMENT...   a command of `hsm`, at one member.
at() {
  local name=$1
  shift
  ENVELOPEFS_HSM=unix:$work/$name.sock "$efs" hsm "$@"
}
log_in() { at "$1" login --username admin --role admin --password-file "$work/admin" >/dev/null; }
# on_tcp NAME...   starts HSMs anew, which then serve on a port of the system's choice too, and keep it.
on_tcp() {
  local name
  for name in "$@"; do
    stop "$name"
    serve "$name"
    until_true grep -q tcp: "$work/$name.out"
    ports[$name]=$(sed -n 's/.*tcp:127.0.0.1:\([0-9]*\).*/\1/p' "$work/$name.out")
  done
}
# members NAME...   writes the module's configuration.
members() {
  local name list= tls=
  for name in "$@"; do
    if [ $short = 1 ]; then list+=",\"unix:$work/$name.sock\""; else list+=",\"tcp:127.0.0.1:${ports[$name]}\""; fi
  done
  [ $short = 1 ] ||
    tls=", \"tls\": {\"ca\": \"$work/ca.crt\", \"cert\": \"$work/client.crt\", \"key\": \"$work/client.key\"}"
  echo "{\"members\": [${list:1}]$tls}" >"$work/hsm.json"
}
export ENVELOPEFS_HSM_CONF=$work/hsm.json

# authority   the own CA, and a client's certificate by it.
authority() {
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/ca.key" -out "$work/ca.crt" -days 30 -subj "/CN=demo CA" 2>/dev/null
  openssl req -newkey rsa:2048 -nodes -keyout "$work/client.key" -out "$work/client.csr" -subj "/CN=demo client" \
    -addext extendedKeyUsage=clientAuth 2>/dev/null
  openssl x509 -req -in "$work/client.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -copy_extensions copy -days 30 \
    -out "$work/client.crt" 2>/dev/null
}
# sign NAME   the certificate of an HSM by the own CA.
sign() {
  at "$1" cluster csr >"$work/$1.csr"
  openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -copy_extensions copy -days 30 \
    -out "$work/$1.crt" 2>/dev/null
  at "$1" cluster initialize --signed-cert "$work/$1.crt" --trust-anchor "$work/ca.crt" >/dev/null
}

# new_hsm NAME   creates, initialises and activates an HSM, with an admin more and the crypto user `user`.
new_hsm() {
  "$efs" hsm cluster create --dir "$work/$1" --key-file >/dev/null
  serve "$1"
  sign "$1"
  at "$1" cluster activate --password-file "$work/admin" >/dev/null
  log_in "$1"
  at "$1" user create --username officer --role admin --password-file "$work/admin" >/dev/null
  at "$1" user create --username user --role crypto-user --password-file "$work/user" >/dev/null
}
# new_member NAME OF   makes an HSM of a backup of another, and a member of its cluster.
new_member() {
  "$efs" hsm restore --dir "$work/$1" --key-file --backup "$work/$2"/backups/*.backup --password-file "$work/backup" >/dev/null
  serve "$1"
  log_in "$1"
  sign "$1"
  log_in "$2"
  at "$2" cluster add --member "unix:$work/$1.sock" >/dev/null
}
# synchronised NAME   whether the others have all that a member has, by its own word.
synchronised() {
  [ "$(at "$1" health | tr -d ' \n' | grep -o '"lacks":0' | wc -l)" = 2 ]
}

tool() { pkcs11-tool --module "$module" --login --login-type user --pin user:user-password "$@" 2>>"$work/tool.err"; }
uri() { echo "pkcs11:object=vault-key?module-path=$module&pin-source=file:$work/pin"; }

# fill DIR, compare DIR   files of several sizes, and whether they are as they were.
sizes="0 1 4064 4065 100000"
[ $short = 1 ] || sizes="$sizes 20000000"
fill() {
  local size
  for size in $sizes; do head -c "$size" /dev/urandom | tee "$work/copy-$size" >"$1/file-$size"; done
}
compare() {
  local size
  for size in $sizes; do cmp "$work/copy-$size" "$1/file-$size" || fail "file-$size is not as it was"; done
}
vault_mount() { "$efs" mount -o key_cache=0 --log-file "$work/log" "$work/vault" "$work/plain"; }

demo_hsm() {
  step "an own CA; an HSM is created, initialised, activated; admins, crypto user"
  authority
  new_hsm one; ok
  step "a cluster of three: two more are made of its backup, and added"
  at one backup --password-file "$work/backup" >/dev/null
  new_member two one
  new_member three one
  [ $short = 1 ] || on_tcp one two three
  members one two three
  until_true synchronised one; ok
  step "a wrong PIN is refused, and the admin uses no key"
  refused 'CKR_PIN_INCORRECT' pkcs11-tool --module "$module" --login --pin user:not-this-one --list-objects
  refused 'another role' at one key generate-symmetric aes --label x; ok
  step "a key is made by pkcs11-tool; hsm health: no member lacks it"
  tool --keygen --key-type AES:32 --sensitive --label vault-key --id 01 >/dev/null
  local name
  for name in one two three; do until_true synchronised "$name"; done
  for name in one two three; do
    ENVELOPEFS_HSM=unix:$work/$name.sock tool --list-objects --type secrkey | grep -q vault-key || fail "$name has no key"
  done; ok
}

demo_vault() {
  step "a vault is initialised and mounted on it through the module"
  refused 'no AES or RSA key' "$efs" init --key-uri "$(uri | sed s/vault-key/other-key/)" "$work/vault"
  "$efs" init --key-uri "$(uri)" "$work/vault" >/dev/null
  mkdir "$work/plain"
  vault_mount
  fill "$work/plain"
  "$efs" umount "$work/plain"
  vault_mount
  compare "$work/plain"; ok
}

# work_on   writes new files and reads them and an older one, until it is told; a failure is left in $work/broken.
work_on() {
  local n=0
  while [ ! -e "$work/enough" ]; do
    n=$((n + 1))
    head -c 5000 /dev/urandom >"$work/load"
    if ! { cp "$work/load" "$work/plain/load-$n" && cmp "$work/load" "$work/plain/load-$n" &&
      cmp "$work/copy-4065" "$work/plain/file-4065"; } 2>"$work/load.err"; then
      echo "at file $n: $(cat "$work/load.err")" >"$work/broken"
      return
    fi
    echo "$n" >"$work/done.new"
    mv "$work/done.new" "$work/done"
  done
}
# works_on   waits until twenty files more are written.
works_on() {
  local before
  before=$(cat "$work/done" 2>/dev/null || echo 0)
  has_more() { [ -e "$work/broken" ] || [ "$(cat "$work/done" 2>/dev/null || echo 0)" -ge $((before + 20)) ]; }
  until_true has_more
  [ ! -e "$work/broken" ] || fail "a file operation failed $(cat "$work/broken")"
}
demo_loss() {
  step "each member is killed under load and comes back; no operation fails"
  local lost other pair
  work_on &
  load=$!
  for pair in one:two two:three three:one; do
    lost=${pair%:*} other=${pair#*:}
    works_on
    stop "$lost"
    works_on
    # What it lacks when it is back.
    log_in "$other"
    at "$other" user create --username "late-$lost" --role crypto-user --password-file "$work/user" >/dev/null
    at "$other" health | grep -q "late-$lost" || fail "hsm health does not say that $lost lacks a user"
    serve "$lost"
    until_true synchronised "$other"
    log_in "$lost"
    at "$lost" user list | grep -q "late-$lost" || fail "$lost does not know the user that was made without it"
  done
  works_on
  : >"$work/enough"
  wait "$load"
  [ ! -e "$work/broken" ] || fail "a file operation failed $(cat "$work/broken")"
  echo "ok ($(cat "$work/done") files)"
}

demo_outage() {
  step "all are killed: what is open goes on, the rest gives ENOKEY"
  local key_missing='Required key not available'
  exec 7<"$work/plain/file-100000"
  stop one two three
  refused "$key_missing" cat "$work/plain/file-4065"
  cmp "$work/copy-100000" - <&7 || fail "what is open does not go on"
  exec 7<&-; ok
  step "they are started again: the mount goes on by itself"
  serve one two three
  until_true cat "$work/plain/file-4065"
  compare "$work/plain"
  echo new >"$work/plain/after"
  "$efs" umount "$work/plain"; ok
}

demo_restore() {
  step "a password backup; restored into a fresh HSM, it opens the same vault"
  log_in one
  rm "$work"/one/backups/*.backup
  at one backup --password-file "$work/backup" >/dev/null
  refused 'assword\|wrong' "$efs" hsm restore --dir "$work/none" --key-file --backup "$work"/one/backups/*.backup --password-file "$work/user"
  stop one two three
  "$efs" hsm restore --dir "$work/fresh" --key-file --backup "$work"/one/backups/*.backup --password-file "$work/backup" >/dev/null
  rm -r "$work/one" "$work/two" "$work/three"
  serve fresh
  if [ $short = 0 ]; then
    log_in fresh
    sign fresh
    on_tcp fresh
  fi
  members fresh
  vault_mount
  compare "$work/plain"
  [ "$(cat "$work/plain/after")" = new ]
  "$efs" umount "$work/plain"
  "$efs" check "$work/vault" >/dev/null; ok
}

demo_hsm
if [ -e /dev/fuse ]; then
  demo_vault
  demo_loss
  demo_outage
  demo_restore
else
  echo "no /dev/fuse: the vault was not mounted"
fi
