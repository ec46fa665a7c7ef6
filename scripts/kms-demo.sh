#!/usr/bin/env bash
# kms-demo.sh [--short]   The KMS server driven by the real AWS CLI and boto3: keys, aliases, a policy that denies and one
# that allows, a grant, contexts, rotation, disabling, deletion; then a vault whose key is rotated and disabled.
# Two hosts mount one vault with a principal each; revoking the grant of one stops that host alone.
# --short leaves out what needs Python packages: our own command line plays the client, by signed requests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
short=0; [ "${1:-}" = --short ] && short=1
efs=$(realpath "${EFS:-${CARGO_TARGET_DIR:-target}/debug/envelopefs}")
[ -x "$efs" ] || { echo "kms-demo.sh: $efs is missing; build it, or name it with EFS" >&2; exit 2; }
work=$(mktemp -d); server=
cleanup() {
    for at in "$work"/plain "$work"/host[12]; do
        mountpoint -q "$at" 2>/dev/null && fusermount3 -uz "$at"
    done
    [ -n "$server" ] && { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }
    rm -rf "$work"
}
trap cleanup EXIT
step() { printf '%-66s' "$1"; }
ok() { echo ok; }
# Runs a command that must fail, and say why.
refused() { local want=$1; shift; local text; if text=$("$@" 2>&1); then echo "NOT REFUSED: $*"; exit 1; fi
    grep -q "$want" <<< "$text" || { echo "refused otherwise than by $want: $text"; exit 1; }; }

