//! CiphertextBlob: a sealed message that names its key and the key material that made it.
//!
//! ```text
//!    0  kind (1)          1 byte
//!    1  key id            16 bytes      the UUID
//!   17  KeyMaterialId     32 bytes
//!   49  nonce             12 bytes      random
//!   61  ciphertext        1 to 4096 bytes
//!  ...  tag               16 bytes      AD = label, bytes 0..49, canonical encryption context
//! ```

use super::context::push;
use super::error::KmsError;
use super::{arn, hex, labels};
use crate::crypto::SealKey;
use crate::crypto::seal::OVERHEAD;

const KIND: u8 = 1;
const HEAD: usize = 49;
/// The longest plaintext, as AWS bounds it.
pub(super) const MAX_PLAIN: usize = 4096;

/// Where a blob's key is found. Not authentic before the blob opens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlobHead {
    pub(super) key_id: String,
    pub(super) material_id: String,
}

/// Reads the head of a blob.
pub(super) fn head(blob: &[u8]) -> Result<BlobHead, KmsError> {
    let (head, sealed) = split(blob)?;
    if head.first() != Some(&KIND) || sealed.len() < OVERHEAD || sealed.len() > MAX_PLAIN + OVERHEAD {
        return Err(KmsError::InvalidCiphertext);
    }
    let (_, rest) = head.split_first_chunk::<1>().ok_or(KmsError::InvalidCiphertext)?;
    let (id, material) = rest.split_first_chunk::<16>().ok_or(KmsError::InvalidCiphertext)?;
    Ok(BlobHead { key_id: arn::id_text(id), material_id: hex::encode(material) })
}

/// Makes a blob.
pub(super) fn seal(head: &BlobHead, key: &SealKey, context: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut blob = Vec::with_capacity(HEAD + OVERHEAD + plain.len());
    blob.push(KIND);
    blob.extend_from_slice(&arn::id_bytes(&head.key_id).expect("the store's key ids are UUIDs"));
    blob.extend_from_slice(&hex::decode(&head.material_id).expect("the store's material ids are hex"));
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

fn split(blob: &[u8]) -> Result<(&[u8], &[u8]), KmsError> {
    blob.split_at_checked(HEAD).ok_or(KmsError::InvalidCiphertext)
}

fn bound(head: &[u8], context: &[u8]) -> Vec<u8> {
    let mut ad = labels::BLOB_AD.to_vec();
    push(&mut ad, head);
    ad.extend_from_slice(context);
    ad
}
