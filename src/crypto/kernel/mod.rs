//! AES-256-GCM-SIV over single messages and whole spans of blocks, on what the processor has.
//!
//! All kernels give the same bytes (RFC 8452). The process chooses one at its start; every key made afterwards runs on it.

mod portable;
#[cfg(target_arch = "x86_64")]
#[expect(
    clippy::needless_range_loop,
    reason = "indices into registers: unrolled, and closures are no option"
)]
mod x86;

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

pub use portable::PortableKernel;

use super::Locked;
use super::piece::Piece;

/// What seals and opens blocks. Implementations must agree byte for byte (RFC 8452).
pub trait BlockKernel: Send + Sync {
    /// Name for `--kernel` and the log.
    fn name(&self) -> &'static str;
    /// Encrypts `buf` in place, gives the tag.
    fn seal(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8]) -> [u8; 16];
    /// Encrypts `plain` into `sealed`, which is as long, gives the tag. Saves the copy that sealing in place needs.
    fn seal_into(&self, nonce: &[u8; 12], ad: &[u8], plain: &[u8], sealed: &mut [u8]) -> [u8; 16];
    /// Decrypts `buf` in place. On a wrong tag `buf` is zeroed and `false` comes back.
    fn open(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8], tag: &[u8; 16]) -> bool;

    /// Seals every piece from its source, or in place, and sets its tag; associated data is [`Piece::ad`].
    fn seal_blocks(&self, pieces: &mut [Piece<'_>]) {
        for piece in pieces {
            let (nonce, ad) = (piece.entry.nonce, piece.ad());
            piece.entry.tag = match piece.source {
                Some(plain) => self.seal_into(&nonce, &ad, plain, piece.buf),
                None => self.seal(&nonce, &ad, piece.buf),
            };
        }
    }

    /// Opens every piece in place. On a wrong tag `failed` is set and the buffer zeroed.
    fn open_blocks(&self, pieces: &mut [Piece<'_>]) {
        for piece in pieces {
            piece.failed = !self.open(&piece.entry.nonce, &piece.ad(), piece.buf, &piece.entry.tag);
        }
    }
}

/// The kernels. A later one is faster where the processor has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The `aes-gcm-siv` crate.
    Portable,
    /// AES-NI and PCLMULQDQ, 128 bits at a time.
    AesNi,
    /// VAES and VPCLMULQDQ, 256 bits at a time.
    Vaes256,
    /// VAES and VPCLMULQDQ on AVX-512.
    Vaes512,
}

impl Kind {
    /// All, also those that this processor lacks.
    pub const ALL: [Self; 4] = [Self::Portable, Self::AesNi, Self::Vaes256, Self::Vaes512];

    /// The name for `--kernel` and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::AesNi => "aesni",
            Self::Vaes256 => "vaes256",
            Self::Vaes512 => "vaes512",
        }
    }

    /// What it asks of the processor, in the words of `/proc/cpuinfo`.
    pub fn needs(self) -> &'static str {
        match self {
            Self::Portable => "nothing",
            Self::AesNi => "x86-64 with aes, pclmulqdq and avx",
            Self::Vaes256 => "x86-64 with avx2, vaes and vpclmulqdq",
            Self::Vaes512 => "x86-64 with avx512f, avx512bw, avx512vl, avx512dq, vaes and vpclmulqdq",
        }
    }

    /// Whether this processor has what it needs.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => x86::V128::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Vaes256 => x86::V256::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512 => x86::V512::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| KernelError::Unknown(name.to_owned()))
    }
}

/// Why a kernel cannot be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KernelError {
    /// No kernel of that name.
    #[error("there is no kernel {0:?}; there are {all}", all = names(&Kind::ALL))]
    Unknown(String),
    /// The processor lacks instructions.
    #[error("kernel {0} needs {needs}; this processor has {have}", needs = .0.needs(), have = names(&available()))]
    Unavailable(Kind),
    /// Keys were made with another one.
    #[error("kernel {0} is in use already")]
    InUse(Kind),
}

fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// The kernels that this processor can run, the fastest last. Never empty.
pub fn available() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.is_available()).collect()
}

static CHOSEN: OnceLock<Kind> = OnceLock::new();

