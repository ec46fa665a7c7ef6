//! Encrypt, Decrypt, GenerateDataKey, ReEncrypt, and the compact wrap of the filesystem.
//!
//! The compact wrap is 48 bytes without a nonce of its own: the caller names one (the file id). It has a key of its
//! own in each key material, so its nonces never meet those of blobs.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::arn::Scope;
use super::blob::{self, BlobHead};
use super::context::{EncryptionContext, canonical};
use super::engine::{Engine, usable};
use super::error::KmsError;
use super::records::{KeyRecord, MaterialRef};
use crate::crypto::Secret;

/// A message that Encrypt sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encrypted {
    /// CiphertextBlob.
    pub blob: Vec<u8>,
    /// ARN of the key.
    pub key_arn: String,
    /// Material that sealed it.
    pub key_material_id: String,
}

/// A message that Decrypt opened.
pub struct Decrypted {
    /// The plaintext, wiped when dropped.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// ARN of the key.
    pub key_arn: String,
    /// Material that had sealed it.
    pub key_material_id: String,
}

impl std::fmt::Debug for Decrypted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decrypted").field("key_arn", &self.key_arn).finish_non_exhaustive()
    }
}

/// A key wrapped in the compact form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compact {
    /// Version of the key that wrapped it.
    pub version: u16,
    /// Ciphertext and tag.
    pub bytes: [u8; 48],
}

impl Engine {
    /// Seals up to 4096 bytes under the current version of a key.
    pub fn encrypt(
        &self,
        key: &str,
        plain: &[u8],
        context: &EncryptionContext,
    ) -> Result<Encrypted, KmsError> {
        self.check_plain(plain)?;
        let ad = canonical(context)?;
        self.for_filesystem("Encrypt", key, context, |record| self.seal_under(record, &ad, plain))
    }

    /// Opens a blob with the key and material it names. `key`, where given, must be that key.
    pub fn decrypt(
        &self,
        blob: &[u8],
        context: &EncryptionContext,
        key: Option<&str>,
    ) -> Result<Decrypted, KmsError> {
        let ad = canonical(context)?;
        let head = blob::head(blob)?;
        let expected = key.map(|name| self.resolve(name)).transpose()?;
        if expected.is_some_and(|record| record.id != head.key_id) {
            return Err(KmsError::IncorrectKey);
        }
        self.for_filesystem("Decrypt", &Scope::home().key_arn(&head.key_id), context, |record| {
            usable(record)?;
            self.open_under(record, &head, &ad, blob)
        })
    }

    /// Seals a message under the current version of a key; `ad` is the canonical context.
    pub(super) fn seal_under(
        &self,
        record: &KeyRecord,
        ad: &[u8],
        plain: &[u8],
    ) -> Result<Encrypted, KmsError> {
        let current = current(record)?;
        let head = BlobHead { key_id: record.id.clone(), material_id: current.id.clone() };
        let blob = match &record.key_store {
            None => blob::seal(&head, &self.material(&current.id)?.blob, ad, plain),
            Some(store) => {
                let mut blob = head.bytes();
                let bound = blob::bound(&blob, ad);
                blob.extend(self.in_cluster(store, record, |s| s.encrypt(&current.id, &bound, plain))?);
                blob
            }
        };
        Ok(Encrypted { blob, key_arn: record.arn(), key_material_id: head.material_id })
    }

    /// Opens a blob with the material that its head names.
    pub(super) fn open_under(
        &self,
        record: &KeyRecord,
        head: &BlobHead,
        ad: &[u8],
        blob: &[u8],
    ) -> Result<Decrypted, KmsError> {
        if !record.materials.iter().any(|m| m.id == head.material_id) {
            return Err(KmsError::InvalidCiphertext);
        }
        let plaintext = match &record.key_store {
            None => blob::open(&self.material(&head.material_id)?.blob, ad, blob)?,
            Some(store) => {
                let (front, sealed) = blob::split(blob)?;
                let bound = blob::bound(front, ad);
                self.in_cluster(store, record, |s| s.decrypt(&head.material_id, &bound, sealed))?
            }
        };
        Ok(Decrypted { plaintext, key_arn: record.arn(), key_material_id: head.material_id.clone() })
    }

