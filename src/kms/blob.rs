//! CiphertextBlob: a sealed message that names its key and the key material that made it.
//!
//! ```text
//!    0  kind              1 byte        1: of a key; 2: of a multi-region key
//!    1  key id            16 bytes      the UUID, or what follows `mrk-`
//!   17  KeyMaterialId     32 bytes
//!   49  nonce             12 bytes      random
//!   61  ciphertext        1 to 10,240 bytes
//!  ...  tag               16 bytes      AD = label, bytes 0..49, canonical encryption context
//! ```

use super::context::push;
use super::error::KmsError;
use super::{arn, hex, labels};
use crate::crypto::SealKey;
use crate::crypto::seal::OVERHEAD;

const KIND: u8 = 1;
const MRK_KIND: u8 = 2;
const HEAD: usize = 49;
/// The longest plaintext that any setting allows.
const MAX_PLAIN: usize = super::engine::MAX_PLAINTEXT;

/// Where a blob's key is found. Not authentic before the blob opens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlobHead {
    pub(super) key_id: String,
    pub(super) material_id: String,
}

/// Reads the head of a blob.
pub(super) fn head(blob: &[u8]) -> Result<BlobHead, KmsError> {
    let (head, sealed) = split(blob)?;
    let kind = head.first().copied();
    if !matches!(kind, Some(KIND | MRK_KIND))
        || sealed.len() < OVERHEAD
        || sealed.len() > MAX_PLAIN + OVERHEAD
    {
        return Err(KmsError::InvalidCiphertext);
    }
    let (_, rest) = head.split_first_chunk::<1>().ok_or(KmsError::InvalidCiphertext)?;
    let (id, material) = rest.split_first_chunk::<16>().ok_or(KmsError::InvalidCiphertext)?;
    let key_id = if kind == Some(KIND) { arn::id_text(id) } else { arn::mrk_text(id) };
    Ok(BlobHead { key_id, material_id: hex::encode(material) })
}

impl BlobHead {
    /// The first bytes of a blob.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + OVERHEAD + 64);
        out.push(if arn::is_mrk(&self.key_id) { MRK_KIND } else { KIND });
        out.extend_from_slice(&arn::id_bytes(&self.key_id).expect("the store's key ids have 16 bytes"));
        out.extend_from_slice(&hex::decode(&self.material_id).expect("the store's material ids are hex"));
        out
    }
}

/// Makes a blob.
pub(super) fn seal(head: &BlobHead, key: &SealKey, context: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut blob = head.bytes();
    let sealed = key.seal(&bound(&blob, context), plain);
    blob.extend_from_slice(&sealed);
    blob
}

/// Opens a blob with the key its head names.
pub(super) fn open(
    key: &SealKey,
    context: &[u8],
    blob: &[u8],
) -> Result<zeroize::Zeroizing<Vec<u8>>, KmsError> {
    let (head, sealed) = split(blob)?;
    key.open(&bound(head, context), sealed).map_err(|_| KmsError::InvalidCiphertext)
}

pub(super) fn split(blob: &[u8]) -> Result<(&[u8], &[u8]), KmsError> {
    blob.split_at_checked(HEAD).ok_or(KmsError::InvalidCiphertext)
}

/// Associated data of a blob.
pub(super) fn bound(head: &[u8], context: &[u8]) -> Vec<u8> {
    let mut ad = labels::BLOB_AD.to_vec();
    push(&mut ad, head);
    ad.extend_from_slice(context);
    ad
}
