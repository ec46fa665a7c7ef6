//! Users and roles, and what each role may do: CloudHSM's permission table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cluster::Stamp;
use super::root::{Cost, hex, unhex};
use crate::crypto::random;

/// Wrong passwords that lock an account (CloudHSM: 5).
pub(super) const MAX_FAILURES: u64 = 5;
/// Shortest password.
pub(super) const MIN_PASSWORD: usize = 8;
/// Longest password: CloudHSM has 32; longer ones do no harm.
pub(super) const MAX_PASSWORD: usize = 128;
/// Longest user name.
pub(super) const MAX_NAME: usize = 31;
/// Most users of one HSM.
pub(super) const MAX_USERS: usize = 1024;

/// What a user is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Manages users; cannot use or see keys. CO in the old words.
    #[serde(alias = "co", alias = "CO")]
    Admin,
    /// Makes and uses keys. CU in the old words.
    #[serde(alias = "cu", alias = "CU")]
    CryptoUser,
    /// Synchronises masked objects. AU in the old words.
    #[serde(rename = "internal(APPLIANCE_USER)", alias = "appliance-user", alias = "au", alias = "AU")]
    ApplianceUser,
    /// The admin of an HSM that was never activated: sets its password, becomes admin. PRECO in the old words.
    #[serde(alias = "preco", alias = "PRECO")]
    UnactivatedAdmin,
}

impl Role {
    /// As CloudHSM CLI prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::CryptoUser => "crypto-user",
            Self::ApplianceUser => "internal(APPLIANCE_USER)",
            Self::UnactivatedAdmin => "unactivated-admin",
        }
    }
}

/// A row of the permission table (CloudHSM user guide, "HSM user permissions table").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// Number of HSMs, address, model, serial number, firmware.
    ClusterInfo,
    /// One's own password.
    ChangeOwnPassword,
    /// Anybody's password.
    ChangeAnyPassword,
    /// Add and remove users.
    ManageUsers,
    /// Digests of the keys, to compare members.
    SyncStatus,
    /// Extract and insert masked objects.
    MaskedObjects,
    /// Create, delete, wrap, unwrap keys; change their attributes.
    KeyManagement,
    /// Encrypt, decrypt, sign, verify, digest, HMAC.
    UseKeys,
    /// Register the key that approves; get, list and end one's quorum tokens.
    Approvals,
    /// Set quorum values.
    SetQuorum,
}

impl Permission {
    /// Every row.
    pub const ALL: [Self; 10] = [
        Self::ClusterInfo,
        Self::ChangeOwnPassword,
        Self::ChangeAnyPassword,
        Self::ManageUsers,
        Self::SyncStatus,
        Self::MaskedObjects,
        Self::KeyManagement,
        Self::UseKeys,
        Self::Approvals,
        Self::SetQuorum,
    ];

    /// The cell of a role; `None` is nobody logged in.
    pub fn of(self, role: Option<Role>) -> bool {
        use Role::{Admin, ApplianceUser, CryptoUser};
        match (self, role) {
            (Self::ClusterInfo, _) => true,
            (_, None) => false,
            (Self::ChangeOwnPassword, Some(_)) => true,
            (Self::ChangeAnyPassword | Self::ManageUsers | Self::SetQuorum, Some(role)) => role == Admin,
            (Self::Approvals, Some(role)) => matches!(role, Admin | CryptoUser),
            (Self::SyncStatus | Self::MaskedObjects, Some(role)) => {
                matches!(role, Admin | CryptoUser | ApplianceUser)
            }
            (Self::KeyManagement | Self::UseKeys, Some(role)) => role == CryptoUser,
        }
    }
}

/// One user, as it is stored.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) role: Role,
    /// Argon2id of the password; `None` has none and cannot log in.
    pub(super) verifier: Option<Verifier>,
    /// Wrong passwords ever, by the member that was asked, and how many of them a right one or an admin has forgiven.
    #[serde(default)]
    pub(super) wrong: BTreeMap<String, u64>,
    #[serde(default)]
    pub(super) forgiven: BTreeMap<String, u64>,
    /// DER (PKCS#1), in base64, of the RSA-2048 key that signs approvals.
    pub(super) approval_key: Option<String>,
    /// Counts the changes that are more than counting wrong passwords.
    #[serde(default)]
    pub(super) version: u64,
    /// Counts the passwords that an admin gave: each ends the logins of before.
    #[serde(default)]
    pub(super) resets: u64,
    /// When that was last, and when the user was made.
    #[serde(default)]
    pub(super) stamp: Stamp,
    #[serde(default)]
    pub(super) born: Stamp,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Verifier {
    salt: String,
    cost: Cost,
    hash: String,
}

impl User {
    pub(super) fn new(name: &str, role: Role, password: Option<&[u8]>, cost: Cost) -> Self {
        let verifier = password.and_then(|p| Verifier::of(p, cost));
        Self {
            name: name.to_lowercase(),
            role,
            verifier,
            wrong: BTreeMap::new(),
            forgiven: BTreeMap::new(),
            approval_key: None,
            version: 1,
            resets: 0,
            stamp: Stamp::default(),
            born: Stamp::default(),
        }
    }

    /// Wrong passwords since the last right one, on all members together.
    pub(super) fn failures(&self) -> u64 {
        let forgiven = |serial| self.forgiven.get(serial).copied().unwrap_or(0);
        self.wrong.iter().map(|(serial, count)| count.saturating_sub(forgiven(serial))).sum()
    }

    pub(super) fn count_wrong(&mut self, serial: &str) {
        *self.wrong.entry(serial.to_owned()).or_default() += 1;
    }

    /// Takes the password of `fresh`, which an admin gave.
    pub(super) fn reset(&mut self, fresh: Self) {
        self.verifier = fresh.verifier;
        self.forgive();
        self.version += 1;
        self.resets += 1;
    }

    /// A right password, or a new one.
    pub(super) fn forgive(&mut self) {
        self.forgiven.clone_from(&self.wrong);
    }

    pub(super) fn is_locked(&self) -> bool {
        self.failures() >= MAX_FAILURES
    }
}

impl Verifier {
    fn of(password: &[u8], cost: Cost) -> Option<Self> {
        let salt = random::array::<16>();
        let hash = cost.stretch(password, &salt)?;
        Some(Self { salt: hex(&salt), cost, hash: hex(hash.expose()) })
    }

    /// Compares in constant time.
    pub(super) fn matches(&self, password: &[u8]) -> bool {
        let (Some(salt), Some(hash)) = (unhex(&self.salt), unhex(&self.hash)) else { return false };
        self.cost.is_sane()
            && self.cost.stretch(password, &salt).is_some_and(|found| {
                aws_lc_rs::constant_time::verify_slices_are_equal(found.expose(), &hash).is_ok()
            })
    }
}

/// Whether a name can be a user's: 1 to 31 letters, digits, `.`, `_`, `-`, `@`.
pub(super) fn valid_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@'))
}

/// Splits a PIN at its first colon; one without a colon is the default user's.
pub(super) fn split_pin<'a>(pin: &'a [u8], default: &str) -> (String, &'a [u8]) {
    match pin.iter().position(|b| *b == b':') {
        Some(at) => (String::from_utf8_lossy(&pin[..at]).to_lowercase(), &pin[at + 1..]),
        None => (default.to_owned(), pin),
    }
}
