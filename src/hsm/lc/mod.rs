//! AWS-LC by its C interface, for what `aws-lc-rs` does not offer and PKCS#11 asks for.
//!
//! PKCS#11 names keys by their numbers (modulus, point), signs digests that the caller made, and feeds ciphers in
//! pieces; `aws-lc-rs` takes encoded keys and whole messages. Every pointer lives in an owner that frees it; a C
//! function's failure becomes [`Failed`], never a panic. No policy stands here: `mechs` decides what may be called.

mod cipher;
mod edwards;
mod hash;
mod num;
mod pkey;

pub(super) use cipher::{Block, Cipher, gcm_open, gcm_seal, kw_unwrap, kw_wrap};
pub(super) use edwards::{EdCurve, EdMode, Edwards};
use hash::shake256;
pub(super) use hash::{Cmac, Hasher, Hmac, Md};
pub(super) use pkey::{Curve, Ec, Rsa, RsaParts};

/// The library refused: malformed input, a wrong tag, a key that does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failed;

/// A result of the library.
pub(super) type Lc<T> = Result<T, Failed>;

/// 1 is success in almost all of the library.
fn ok(code: std::os::raw::c_int) -> Lc<()> {
    if code == 1 {
        Ok(())
    } else {
        clear_errors();
        Err(Failed)
    }
}

fn clear_errors() {
    // SAFETY: empties this thread's own error queue.
    #[allow(unsafe_code)]
    unsafe {
        aws_lc_sys::ERR_clear_error();
    }
}

/// An owner of one C object: freed once, by the function that the library names for it.
macro_rules! owner {
    ($name:ident, $c:ty, $free:path) => {
        struct $name(std::ptr::NonNull<$c>);

        impl $name {
            /// Takes what a constructor of the library gave; null is its failure.
            fn new(raw: *mut $c) -> super::Lc<Self> {
                std::ptr::NonNull::new(raw).map(Self).ok_or_else(|| {
                    super::clear_errors();
                    super::Failed
                })
            }

            fn raw(&self) -> *mut $c {
                self.0.as_ptr()
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the constructor of this type and is freed here alone.
                #[allow(unsafe_code)]
                unsafe {
                    $free(self.0.as_ptr());
                }
            }
        }

        // SAFETY: the object belongs to this value alone and has no tie to a thread.
        #[allow(unsafe_code)]
        unsafe impl Send for $name {}
    };
}
use owner;

#[cfg(test)]
mod tests;
