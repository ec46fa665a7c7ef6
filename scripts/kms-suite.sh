#!/usr/bin/env bash
# kms-suite.sh [moto|sdk|all]   Other people's KMS tests against our server: moto's published tests (those that agree with
# AWS) and the integration tests of the AWS Encryption SDK and its CLI. Prints passed, failed, and each failure's reason.
# The suites themselves are the scripts in $KMS_SUITES [default: ../shared/suites/kms beside the repository].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
which=${1:-all}
suites=${KMS_SUITES:-$(cd .. && pwd)/shared/suites/kms}
[ -d "$suites" ] || { echo "kms-suite.sh: $suites is missing; name the suites with KMS_SUITES" >&2; exit 2; }
efs=${EFS:-${CARGO_TARGET_DIR:-target}/release/envelopefs}
[ -x "$efs" ] || efs=${CARGO_TARGET_DIR:-target}/debug/envelopefs
work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
cat > "$work/seed.toml" <<'S'
[[principal]]
name = "moto"
account = "123456789012"
access-key = "FOOBARKEY"
secret = "FOOBARSECRET"
[[principal]]
name = "sdk"
account = "123456789012"
access-key = "SDKKEY"
secret = "SDKSECRET"
S
export ENVELOPEFS_KMS_DIR=$work/kms
"$efs" kms init --key-file > /dev/null
"$efs" kms serve --listen 127.0.0.1:0 --seed "$work/seed.toml" --test-reset --quota off \
    > "$work/out" 2> "$work/err" & server=$!
for _ in $(seq 100); do grep -q listening "$work/out" && break; sleep 0.1; done
url=$(sed -n 's/^listening on //p' "$work/out")
[ -n "$url" ] || { echo "kms-suite.sh: the server did not start:" >&2; cat "$work/err" >&2; exit 1; }
status=0
case "$which" in moto|all)
    echo "== moto's KMS tests"
    bash "$suites/moto-kms.sh" "$url" --tb=line -rf || status=1;;
esac
case "$which" in sdk|all)
    echo "== AWS Encryption SDK and CLI"
    AWS_ACCESS_KEY_ID=SDKKEY AWS_SECRET_ACCESS_KEY=SDKSECRET bash "$suites/encryption-sdk.sh" "$url" | tee "$work/sdk"
    if grep -Eq '[0-9]+ failed|[0-9]+ error' "$work/sdk"; then status=1; fi;;
esac
exit $status
