//! Ciphers, key types, derivations, locked memory. The main island of `unsafe`.
//!
//! One type per purpose; no key type is `Clone`, prints its bytes or leaves them behind.

pub mod block;
pub mod derive;
pub mod journal;
pub mod kernel;
pub mod locked;
pub mod mac;
pub mod names;
pub mod piece;
pub mod random;
pub mod seal;
pub mod wiped;

pub use block::{FileKeys, Tampered};
pub use journal::{JournalKey, JournalRoot};
pub use locked::{LockStatus, Locked, Secret, lock_status};
pub use mac::MacKey;
pub use names::{DirKey, LinkKey, XattrKey};
pub use piece::Piece;
pub use seal::SealKey;

/// The key of one file's content. Only wrapped copies of it are stored.
#[derive(Debug)]
pub struct DataKey(pub Secret<32>);

/// The key of a vault's names, symlinks, xattrs and config. Only wrapped copies of it are stored.
#[derive(Debug)]
pub struct VaultKey(pub Secret<32>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{DirId, FileId};

    #[test]
    fn key_types_do_not_print_their_bytes() {
        let vault = || VaultKey(Secret::from_slice(&[0xdd; 32]).unwrap());
        let data = || DataKey(Secret::from_slice(&[0xdd; 32]).unwrap());
        let printed = [
            format!("{:?}", vault()),
            format!("{:#?}", data()),
            format!("{:?}", data().0),
            format!("{:?}", FileKeys::derive(&data(), &FileId([1; 12]))),
            format!("{:#?}", DirKey::derive(&vault(), &DirId([1; 16]))),
            format!("{:?}", LinkKey::derive(&vault())),
            format!("{:?}", XattrKey::derive(&vault(), &[1; 12])),
            format!("{:?}", kernel::PortableKernel::new(&[0xdd; 32])),
            format!("{:?}", kernel::Kernel::of(&[0xdd; 32])),
            format!("{:?}", Locked::new([0xddu8; 32])),
        ];
        for text in printed {
            assert!(text.len() < 60 && !text.contains("dd") && !text.contains("221"), "{text}");
        }
    }

    #[test]
    fn keys_are_shared_by_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<(DataKey, VaultKey, FileKeys, DirKey, LinkKey, XattrKey)>();
    }
}
