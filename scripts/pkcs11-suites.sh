#!/usr/bin/env bash
# pkcs11-suites.sh [tool python cryptoki]   runs public PKCS#11 suites against our module and prints one RESULT line each:
# OpenSC's pkcs11-tool, the tests of python-pkcs11 0.10.1, the tests of the cryptoki crate 0.12.1. Each begins with a fresh HSM.
# Exit 0 only where none failed. Needs the network for the two suites' sources.
. "$(dirname "$0")/lib.sh"
need_rust
need pkcs11-tool:opensc python3:python3 openssl:openssl
[ $# -gt 0 ] || set -- tool python cryptoki
if [ -z "${EFS_PROFILE:-}" ]; then
  build_release
  module=$CARGO_TARGET_DIR/release/libenvelopefs.so
else
  EFS=$CARGO_TARGET_DIR/$EFS_PROFILE/envelopefs module=$CARGO_TARGET_DIR/$EFS_PROFILE/libenvelopefs.so
fi
work_dir
mkdir -p "$SUITES/pkcs11"
failed=0 server=
at_exit 'kill $server'

# fresh   a new HSM behind $ENVELOPEFS_HSM; old mechanisms are on, the suites are of their time.
fresh() {
  if [ -n "$server" ]; then kill "$server"; wait "$server" 2>/dev/null || true; fi
  rm -rf "$WORK/hsm" "$WORK/hsm.sock"
  "$EFS" hsm cluster create --dir "$WORK/hsm" --key-file >/dev/null
  "$EFS" hsm serve --dir "$WORK/hsm" --listen "unix:$WORK/hsm.sock" --legacy >"$WORK/hsm.log" 2>&1 &
  server=$!
  export ENVELOPEFS_HSM=unix:$WORK/hsm.sock
  for _ in $(seq 100); do [ -S "$WORK/hsm.sock" ] && return; sleep 0.1; done
  die "the HSM did not start: $(cat "$WORK/hsm.log")"
}

# ready   a fresh HSM with the token SUITE, the admin and the crypto user `user`.
ready() {
  fresh
  pkcs11-tool --module "$module" --init-token --slot 0 --label SUITE --so-pin admin-password >/dev/null
  pkcs11-tool --module "$module" --login --login-type so --so-pin admin-password --init-pin --new-pin user:password \
    >/dev/null 2>&1
}

tool() {
  ready
  local pt="timeout 120 pkcs11-tool --module $module --token-label SUITE --login --login-type user --pin user:password"
  local ok=0 bad='' w=$WORK
  printf hello >"$w/msg"
  t() {
    local name=$1
    shift
    if "$@" >"$w/tool-$name.log" 2>&1; then ok=$((ok + 1)); else bad="$bad $name" && cat "$w/tool-$name.log"; fi
  }
  # shellcheck disable=SC2086
  {
    t slots pkcs11-tool --module "$module" -L
    t mechs pkcs11-tool --module "$module" --token-label SUITE -M
    t rsagen $pt --keypairgen --key-type rsa:2048 --label my-key --id a1
    t ecgen $pt --keypairgen --key-type EC:prime256v1 --label my-ec --id a2
    t aesgen $pt --keygen --key-type AES:32 --label my-aes --id a3 --sensitive
    t list $pt --list-objects
    t sign $pt --sign -m SHA256-RSA-PKCS --id a1 -i "$w/msg" -o "$w/sig"
    t verify $pt --verify -m SHA256-RSA-PKCS --id a1 -i "$w/msg" --signature-file "$w/sig"
    t pss $pt --sign -m SHA256-RSA-PKCS-PSS --id a1 -i "$w/msg" -o "$w/sigp"
    t ecdsa $pt --sign -m ECDSA-SHA256 --id a2 -i "$w/msg" -o "$w/sige"
    t export $pt --read-object --type pubkey --id a1 -o "$w/pub.der"
    t openssl openssl dgst -sha256 -verify "$w/pub.der" -keyform DER -signature "$w/sig" "$w/msg"
    t test $pt --test
    t testec $pt --session-rw --test-ec --key-type EC:prime256v1 --id a4
    t fork $pt --test-fork
    t wrongpin sh -c "! pkcs11-tool --module $module --token-label SUITE --login --pin not-the-pin -O"
  }
  echo "RESULT pkcs11-tool passed=$ok failed=[${bad# }]"
  [ -z "$bad" ] || failed=1
}

python() {
  ready
  local at=$SUITES/pkcs11/python
  mkdir -p "$at"
  [ -x "$at/venv/bin/pytest" ] || {
    python3 -m venv "$at/venv"
    "$at/venv/bin/pip" -q install python-pkcs11==0.10.1 pytest parameterized cryptography
  }
  [ -d "$at/src/tests" ] || {
    mkdir -p "$at/src"
    "$at/venv/bin/pip" -q download --no-deps --no-binary :all: -d "$at" python-pkcs11==0.10.1
    tar xzf "$at"/python_pkcs11-0.10.1.tar.gz -C "$at/src" --strip-components=1 python_pkcs11-0.10.1/tests
  }
  (cd "$at/src" && PKCS11_MODULE=$module PKCS11_TOKEN_LABEL=SUITE PKCS11_TOKEN_PIN=user:password \
    PKCS11_TOKEN_SO_PIN=admin-password timeout 900 "$at/venv/bin/python" -m pytest -q -rfEs tests) >"$WORK/python.log" 2>&1 \
    || failed=1
  grep -E '^(FAILED|ERROR)' "$WORK/python.log" || true
  echo "RESULT python-pkcs11 $(grep -E '[0-9]+ (passed|failed|error)' "$WORK/python.log" | tail -n 1)"
}

cryptoki() {
  fresh
  local at=$SUITES/pkcs11/cryptoki
  mkdir -p "$at/fetch/src"
  [ -d "$at/src" ] || {
    : >"$at/fetch/src/lib.rs"
    printf '[package]\nname="fetch"\nversion="0.1.0"\nedition="2021"\n[dependencies]\ncryptoki="=0.12.1"\n' >"$at/fetch/Cargo.toml"
    (cd "$at/fetch" && cargo fetch -q)
    cp -r "$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cryptoki-0.12.1 | head -n 1)" "$at/src"
  }
  # The suite knows two kinds of libraries: those of PKCS#11 2.40, which it names softhsm, and those of 3.0. Ours is of 2.40.
  (cd "$at/src" && TEST_PKCS11_MODULE=$module TEST_PRETEND_LIBRARY=softhsm CARGO_TARGET_DIR=$at/target timeout 1800 \
    cargo test --tests --no-fail-fast) >"$WORK/cryptoki.log" 2>&1 || failed=1
  grep -E '^test .*FAILED' "$WORK/cryptoki.log" || true
  echo "RESULT cryptoki-crate $(grep '^test result' "$WORK/cryptoki.log" \
    | awk '{ p += $4; f += $6; i += $8 } END { print "passed=" p " failed=" f " ignored=" i }')"
}

for suite in "$@"; do "$suite"; done
exit "$failed"