export ENVELOPEFS_KMS_DIR=$work/kms
"$efs" kms init --key-file > /dev/null
serve() {
    "$efs" kms serve --listen 127.0.0.1:0 > "$work/out" 2>> "$work/err" & server=$!
    for _ in $(seq 100); do grep -q listening "$work/out" && break; sleep 0.1; done
    url=$(sed -n 's/^listening on //p' "$work/out")
    [ -n "$url" ] || { cat "$work/err"; exit 1; }
}
serve
value() { python3 -c 'import json,sys; print(json.load(sys.stdin)["Principal"][sys.argv[1]])' "$1"; }
"$efs" kms principal create alice --json > "$work/alice"
cat > "$work/nothing.json" <<'P'
{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:ListKeys","Resource":"*"}]}
P
"$efs" kms principal create bob --json --policy-document "$work/nothing.json" > "$work/bob"
as() { AWS_ACCESS_KEY_ID=$(value AccessKeyId < "$work/$1") AWS_SECRET_ACCESS_KEY=$(value SecretAccessKey < "$work/$1") \
       AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true "${@:2}"; }
if [ $short = 1 ]; then
    kms() { as "$1" "$efs" kms --endpoint-url "$url" "${@:2}" --json; }
else
    venv=${KMS_DEMO_VENV:-$work/venv}
    [ -x "$venv/bin/aws" ] || { python3 -m venv "$venv"; "$venv/bin/pip" install -q awscli boto3; }
    kms() { as "$1" "$venv/bin/aws" --endpoint-url "$url" --output json kms "${@:2}"; }
fi
field() { python3 -c 'import json,sys
v = json.load(sys.stdin)
for k in sys.argv[1].split("."): v = v[k]
print(v)' "$1"; }

step "create a key and an alias"
key=$(kms alice create-key --description demo | field KeyMetadata.KeyId)
arn=$(kms alice describe-key --key-id "$key" | field KeyMetadata.Arn)
kms alice create-alias --alias-name alias/demo --target-key-id "$key"; ok
step "encrypt with a context, decrypt, wrong context refused"
printf 'the plaintext' > "$work/plain.txt"
kms alice encrypt --key-id alias/demo --plaintext "fileb://$work/plain.txt" --encryption-context a=bc \
    | field CiphertextBlob | base64 -d > "$work/blob"
[ "$(kms alice decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc | field Plaintext | base64 -d)" = "the plaintext" ]
refused 'InvalidCiphertext\|does not open' kms alice decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context ab=c; ok
step "a principal without permission is denied"
refused 'AccessDenied\|not authorized\|not allowed' kms bob decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc; ok
step "a key policy that allows him"
root=${arn#*:kms:*:}; root="arn:aws:iam::${root%%:*}:root"
bob=$(value Arn < "$work/bob")
policy() { cat <<P
{"Version":"2012-10-17","Statement":[
 {"Sid":"account","Effect":"Allow","Principal":{"AWS":"$root"},"Action":"kms:*","Resource":"*"},
 {"Sid":"bob","Effect":"$1","Principal":{"AWS":"$bob"},"Action":["kms:Decrypt","kms:DescribeKey"],"Resource":"*"}]}
P
}
policy Allow > "$work/allow.json"; policy Deny > "$work/deny.json"
kms alice put-key-policy --key-id "$key" --policy-name default --policy "file://$work/allow.json"
kms bob decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc > /dev/null; ok
step "a key policy that denies him, grant or not"
kms alice put-key-policy --key-id "$key" --policy-name default --policy "file://$work/deny.json"
grant=$(kms alice create-grant --key-id "$key" --grantee-principal "$bob" --operations Decrypt | field GrantId)
refused 'AccessDenied\|not authorized\|not allowed' kms bob decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc; ok
step "a grant allows him, until it is revoked"
printf '{"Version":"2012-10-17","Statement":[{"Sid":"account","Effect":"Allow","Principal":{"AWS":"%s"},"Action":"kms:*","Resource":"*"}]}' "$root" > "$work/plain.json"
kms alice put-key-policy --key-id "$key" --policy-name default --policy "file://$work/plain.json"
kms bob decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc > /dev/null
kms alice revoke-grant --key-id "$key" --grant-id "$grant"
refused 'AccessDenied\|not authorized\|not allowed' kms bob decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc; ok
step "rotate; the old ciphertext still decrypts"
kms alice rotate-key-on-demand --key-id "$key" > /dev/null
kms alice decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc > /dev/null; ok
step "the server is killed and starts again; nothing is lost"
kill -9 "$server"; wait "$server" 2>/dev/null || true
serve
kms alice decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc > /dev/null; ok
if [ $short = 0 ]; then
    step "boto3: data keys, signatures, MACs, pagination, STS"
    AWS_ENDPOINT_URL=$url as alice "$venv/bin/python" - <<'B'
import boto3
kms = boto3.client("kms")
made = kms.generate_data_key(KeyId="alias/demo", KeySpec="AES_256", EncryptionContext={"file": "1"})
assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext={"file": "1"})["Plaintext"] == made["Plaintext"]
rsa = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
signed = kms.sign(KeyId=rsa, Message=b"m", SigningAlgorithm="RSASSA_PSS_SHA_256")["Signature"]
assert kms.verify(KeyId=rsa, Message=b"m", Signature=signed, SigningAlgorithm="RSASSA_PSS_SHA_256")["SignatureValid"]
try:
    kms.verify(KeyId=rsa, Message=b"x", Signature=signed, SigningAlgorithm="RSASSA_PSS_SHA_256")
    raise SystemExit("a wrong signature was accepted")
except kms.exceptions.KMSInvalidSignatureException:
    pass
hmac = kms.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["KeyId"]
mac = kms.generate_mac(KeyId=hmac, Message=b"m", MacAlgorithm="HMAC_SHA_256")["Mac"]
assert kms.verify_mac(KeyId=hmac, Message=b"m", MacAlgorithm="HMAC_SHA_256", Mac=mac)["MacValid"]
assert sum(len(p["Keys"]) for p in kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 1})) == 3
assert boto3.client("sts").get_caller_identity()["Arn"].endswith("user/alice")
B
    ok
