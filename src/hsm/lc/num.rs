//! Big numbers at the border: big-endian bytes in and out.
#![allow(unsafe_code)]

use aws_lc_sys as lc;
use zeroize::Zeroizing;

use super::{Failed, Lc, ok, owner};

owner!(Num, lc::BIGNUM, lc::BN_clear_free);

/// A number that is freed, or handed over.
pub(super) struct Number(Num);

/// The longest number that is taken: 16,384 bits. What is longer only costs time.
const MAX_BYTES: usize = 2048;

impl Number {
    pub(super) fn of(bytes: &[u8]) -> Lc<Self> {
        if bytes.is_empty() || bytes.len() > MAX_BYTES {
            return Err(Failed);
        }
        // SAFETY: a valid slice; null asks for a fresh number, owned from here on.
        Ok(Self(Num::new(unsafe { lc::BN_bin2bn(bytes.as_ptr(), bytes.len(), std::ptr::null_mut()) })?))
    }

    pub(super) fn raw(&self) -> *mut lc::BIGNUM {
        self.0.raw()
    }

    /// Hands the number to the library, which frees it.
    pub(super) fn give(self) -> *mut lc::BIGNUM {
        let raw = self.0.raw();
        std::mem::forget(self);
        raw
    }
}

/// The bytes of a number that another object owns. Null gives nothing.
///
/// # Safety
/// `raw` is null or a live number.
pub(super) unsafe fn bytes(raw: *const lc::BIGNUM) -> Zeroizing<Vec<u8>> {
    if raw.is_null() {
        return Zeroizing::new(Vec::new());
    }
    // SAFETY: the caller's promise; the buffer has the number's own length.
    unsafe {
        let mut out = Zeroizing::new(vec![0; lc::BN_num_bytes(raw) as usize]);
        lc::BN_bn2bin(raw, out.as_mut_ptr());
        out
    }
}

/// The bytes of a number, zeros in front up to `len`.
///
/// # Safety
/// `raw` is a live number.
pub(super) unsafe fn padded(raw: *const lc::BIGNUM, len: usize) -> Lc<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(vec![0; len]);
    // SAFETY: the caller's promise; the buffer has the length that is named.
    ok(unsafe { lc::BN_bn2bin_padded(out.as_mut_ptr(), len, raw) })?;
    Ok(out)
}
