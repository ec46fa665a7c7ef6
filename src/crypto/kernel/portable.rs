//! The `aes-gcm-siv` crate: the reference, and what runs where no kernel of ours does.

use aes_gcm_siv::Aes256GcmSiv;
use aes_gcm_siv::aead::inout::InOutBuf;
use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use zeroize::Zeroize;

use super::BlockKernel;

/// The `aes-gcm-siv` crate: AES-NI and PCLMULQDQ where the processor has them, constant-time code elsewhere.
pub struct PortableKernel(Aes256GcmSiv);

// Key schedules wipe themselves only where the `aes` crate's `zeroize` feature is on, which this crate asks for.
const _: fn() = wiped_on_drop::<aes_gcm_siv::aes::Aes256>;
const fn wiped_on_drop<T: zeroize::ZeroizeOnDrop>() {}

impl PortableKernel {
    /// Expands a key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Aes256GcmSiv::new(key.into()))
    }
}

impl BlockKernel for PortableKernel {
    fn name(&self) -> &'static str {
        "portable"
    }

    fn seal(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8]) -> [u8; 16] {
        self.0
            .encrypt_inout_detached(nonce.into(), ad, buf.into())
            .expect("a message of less than 64 GiB")
            .into()
    }

    fn seal_into(&self, nonce: &[u8; 12], ad: &[u8], plain: &[u8], sealed: &mut [u8]) -> [u8; 16] {
        let both = InOutBuf::new(plain, sealed).expect("as long as each other");
        self.0.encrypt_inout_detached(nonce.into(), ad, both).expect("a message of less than 64 GiB").into()
    }

    fn open(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8], tag: &[u8; 16]) -> bool {
        let opened = self.0.decrypt_inout_detached(nonce.into(), ad, (&mut *buf).into(), tag.into());
        if opened.is_err() {
            buf.zeroize();
        }
        opened.is_ok()
    }
}

impl std::fmt::Debug for PortableKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PortableKernel(..)")
    }
}