fi
step "disable, enable, schedule the deletion, take it back"
kms alice disable-key --key-id "$key"
refused disabled kms alice decrypt --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc
kms alice enable-key --key-id "$key"
[ "$(kms alice schedule-key-deletion --key-id "$key" --pending-window-in-days 7 | field KeyState)" = PendingDeletion ]
kms alice cancel-key-deletion --key-id "$key" > /dev/null
kms alice enable-key --key-id "$key"; ok
step "backup, check"
echo phrase > "$work/phrase"
"$efs" kms backup "$work/backup" --backup-passphrase-file "$work/phrase" > /dev/null
"$efs" kms check > /dev/null; ok
kill "$server"; wait "$server" 2>/dev/null || true; server=
step "restore into a new store; the ciphertext decrypts there"
"$efs" kms restore "$work/backup" --backup-passphrase-file "$work/phrase" --key-file --kms-dir "$work/kms2" > /dev/null
"$efs" kms decrypt --kms-dir "$work/kms2" --ciphertext-blob "fileb://$work/blob" --encryption-context a=bc > /dev/null; ok
if [ -e /dev/fuse ]; then
    step "a vault on the key: mounted, rotated, rewrapped, disabled"
    mkdir "$work/plain"
    "$efs" init --key-uri "kms:embedded/$key" "$work/vault" > /dev/null
    "$efs" mount --log-file "$work/log" "$work/vault" "$work/plain"
    echo one > "$work/plain/one"
    "$efs" kms rotate-key "$key" > /dev/null
    echo two > "$work/plain/two"; [ "$(cat "$work/plain/one")" = one ]
    "$efs" rewrap "$work/vault" > /dev/null
    "$efs" keys --json "$work/vault" | python3 -c 'import json,sys
keys = json.load(sys.stdin)["keys"]
assert [(k["version"], k["files"]) for k in keys] == [(keys[0]["version"], 2)], keys'
    [ "$(cat "$work/plain/one")$(cat "$work/plain/two")" = onetwo ]
    "$efs" umount "$work/plain"
    "$efs" kms disable-key --key-id "$key"
    refused 'disabled\|not enabled' "$efs" mount --log-file "$work/log" "$work/vault" "$work/plain"
    "$efs" kms enable-key --key-id "$key"
    "$efs" mount --log-file "$work/log" "$work/vault" "$work/plain"; [ "$(cat "$work/plain/two")" = two ]
    "$efs" umount "$work/plain"; ok
    step "two hosts, one key: a revoked grant stops that host alone"
    serve
    kms alice create-key > "$work/hosts-key"
    hosts_arn=$(field KeyMetadata.Arn < "$work/hosts-key")
    as alice "$efs" init --key-uri "kms:$url/$hosts_arn" "$work/hosts" > /dev/null
    for host in host1 host2; do
        "$efs" kms principal create $host --json --policy-document "$work/nothing.json" > "$work/$host.principal"
        kms alice create-grant --key-id "$hosts_arn" --grantee-principal "$(value Arn < "$work/$host.principal")" \
            --operations Decrypt Encrypt GenerateDataKey DescribeKey | field GrantId > "$work/$host.grant"
        mkdir "$work/$host"
        as $host.principal "$efs" mount --shared -o key_cache=0 --log-file "$work/log" "$work/hosts" "$work/$host"
    done
    echo one > "$work/host1/one"; echo two > "$work/host2/two"
    [ "$(cat "$work/host2/one")$(cat "$work/host1/two")" = onetwo ]
    kms alice revoke-grant --key-id "$hosts_arn" --grant-id "$(cat "$work/host2.grant")"
    refused 'Permission denied' cat "$work/host2/one"
    [ "$(cat "$work/host1/two")" = two ]; echo three > "$work/host1/three"
    for host in host1 host2; do "$efs" umount "$work/$host"; done
    kill "$server"; wait "$server" 2>/dev/null || true; server=
    ok
fi
echo "kms-demo: all done"
