//! Deterministic encryption of names, and of symlink targets and xattrs with random nonces.
//!
//! Each key seals one kind of thing; what it looks like on the lower filesystem is said by `format::names` and
//! `format::links`.

mod dir;
mod link;
mod xattr;

pub use dir::{DirKey, EncodedName};
pub use link::LinkKey;
pub use xattr::XattrKey;

use super::kernel::{BlockKernel, Kernel};
use super::{Tampered, random};

const NONCE: usize = 12;
const TAG: usize = 16;
/// Nonce of deterministic sealing. GCM-SIV with one nonce reveals which messages are equal, and nothing else;
/// keys of names seal nothing but names, which are unlike in one place.
const NO_NONCE: [u8; NONCE] = [0; NONCE];

/// Tag and ciphertext, the same each time.
fn seal_fixed(kernel: &Kernel, ad: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(TAG + plain.len());
    out.extend_from_slice(&[0; TAG]);
    out.extend_from_slice(plain);
    let (place, text) = out.split_at_mut(TAG);
    place.copy_from_slice(&kernel.seal(&NO_NONCE, ad, text));
    out
}

/// Opens what [`seal_fixed`] made.
fn open_fixed(kernel: &Kernel, ad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Tampered> {
    let (tag, text) = sealed.split_first_chunk::<TAG>().ok_or(Tampered)?;
    open(kernel, &NO_NONCE, ad, tag, text)
}

/// Random nonce, tag and ciphertext.
fn seal_random(kernel: &Kernel, ad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce = random::array();
    let mut out = Vec::with_capacity(NONCE + TAG + plain.len());
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&[0; TAG]);
    out.extend_from_slice(plain);
    let (head, text) = out.split_at_mut(NONCE + TAG);
    head[NONCE..].copy_from_slice(&kernel.seal(&nonce, ad, text));
    out
}

/// Opens what [`seal_random`] made.
fn open_random(kernel: &Kernel, ad: &[u8], record: &[u8]) -> Result<Vec<u8>, Tampered> {
    let (nonce, rest) = record.split_first_chunk::<NONCE>().ok_or(Tampered)?;
    let (tag, text) = rest.split_first_chunk::<TAG>().ok_or(Tampered)?;
    open(kernel, nonce, ad, tag, text)
}

fn open(
    kernel: &Kernel,
    nonce: &[u8; NONCE],
    ad: &[u8],
    tag: &[u8; TAG],
    text: &[u8],
) -> Result<Vec<u8>, Tampered> {
    let mut plain = text.to_vec();
    if kernel.open(nonce, ad, &mut plain, tag) { Ok(plain) } else { Err(Tampered) }
}