/// Chooses the process's kernel, before the first key is made: the wanted one, or the fastest.
///
/// # Errors
/// The processor lacks it, or keys run on another one already.
pub fn choose(wanted: Option<Kind>) -> Result<Kind, KernelError> {
    let Some(wanted) = wanted else { return Ok(chosen()) };
    if !wanted.is_available() {
        return Err(KernelError::Unavailable(wanted));
    }
    match *CHOSEN.get_or_init(|| wanted) {
        kind if kind == wanted => Ok(kind),
        other => Err(KernelError::InUse(other)),
    }
}

/// The process's kernel. Where none was chosen, the fastest; in builds with debug assertions, which is what tests are,
/// `EFS_TEST_KERNEL` names another one.
pub fn chosen() -> Kind {
    *CHOSEN.get_or_init(|| {
        let forced = std::env::var("EFS_TEST_KERNEL").ok().filter(|_| cfg!(debug_assertions));
        match forced {
            Some(name) => {
                let kind: Kind = name.parse().expect("EFS_TEST_KERNEL names a kernel");
                assert!(kind.is_available(), "{}", KernelError::Unavailable(kind));
                kind
            }
            None => available().pop().unwrap_or(Kind::Portable),
        }
    })
}

/// A key on one of the kernels. Wiped on drop.
pub struct Kernel(Inner);

#[expect(
    clippy::large_enum_variant,
    reason = "kept in slots of locked memory, where a Box would lead out of them"
)]
enum Inner {
    Portable(PortableKernel),
    #[cfg(target_arch = "x86_64")]
    AesNi(x86::Wide<x86::V128>),
    #[cfg(target_arch = "x86_64")]
    Vaes256(x86::Wide<x86::V256>),
    #[cfg(target_arch = "x86_64")]
    Vaes512(x86::Wide<x86::V512>),
}

impl Kernel {
    /// Expands a key on a kernel of this kind.
    ///
    /// # Errors
    /// [`KernelError::Unavailable`].
    pub fn new(kind: Kind, key: &[u8; 32]) -> Result<Self, KernelError> {
        let inner = match kind {
            Kind::Portable => Some(Inner::Portable(PortableKernel::new(key))),
            #[cfg(target_arch = "x86_64")]
            Kind::AesNi => x86::Wide::new(key).map(Inner::AesNi),
            #[cfg(target_arch = "x86_64")]
            Kind::Vaes256 => x86::Wide::new(key).map(Inner::Vaes256),
            #[cfg(target_arch = "x86_64")]
            Kind::Vaes512 => x86::Wide::new(key).map(Inner::Vaes512),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        };
        inner.map(Self).ok_or(KernelError::Unavailable(kind))
    }

    /// Expands a key on the process's kernel.
    pub fn of(key: &[u8; 32]) -> Self {
        Self::new(chosen(), key).expect("a kernel is chosen only where the processor has it")
    }

    /// The same, into locked memory.
    pub fn locked(key: &[u8; 32]) -> Locked<Self> {
        Locked::new(Self::of(key))
    }

    fn inner(&self) -> &dyn BlockKernel {
        match &self.0 {
            Inner::Portable(kernel) => kernel,
            #[cfg(target_arch = "x86_64")]
            Inner::AesNi(kernel) => kernel,
            #[cfg(target_arch = "x86_64")]
            Inner::Vaes256(kernel) => kernel,
            #[cfg(target_arch = "x86_64")]
            Inner::Vaes512(kernel) => kernel,
        }
    }
}

impl BlockKernel for Kernel {
    fn name(&self) -> &'static str {
        self.inner().name()
    }

    fn seal(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8]) -> [u8; 16] {
        self.inner().seal(nonce, ad, buf)
    }

    fn seal_into(&self, nonce: &[u8; 12], ad: &[u8], plain: &[u8], sealed: &mut [u8]) -> [u8; 16] {
        self.inner().seal_into(nonce, ad, plain, sealed)
    }

    fn open(&self, nonce: &[u8; 12], ad: &[u8], buf: &mut [u8], tag: &[u8; 16]) -> bool {
        self.inner().open(nonce, ad, buf, tag)
    }

    fn seal_blocks(&self, pieces: &mut [Piece<'_>]) {
        self.inner().seal_blocks(pieces);
    }

    fn open_blocks(&self, pieces: &mut [Piece<'_>]) {
        self.inner().open_blocks(pieces);
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernel(..)")
    }
}
