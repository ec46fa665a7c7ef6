#!/usr/bin/env bash
# kms-pool-bench.sh   creates 10,000 files on a vault with the embedded KMS and on one whose KMS answers in 10 ms, five times each
# in turn, and prints the medians. The KMS is a test server on this machine, so its work is in the figure.
. "$(dirname "$0")/lib.sh"
need_rust
need_fuse
cd "$REPO"
PROFILE=${PROFILE:---release}
cargo test --locked ${PROFILE:+"$PROFILE"} --test mount -- --ignored --nocapture creates_with_a_far_kms
