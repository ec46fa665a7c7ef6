//! The kernel's own file encryption (fscrypt) on a directory of the ext4 image, by its ioctls: its tool is in few
//! distributions, and asks questions. An island of `unsafe`: the two ioctls.

use std::ffi::c_void;
use std::fs::File;
use std::path::Path;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

use crate::bench::error::BenchError;

/// `FS_IOC_ADD_ENCRYPTION_KEY`: `_IOWR('f', 23, struct fscrypt_add_key_arg)`, 80 bytes.
const ADD_KEY: Opcode = 0xc050_6617;
/// `FS_IOC_SET_ENCRYPTION_POLICY`: `_IOR('f', 19, struct fscrypt_policy_v1)`, whose 12 bytes are only its number's.
const SET_POLICY: Opcode = 0x800c_6613;
/// Bytes of `struct fscrypt_add_key_arg` before the key.
const HEAD: usize = 80;
/// Bytes of the key: AES-256-XTS takes two.
const KEY: usize = 64;
/// Where the key's identifier comes back: behind type and reserved of `struct fscrypt_key_specifier`.
const IDENTIFIER_AT: usize = 8;
const IDENTIFIER: usize = 16;
/// Where `raw_size` stands: behind the specifier of 40 bytes.
const RAW_SIZE_AT: usize = 40;

/// An ioctl whose argument is these bytes, read and written by the kernel.
struct Bytes<'a, const OPCODE: Opcode> {
    argument: &'a mut [u8],
}

// SAFETY: `ADD_KEY` reads and writes `HEAD` bytes and reads the `raw_size` bytes behind them, which `add_key` sets to what
// the buffer holds there; `SET_POLICY` reads the 24 bytes of `struct fscrypt_policy_v2`, which `set_policy` passes.
#[allow(unsafe_code)]
unsafe impl<const OPCODE: Opcode> Ioctl for Bytes<'_, OPCODE> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Encrypts the empty directory `dir` as fscrypt's default does: AES-256-XTS for content, AES-256-CTS-CBC for names.
pub(super) fn encrypt(dir: &Path) -> Result<(), BenchError> {
    let file = File::open(dir).map_err(BenchError::io(dir))?;
    let identifier = add_key(&file).map_err(BenchError::io(dir))?;
    set_policy(&file, identifier).map_err(BenchError::io(dir))
}

/// Adds a fixed key to the filesystem; it goes with the filesystem's unmount. Gives its identifier.
#[allow(unsafe_code)]
#[expect(clippy::host_endian_bytes, reason = "a structure of this kernel, not of a disk")]
fn add_key(file: &File) -> rustix::io::Result<[u8; IDENTIFIER]> {
    let mut argument = [0_u8; HEAD + KEY];
    // FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
    argument[..4].copy_from_slice(&2_u32.to_ne_bytes());
    argument[RAW_SIZE_AT..RAW_SIZE_AT + 4].copy_from_slice(&64_u32.to_ne_bytes());
    argument[HEAD..].fill(0x5a);
    // SAFETY: the buffer holds `HEAD` bytes and the 64 of the key that `raw_size` announces.
    unsafe { rustix::ioctl::ioctl(file, Bytes::<ADD_KEY> { argument: &mut argument }) }?;
    let mut identifier = [0; IDENTIFIER];
    identifier.copy_from_slice(&argument[IDENTIFIER_AT..IDENTIFIER_AT + IDENTIFIER]);
    Ok(identifier)
}

/// `struct fscrypt_policy_v2`: version 2, AES-256-XTS (1), AES-256-CTS (4), names padded to 32 bytes (3).
#[allow(unsafe_code)]
fn set_policy(file: &File, identifier: [u8; IDENTIFIER]) -> rustix::io::Result<()> {
    let mut argument = [0_u8; 24];
    argument[..4].copy_from_slice(&[2, 1, 4, 3]);
    argument[8..].copy_from_slice(&identifier);
    // SAFETY: the buffer is a whole `struct fscrypt_policy_v2`, which its first byte announces.
    unsafe { rustix::ioctl::ioctl(file, Bytes::<SET_POLICY> { argument: &mut argument }) }
}
