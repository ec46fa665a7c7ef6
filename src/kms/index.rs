//! Names of the index: what a listing or a decision finds without reading every record.
//!
//! An entry has no content. Principals stand in it as digests, so that the store file does not name them.

use sha2::{Digest, Sha256};

use super::arn::Scope;
use super::hex;

/// Set once the keys and aliases of an earlier build are in the index.
pub(super) const READY: &str = "!ready";

/// Keys of a scope: `k:ACCOUNT:REGION/ID`.
pub(super) fn key(scope: &Scope, id: &str) -> String {
    format!("k:{}:{}/{id}", scope.account, scope.region)
}

/// Aliases of a scope: `s:ACCOUNT:REGION/NAME`.
pub(super) fn alias(scope: &Scope, name: &str) -> String {
    format!("s:{}:{}/{name}", scope.account, scope.region)
}

/// Aliases of a key: `a:SLOT|NAME`.
pub(super) fn alias_of(slot: &str, name: &str) -> String {
    format!("a:{slot}|{name}")
}

/// Grants of a grantee on a key: `g:SLOT|DIGEST|GRANT`.
pub(super) fn grantee(slot: &str, principal: &str, grant: &str) -> String {
    format!("g:{slot}|{}|{grant}", digest(principal))
}

/// Grants that a principal may retire: `r:DIGEST|SLOT|GRANT`.
pub(super) fn retiring(principal: &str, slot: &str, grant: &str) -> String {
    format!("r:{}|{slot}|{grant}", digest(principal))
}

/// Grants of an account that have a name, for CreateGrant's idempotence: `n:SLOT|DIGEST OF THE NAME|GRANT`.
pub(super) fn named(slot: &str, name: &str, grant: &str) -> String {
    format!("n:{slot}|{}|{grant}", digest(name))
}

/// Principals by access key: `p:ACCESS KEY`; the record's name follows behind `|`.
pub(super) fn access_key(id: &str, name: &str) -> String {
    format!("p:{id}|{name}")
}

/// What stands behind the prefix of an index name.
pub(super) fn tail(name: &str, separator: char) -> &str {
    name.rsplit_once(separator).map_or("", |(_, tail)| tail)
}

fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()).get(..16).expect("a SHA-256 digest has 32 bytes"))
}
