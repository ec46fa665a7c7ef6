//! Labels of everything the KMS derives or authenticates.
//!
//! Labels keep keys of different purposes apart. Never reuse one, never edit one.

/// From key material: the key that seals a CiphertextBlob under a random nonce.
pub(super) const BLOB_KEY: &[u8] = b"envelopefs/kms/v1/blob";
/// From key material: the key of the compact wrap, whose nonce the caller names.
pub(super) const COMPACT_KEY: &[u8] = b"envelopefs/kms/v1/compact";
/// From the root key: the key that seals the records of the store.
pub(super) const STORE_KEY: &[u8] = b"envelopefs/kms/v1/store";
/// From the root key: the key of the audit log's lines.
pub(super) const AUDIT_KEY: &[u8] = b"envelopefs/kms/v1/audit";
/// Associated data of the sealed root key begins with this.
pub(super) const ROOT_AD: &[u8] = b"envelopefs/kms/v1/root";
/// What a token wraps for the root key is bound to begins with this.
pub(super) const ROOT_TOKEN: &[u8] = b"envelopefs/kms/v1/root-token";
/// Associated data of a sealed record begins with this.
pub(super) const RECORD_AD: &[u8] = b"envelopefs/kms/v1/record";
/// Associated data of a CiphertextBlob begins with this.
pub(super) const BLOB_AD: &[u8] = b"envelopefs/kms/v1/blob-ad";
/// Associated data of an import token begins with this.
pub(super) const IMPORT_TOKEN_AD: &[u8] = b"envelopefs/kms/v1/import-token";
/// Associated data of a grant token begins with this.
pub(super) const GRANT_TOKEN_AD: &[u8] = b"envelopefs/kms/v1/grant-token";
/// Associated data of a backup of the whole KMS begins with this.
pub(super) const BACKUP_AD: &[u8] = b"envelopefs/kms/v1/backup";
