//! Backups of the whole HSM under a password, restoring them, and the key of masked objects.
//!
//! A backup holds users (their password verifiers), keys, shares, policy and the mask key: a restored HSM is a member
//! of the same cluster. It is sealed as one message, so a cut or changed file does not open at all.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::admin::Refusal;
use super::appliance::{Appliance, Life, Meta};
use super::cluster::Stamp;
use super::error::HsmError;
use super::passworded::Kind;
use super::record;
use super::root::{self, Cost, Protection, hex, unhex};
use super::store::{Store, Table};
use super::users::{MIN_PASSWORD, User};
use super::wire::{Bytes, Wire as _, decode, encode};
use crate::crypto::{SealKey, Secret, random};

/// Associated data of masked objects. Never edit it.
pub(super) const MASKED_AD: &[u8] = b"envelopefs/hsm/v1/masked";
/// The file of a backup. Never edit it.
const BACKUP: Kind = Kind { magic: b"EFSHSM01", label: b"envelopefs/hsm/v1/backup" };
/// Folder of the backups, in the HSM's directory.
const FOLDER: &str = "backups";
/// Backups that are kept; the oldest go.
const KEPT: usize = 90;

#[derive(Serialize, Deserialize)]
struct Content {
    meta: Meta,
    users: Vec<User>,
    /// What was deleted, in hexadecimal, and when.
    #[serde(default)]
    gone: Vec<(String, Stamp)>,
}

impl Appliance {
    /// The key that seals masked objects.
    pub(super) fn mask(&self) -> Result<SealKey, Refusal> {
        let bytes = unhex(&self.state.read().meta.mask_key).map(Zeroizing::new);
        let secret = bytes.and_then(|b| Secret::from_slice(&b));
        secret.map(SealKey::new).ok_or_else(|| Refusal("the HSM's mask key is damaged".into()))
    }

    /// What stretching the password of a file costs.
    pub(super) fn file_cost(&self) -> Cost {
        if self.config.login_cost == Cost::TESTS { Cost::TESTS } else { Cost::SLOW }
    }

    /// Writes a backup; gives its path.
    pub(super) fn backup(&self, password: &[u8]) -> Result<Value, Refusal> {
        if password.len() < MIN_PASSWORD {
            return Err(Refusal(format!("a backup's password has at least {MIN_PASSWORD} characters")));
        }
        let plain = {
            // One moment: no change comes between users and keys.
            let _one = self.writing.lock();
            let state = self.state.read();
            let mut meta = state.meta.clone();
            // What this HSM knows of deletions is in it, and those of others that it may not know are not: a member that
            // is made of it misses later ones, and says so.
            let now = self.clock.last();
            meta.seen = meta.claim("", now).seen.max(1);
            meta.known.insert(meta.serial.clone(), now);
            let gone = state.gone.iter().map(|(key, stamp)| (hex(key), stamp.clone())).collect();
            let content = Content { meta, users: state.users.values().cloned().collect(), gone };
            let objects: Vec<Bytes> =
                state.objects.values().filter(|o| o.is_token()).map(|o| record::encode(o)).collect();
            encode(&(record::json(&content), objects))
        };
        let file = BACKUP.seal(password, self.file_cost(), &plain);
        let file = file.ok_or_else(|| Refusal("Argon2id refuses its cost".into()))?;
        let path = self.write_backup(&file).map_err(|e| Refusal(e.to_string()))?;
        Ok(json!({ "path": path, "bytes": file.len() }))
    }

    fn write_backup(&self, file: &[u8]) -> Result<PathBuf, HsmError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let folder = self.dir.join(FOLDER);
        let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder);
        made.map_err(HsmError::io(&folder))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("{:013}-{}.backup", now.as_millis(), hex(&random::array::<3>()));
        root::replace(&folder, &name, file)?;
        let mut all: Vec<_> = std::fs::read_dir(&folder)
            .map_err(HsmError::io(&folder))?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "backup"))
            .collect();
        all.sort();
        let old = all.len().saturating_sub(KEPT);
        for path in all.iter().take(old) {
            std::fs::remove_file(path).map_err(HsmError::io(path))?;
        }
        Ok(folder.join(name))
    }

    /// Makes an HSM in a new directory out of a backup: a member of the same cluster, with a serial number of its own.
    ///
    /// # Errors
    /// A wrong password, a cut or changed file, a directory that holds something.
    pub fn restore(
        dir: &Path,
        protection: &Protection,
        cost: Cost,
        file: &Path,
        password: &[u8],
    ) -> Result<(), HsmError> {
        let bytes = std::fs::read(file).map_err(HsmError::io(file))?;
        let refused = || {
            HsmError::Denied(format!("{}: wrong password, or the backup was cut or changed", file.display()))
        };
        let plain = BACKUP.open(password, &bytes).ok_or_else(refused)?;
        let from = &mut plain.as_slice();
        let broken = || HsmError::damaged(file, "its content does not decode");
        let content = Bytes::take(from).ok_or_else(broken)?;
        let mut content: Content = serde_json::from_slice(&content).map_err(|_| broken())?;
        let objects: Vec<Bytes> = decode(from).ok_or_else(broken)?;
        // The serial number and the certificate are the new HSM's own.
        content.meta.serial = hex(&random::array::<8>());
        content.meta.reboot = 0;
        content.meta.audit = super::audit::Head::default();
        content.meta.certificate.clear();
        content.meta.tls_key.clear();
        // It is a member when a member adds it.
        content.meta.members.clear();
        content.meta.joined = false;
        if content.meta.life != Life::Active {
            return Err(HsmError::Refused(format!("{}: of an HSM that was never activated", file.display())));
        }
        let keys = root::create(dir, protection, cost)?;
        let store = Store::open(dir, keys.store, true)?;
        let users: Vec<_> =
            content.users.iter().map(|u| (u.name.as_bytes().to_vec(), record::user(u))).collect();
        let mut handles = Vec::with_capacity(objects.len());
        for bytes in &objects {
            let object = record::decode_object(bytes).ok_or_else(broken)?;
            handles.push(object.handle.to_be_bytes().to_vec());
        }
        let mut gone = Vec::with_capacity(content.gone.len());
        for (key, stamp) in &content.gone {
            gone.push((unhex(key).ok_or_else(broken)?, encode(stamp)));
        }
        let meta = record::meta(&content.meta);
        let mut changes = vec![meta.change()];
        changes.extend(users.iter().map(|(name, user)| (Table::Users, name.clone(), Some(user.as_slice()))));
        changes.extend(
            handles.iter().zip(&objects).map(|(h, o)| (Table::Objects, h.clone(), Some(o.as_slice()))),
        );
        changes.extend(gone.iter().map(|(key, at)| (Table::Gone, key.clone(), Some(at.as_slice()))));
        store.write(&changes)
    }
}