    /// Makes a data key of 32 bytes; gives it plain and as a blob.
    pub fn generate_data_key(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<(Secret<32>, Encrypted), KmsError> {
        let plain = Secret::random();
        let sealed = self.encrypt(key, plain.expose(), context)?;
        Ok((plain, sealed))
    }

    /// Opens a blob and seals its content under another key, version or context; the plaintext stays inside.
    pub fn re_encrypt(
        &self,
        blob: &[u8],
        from: &EncryptionContext,
        key: &str,
        to: &EncryptionContext,
    ) -> Result<Encrypted, KmsError> {
        let opened = self.decrypt(blob, from, None)?;
        self.encrypt(key, &opened.plaintext, to)
    }

    /// Makes one data key for each nonce and context, wrapped in the compact form, all under the same version.
    pub fn generate_compact<'a>(
        &self,
        key: &str,
        files: impl IntoIterator<Item = (&'a [u8; 12], &'a EncryptionContext)>,
    ) -> Result<Vec<(Secret<32>, Compact)>, KmsError> {
        // One version for all: a rotation in between makes none of another.
        let record = self.resolve(key)?;
        let version = record.current();
        let (nonces, contexts): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        self.for_filesystem_each("GenerateDataKey", &record, &contexts, |at| {
            let material = self.material(&current(&record)?.id)?;
            let plain = Secret::random();
            let bytes = wrap(&material.compact, nonces[at], contexts[at], &plain)?;
            Ok((plain, Compact { version, bytes }))
        })
    }

    /// Wraps a key in the compact form under the current version. A nonce must name one key for life.
    pub fn wrap_compact(
        &self,
        key: &str,
        nonce: &[u8; 12],
        plain: &Secret<32>,
        context: &EncryptionContext,
    ) -> Result<Compact, KmsError> {
        self.for_filesystem("Encrypt", key, context, |record| {
            let material = self.material(&current(record)?.id)?;
            Ok(Compact { version: record.current(), bytes: wrap(&material.compact, nonce, context, plain)? })
        })
    }

    /// Unwraps the compact form.
    pub fn unwrap_compact(
        &self,
        key: &str,
        nonce: &[u8; 12],
        wrapped: &Compact,
        context: &EncryptionContext,
    ) -> Result<Secret<32>, KmsError> {
        let ad = canonical(context)?;
        self.for_filesystem("Decrypt", key, context, |record| {
            usable(record)?;
            let material: Arc<_> = self.material(&of_version(record, wrapped.version)?.id)?;
            let (sealed, tag) = wrapped.bytes.split_last_chunk().expect("48 bytes have 16 at their end");
            let mut plain = Secret::from_slice(sealed).expect("48 bytes less a tag are 32");
            let opened = material.compact.open_with(nonce, &ad, plain.expose_mut(), tag);
            opened.map_err(|_| KmsError::InvalidCiphertext)?;
            Ok(plain)
        })
    }
}

/// A version of a key by its number.
fn of_version(record: &KeyRecord, version: u16) -> Result<&MaterialRef, KmsError> {
    record.material(version).ok_or_else(|| {
        KmsError::NotFound(format!(
            "Key '{}' has no version {version}; its current one is {}",
            record.arn(),
            record.current()
        ))
    })
}

/// The version that seals now.
pub(super) fn current(record: &KeyRecord) -> Result<&MaterialRef, KmsError> {
    usable(record)?;
    record
        .materials
        .last()
        .ok_or_else(|| KmsError::InvalidState(format!("{} has no key material.", record.arn())))
}

fn wrap(
    key: &crate::crypto::SealKey,
    nonce: &[u8; 12],
    context: &EncryptionContext,
    plain: &Secret<32>,
) -> Result<[u8; 48], KmsError> {
    let ad = canonical(context)?;
    let mut bytes = [0; 48];
    let (sealed, tag) = bytes.split_last_chunk_mut().expect("48 bytes have 16 at their end");
    sealed.copy_from_slice(plain.expose());
    *tag = key.seal_with(nonce, &ad, sealed);
    Ok(bytes)
}

impl Engine {
    fn check_plain(&self, plain: &[u8]) -> Result<(), KmsError> {
        let rule = match plain.len() {
            0 => "Member must have length greater than or equal to 1".to_owned(),
            n if n > self.limits.plaintext => {
                format!("Member must have length less than or equal to {}", self.limits.plaintext)
            }
            _ => return Ok(()),
        };
        Err(KmsError::constraint("plaintext", None, &rule))
    }
}
