#!/usr/bin/env bash
# check.sh [TEST FILTER...]   formatting, lints, licences and advisories, every test. Installs nothing: `test.sh` does.
# The last line tells the counts: "N passed, N failed".
. "$(dirname "$0")/lib.sh"
cd "$REPO"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
work_dir
# Tests mount below here, also as ordinary users; what a killed test left mounted is taken away at exit.
export TMPDIR=$WORK/tmp
mkdir -m 1777 "$TMPDIR"
failed_steps=0

step() {
  say "$1"
  shift
  "$@" || { echo "FAILED: $*"; failed_steps=$((failed_steps + 1)); }
}

step "formatting" cargo fmt --all --check
step "lints" cargo clippy --locked --all-targets -- -D warnings
step "without the feature aws" cargo check --locked --no-default-features --lib --bins
if command -v cargo-deny >/dev/null; then
  step "licences and sources" cargo deny --log-level error check licenses bans sources
  # The advisory database is fetched; without a network there is nothing to check against.
  if cargo deny fetch db >/dev/null 2>&1; then
    step "advisories" cargo deny --log-level warn check advisories
  else
    echo "the advisory database is out of reach: advisories not checked"
  fi
else
  echo "cargo-deny is not installed: licences and advisories not checked"
fi

say "tests"
log=$WORK/tests.log
status=0
if command -v cargo-nextest >/dev/null; then
  cargo nextest run --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=1
  passed=$(sed -n 's/^ *Summary .* \([0-9][0-9]*\) passed.*/\1/p' "$log" | tail -n 1)
  failed=$(sed -n 's/^ *Summary .* \([0-9][0-9]*\) failed.*/\1/p' "$log" | tail -n 1)
  hung=$(sed -n 's/^ *Summary .* \([0-9][0-9]*\) timed out.*/\1/p' "$log" | tail -n 1)
else
  cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=1
  passed=$(sed -n 's/^test result: .* \([0-9][0-9]*\) passed;.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
  failed=$(sed -n 's/^test result: .* \([0-9][0-9]*\) failed;.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
  hung=0
fi
passed=${passed:-0} failed=$((${failed:-0} + ${hung:-0}))
# A build that broke has no counts, and no test at all is no success either.
if [ "$failed" = 0 ] && { [ "$status" != 0 ] || [ "$passed" = 0 ]; }; then failed=1; fi

# Keys, names and spans on each cipher kernel that this processor has. Vectors and mounts go over all of them by themselves.
kernels() {
  local flags
  flags=" $(sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | head -n 1) "
  has() { for f in "$@"; do [[ $flags == *" $f "* ]] || return 1; done; }
  echo portable
  if has aes pclmulqdq avx; then echo aesni; fi
  if has aes avx2 vaes vpclmulqdq; then echo vaes256; fi
  if has avx512f avx512bw avx512vl avx512dq vaes vpclmulqdq; then echo vaes512; fi
}
for kernel in $(kernels); do
  step "library on kernel $kernel" env EFS_TEST_KERNEL="$kernel" cargo test --locked --quiet --lib -- crypto:: pipeline::
done

# The demos run what the tests have built: by itself, cargo would build all of it again, since the features differ.
export EFS=${CARGO_TARGET_DIR:-target}/debug/envelopefs
[ -x "$EFS" ] || cargo build --locked --quiet

if command -v restic >/dev/null && command -v curl >/dev/null && [ -e /dev/fuse ]; then
  step "backup demo, short" scripts/backup-demo.sh --short
else
  echo "restic or curl is not installed: scripts/backup-demo.sh was not run"
fi

if command -v python3 >/dev/null; then
  step "KMS demo, short" scripts/kms-demo.sh --short
else
  echo "python3 is not installed: scripts/kms-demo.sh was not run"
fi

if command -v pkcs11-tool >/dev/null && command -v openssl >/dev/null; then
  step "HSM demo, short" scripts/hsm-demo.sh --short
else
  echo "opensc or openssl is not installed: scripts/hsm-demo.sh was not run"
fi

say "summary"
[ "$failed_steps" = 0 ] || echo "$failed_steps of formatting, lints, licences failed"
echo "$passed passed, $((failed + failed_steps)) failed"
[ "$((failed + failed_steps))" = 0 ]
