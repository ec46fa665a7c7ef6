#!/usr/bin/env bash
# kms-bench.sh [SECONDS]   GenerateDataKey over HTTP, every request signed, on 1 and 16 connections: our server, and moto's
# beside it, in one run on one machine. The client runs on the same processors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-5}
efs=$(realpath "${EFS:-${CARGO_TARGET_DIR:-target}/release/envelopefs}")
[ -x "$efs" ] || { echo "kms-bench.sh: $efs is missing: cargo build --release, or name it with EFS" >&2; exit 2; }
work=$(mktemp -d); pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
export ENVELOPEFS_KMS_DIR=$work/kms AWS_ACCESS_KEY_ID=BENCHKEY AWS_SECRET_ACCESS_KEY=BENCHSECRET
"$efs" kms init --key-file > /dev/null
printf '[[principal]]\nname = "bench"\naccess-key = "BENCHKEY"\nsecret = "BENCHSECRET"\n' > "$work/seed.toml"
"$efs" kms serve --listen 127.0.0.1:0 --seed "$work/seed.toml" --quota off > "$work/out" 2> "$work/err" & pids+=($!)
for _ in $(seq 100); do grep -q listening "$work/out" && break; sleep 0.1; done
url=$(sed -n 's/^listening on //p' "$work/out")
[ -n "$url" ] || { cat "$work/err" >&2; exit 1; }
venv=${MOTO_VENV:-$work/venv}
[ -x "$venv/bin/moto_server" ] || { python3 -m venv "$venv"; "$venv/bin/pip" install -q 'moto[server,kms]==5.2.3'; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$venv/bin/moto_server" -H 127.0.0.1 -p "$port" > "$work/moto" 2>&1 & pids+=($!)
for _ in $(seq 100); do curl -fs -o /dev/null "http://127.0.0.1:$port/moto-api/" && break; sleep 0.2; done
echo "$(nproc) processors, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), load $(cut -d ' ' -f 1 /proc/loadavg)"
for round in 1 2; do
    echo "envelopefs kms serve"; "$efs" kms measure --endpoint-url "$url" --seconds "$seconds"
    echo "moto_server 5.2.3";    "$efs" kms measure --endpoint-url "http://127.0.0.1:$port" --seconds "$seconds"
done
