#!/usr/bin/env bash
# hsm-demo.sh [--short]   An HSM from nothing: created, its certificate signed by an own CA, activated; an admin and a crypto
# user; a key made by pkcs11-tool; a vault initialised and mounted on it through the PKCS#11 module; the HSM stopped and
# started under the mount; a password backup restored into a fresh HSM, which then opens the same vault. Exit 0 only where all
# of it went as it shall. --short leaves out what takes long: TLS and the larger files. What is missing is said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
short=0; [ "${1:-}" = --short ] && short=1
efs=$(realpath "${EFS:-${CARGO_TARGET_DIR:-target}/debug/envelopefs}")
[ -x "$efs" ] || { echo "hsm-demo.sh: $efs is missing; build it, or name it with EFS" >&2; exit 2; }
module=${EFS_MODULE:-$(dirname "$efs")/libenvelopefs.so}
[ -f "$module" ] || { echo "hsm-demo.sh: $module is missing; cargo build makes it, or name it with EFS_MODULE" >&2; exit 2; }
for program in pkcs11-tool openssl; do
  command -v "$program" >/dev/null || { echo "hsm-demo.sh: $program is missing: apt install opensc openssl" >&2; exit 2; }
done
work=$(mktemp -d)
declare -A servers=()
cleanup() {
  mountpoint -q "$work/plain" 2>/dev/null && fusermount3 -uz "$work/plain"
  for name in "${!servers[@]}"; do kill "${servers[$name]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
step() { printf '%-74s' "$1"; }
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

# serve NAME [ADDRESS]   starts the HSM of $work/NAME; by default on a socket beside it.
serve() {
  local name=$1 listen=${2:-unix:$work/$1.sock}
  "$efs" hsm serve --dir "$work/$name" --listen "$listen" >"$work/$name.out" 2>>"$work/$name.err" &
  servers[$name]=$!
  [[ $listen != unix:* ]] || until_true test -S "${listen#unix:}"
}
# stop NAME   as a plug that is pulled.
stop() {
  kill -9 "${servers[$1]}"
  wait "${servers[$1]}" 2>/dev/null || true
  unset "servers[$1]"
  rm -f "$work/$1.sock"
}
# talk_to NAME   the HSM for commands and module.
talk_to() { export ENVELOPEFS_HSM=unix:$work/$1.sock; }

# new_hsm NAME   creates and activates an HSM, with the admin and the crypto user `user`.
new_hsm() {
  "$efs" hsm cluster create --dir "$work/$1" --key-file >/dev/null
  serve "$1"
  talk_to "$1"
  "$efs" hsm cluster activate --password-file "$work/admin" >/dev/null
  "$efs" hsm login --username admin --role admin --password-file "$work/admin" >/dev/null
  "$efs" hsm user create --username user --role crypto-user --password-file "$work/user" >/dev/null
}

# sign NAME   the certificate of an HSM by an own CA.
sign() {
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/ca.key" -out "$work/ca.crt" -days 30 -subj "/CN=demo CA" 2>/dev/null
  "$efs" hsm cluster csr >"$work/$1.csr"
  openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -copy_extensions copy -days 30 \
    -out "$work/$1.crt" 2>/dev/null
  "$efs" hsm cluster initialize --signed-cert "$work/$1.crt" --trust-anchor "$work/ca.crt" >/dev/null
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
  step "an HSM is created and activated; admin and crypto user"
  new_hsm one; ok
  if [ $short = 0 ]; then
    step "its certificate is signed by an own CA"
    sign one; ok
  fi
  step "a wrong PIN is refused, and the admin uses no key"
  refused 'CKR_PIN_INCORRECT' pkcs11-tool --module "$module" --login --pin user:not-this-one --list-objects
  refused 'another role' "$efs" hsm key generate-symmetric aes --label x; ok
  step "a key is made by pkcs11-tool"
  tool --keygen --key-type AES:32 --sensitive --label vault-key --id 01 >/dev/null
  tool --list-objects --type secrkey | grep -q vault-key; ok
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

demo_outage() {
  step "the HSM is stopped: what is open goes on, the rest gives ENOKEY"
  local key_missing='Required key not available'
  exec 7<"$work/plain/file-100000"
  stop one
  refused "$key_missing" cat "$work/plain/file-4065"
  cmp "$work/copy-100000" - <&7 || fail "what is open does not go on"
  exec 7<&-; ok
  step "it is started again: the mount goes on by itself"
  serve one
  until_true cat "$work/plain/file-4065"
  compare "$work/plain"
  echo new >"$work/plain/after"
  "$efs" umount "$work/plain"; ok
}

demo_restore() {
  step "a password backup; restored into a fresh HSM, it opens the same vault"
  "$efs" hsm login --username admin --role admin --password-file "$work/admin" >/dev/null
  "$efs" hsm backup --password-file "$work/backup" >/dev/null
  refused 'assword\|wrong' "$efs" hsm restore --dir "$work/none" --key-file --backup "$work"/one/backups/*.backup --password-file "$work/user"
  stop one
  "$efs" hsm restore --dir "$work/two" --key-file --backup "$work"/one/backups/*.backup --password-file "$work/backup" >/dev/null
  rm -r "$work/one"
  serve two
  talk_to two
  vault_mount
  compare "$work/plain"
  [ "$(cat "$work/plain/after")" = new ]
  "$efs" umount "$work/plain"
  "$efs" check "$work/vault" >/dev/null; ok
}

demo_hsm
if [ -e /dev/fuse ]; then
  demo_vault
  demo_outage
  demo_restore
else
  echo "no /dev/fuse: the vault was not mounted"
fi
