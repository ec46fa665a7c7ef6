//! New material for keys, on demand and when due; deletion and expiry when due.
//!
//! Nothing here needs a clock that runs: whoever uses a key next, or the server's sweep, does what fell due meanwhile.

use serde_json::Value;

use super::arn::Scope;
use super::engine::{Engine, key_in};
use super::error::KmsError;
use super::index;
use super::keys::{alias_name, random_material, remove_alias};
use super::records::{Family, KeyRecord, MaterialRef};
use super::seams::ServiceRecord;
use super::spec::{KeySpec, Origin, RotationKind};
use super::state::{self, usable};
use super::store::Fault;
use super::table::{ALIASES, GRANTS, INDEX, KEYS, MATERIALS, USES, View, Writer};

/// Milliseconds of a day.
pub(super) const DAY_MS: u64 = 86_400_000;
/// An on-demand rotation is refused when an automatic one is due within this time (AWS: 20 minutes).
const CLOSE_MS: u64 = 20 * 60 * 1000;
/// Materials that one key may have: its version number has 16 bits.
const MAX_MATERIALS: usize = u16::MAX as usize - 1;

/// The event of a key's end.
const DELETE_KEY: &str = "DeleteKey";

/// What the service did by itself.
pub(super) struct ServiceEvent {
    name: &'static str,
    arn: String,
    scope: Scope,
    /// As [`ServiceRecord::details`].
    details: Value,
}

/// Fresh symmetric material, as a version of a key.
pub(super) fn new_material(
    w: &Writer<'_>,
    now: u64,
    rotated: Option<RotationKind>,
) -> Result<MaterialRef, Fault> {
    Ok(MaterialRef { id: random_material(w)?, created_ms: now, rotated, import: None })
}

impl Engine {
    /// RotateKeyOnDemand of the key in a slot.
    pub(super) fn rotate_now(&self, slot: &str) -> Result<(), KmsError> {
        let limit = usize::from(self.limits.on_demand_rotations);
        let now = self.now();
        self.store.write(|w| {
            let mut record = key_in(w, slot)?;
            rotates(&record)?;
            usable(&record, state::stored(&record))?;
            if record.rotation.is_some_and(|r| r.next_ms < now.saturating_add(CLOSE_MS)) {
                let text = format!("{} is rotated automatically within 20 minutes.", record.arn());
                return Err(KmsError::exception("ConflictException", text).into());
            }
            let done = record.materials.iter().skip(1).filter(|m| m.rotated != Some(RotationKind::Automatic));
            if done.count() >= limit || record.materials.len() >= MAX_MATERIALS {
                return Err(KmsError::LimitExceeded(format!(
                    "The on-demand rotations limit has been reached for the given keyId. \
                     No more on-demand rotations can be performed for this key: {}",
                    record.arn()
                ))
                .into());
            }
            let material = match record.origin {
                Origin::External => {
                    let pending = record.pending.take().ok_or_else(|| {
                        KmsError::InvalidState(format!(
                            "No available key material pending rotation for the key: {}.",
                            record.arn()
                        ))
                    })?;
                    MaterialRef { rotated: Some(RotationKind::OnDemand), created_ms: now, ..pending }
                }
                _ => new_material(w, now, Some(RotationKind::OnDemand))?,
            };
            push(w, &mut record, material)
        })
    }

    /// Does what is due on the key in a slot: deletes it, rotates it, forgets expired material.
    pub(super) fn settle(&self, slot: &str) -> Result<(), KmsError> {
        let now = self.now();
        let (mut dead, mut custom) = (Vec::new(), None);
        let mut events = self.store.write(|w| {
            // Another process may have done it.
            let Some(record) = w.get::<KeyRecord>(KEYS, slot)? else { return Ok(Vec::new()) };
            custom.clone_from(&record.key_store);
            settle_in(w, record, now, &mut dead)
        })?;
        for id in &dead {
            self.forget_material(id);
        }
        if let Some(store) = custom.filter(|_| !dead.is_empty()) {
            // Before the events, which say what became of it.
            let details = self.destroy_in_cluster(&store, &dead);
            for event in events.iter_mut().filter(|event| event.name == DELETE_KEY) {
                event.details.clone_from(&details);
            }
        }
        let Some(observer) = &self.observer else { return Ok(()) };
        for event in &events {
            observer.service(&ServiceRecord {
                name: event.name,
                key: &event.arn,
                account: &event.scope.account,
                region: &event.scope.region,
                details: &event.details,
            });
        }
        Ok(())
    }

    /// Does what is due on every key; gives how many there were. The server calls it now and then.
    pub fn settle_all(&self) -> Result<usize, KmsError> {
        let now = self.now();
        let due = self.store.read(|r| {
            let mut due = Vec::new();
            for slot in r.keys(KEYS, "", "", usize::MAX)? {
                if key_in(r, &slot)?.due_ms().is_some_and(|at| at <= now) {
                    due.push(slot);
                }
            }
            Ok(due)
        })?;
        due.iter().try_for_each(|slot| self.settle(slot))?;
        Ok(due.len())
    }
}

/// Refuses rotation of what does not rotate.
pub(super) fn rotates(record: &KeyRecord) -> Result<(), KmsError> {
    if record.spec != KeySpec::Symmetric {
        return Err(KmsError::unsupported(""));
    }
    if record.key_store.is_some() {
        let text = format!(
            "{} origin is {} which is not valid for this operation.",
            record.arn(),
            record.origin.name()
        );
        return Err(KmsError::unsupported(text));
    }
    if record.family.is_some() && !record.is_primary() {
        let text = format!("{} is not a multi-region primary key.", record.arn());
        return Err(KmsError::unsupported(text));
    }
    Ok(())
}

/// Makes material current: of the key, and of its replicas.
fn push(w: &Writer<'_>, record: &mut KeyRecord, material: MaterialRef) -> Result<(), Fault> {
    record.materials.push(material.clone());
    w.put(KEYS, &record.slot(), record)?;
    for mut replica in relatives(w, record)? {
        replica.materials.push(material.clone());
        w.put(KEYS, &replica.slot(), &replica)?;
    }
    Ok(())
}

/// The records of a multi-region key in other regions.
pub(super) fn relatives(view: &impl View, record: &KeyRecord) -> Result<Vec<KeyRecord>, Fault> {
    let Some(Family { primary, replicas }) = &record.family else { return Ok(Vec::new()) };
    let others = std::iter::once(primary).chain(replicas).filter(|r| **r != record.scope.region);
    let mut found = Vec::new();
    for region in others {
        let scope = Scope { account: record.scope.account.clone(), region: region.clone() };
        found.extend(view.get(KEYS, &scope.key_slot(&record.id))?);
    }
    Ok(found)
}

/// Writes a family into a key and all its relatives.
pub(super) fn write_family(w: &Writer<'_>, record: &mut KeyRecord, family: &Family) -> Result<(), Fault> {
    for mut relative in relatives(w, record)? {
        relative.family = Some(family.clone());
        w.put(KEYS, &relative.slot(), &relative)?;
    }
    record.family = Some(family.clone());
    w.put(KEYS, &record.slot(), record)
}

fn settle_in(
    w: &Writer<'_>,
    mut record: KeyRecord,
    now: u64,
    dead: &mut Vec<String>,
) -> Result<Vec<ServiceEvent>, Fault> {
    let event = |name, record: &KeyRecord| ServiceEvent {
        name,
        arn: record.arn(),
        scope: record.scope.clone(),
        details: Value::Null,
    };
    let mut events = Vec::new();
    if record.deletion.and_then(|d| d.at_ms).is_some_and(|at| at <= now) {
        events.push(event(DELETE_KEY, &record));
        purge(w, &record, now, dead)?;
        return Ok(events);
    }
    let mut expired = Vec::new();
    for material in record.materials.iter_mut().chain(&mut record.pending) {
        if let Some(import) = &mut material.import
            && import.present
            && import.expires_ms.is_some_and(|at| at <= now)
        {
            import.present = false;
            expired.push(material.id.clone());
        }
    }
    for id in expired {
        events.push(event("DeleteExpiredKeyMaterial", &record));
        drop_material(w, &record, &id, dead)?;
    }
    let rotates = record.enabled && record.deletion.is_none();
    if let Some(rotation) = record.rotation.as_mut().filter(|r| rotates && r.next_ms <= now) {
        // However many periods passed: one rotation, and the next a period from now.
        rotation.next_ms = now + u64::from(rotation.period_days) * DAY_MS;
        if record.materials.len() < MAX_MATERIALS {
            events.push(event("RotateKey", &record));
            let material = new_material(w, now, Some(RotationKind::Automatic))?;
            push(w, &mut record, material)?;
        }
    }
    w.put(KEYS, &record.slot(), &record)?;
    Ok(events)
}

/// Removes a material's bytes, unless a relative in another region still has them.
pub(super) fn drop_material(
    w: &Writer<'_>,
    record: &KeyRecord,
    id: &str,
    dead: &mut Vec<String>,
) -> Result<(), Fault> {
    let shared = relatives(w, record)?
        .iter()
        .any(|r| r.materials.iter().chain(&r.pending).any(|m| m.id == id && m.is_present()));
    if !shared {
        w.remove(MATERIALS, id)?;
        dead.push(id.to_owned());
    }
    Ok(())
}

/// Deletes a key with its material, aliases and grants.
fn purge(w: &Writer<'_>, record: &KeyRecord, now: u64, dead: &mut Vec<String>) -> Result<(), Fault> {
    let slot = record.slot();
    for material in record.materials.iter().chain(&record.pending) {
        drop_material(w, record, &material.id, dead)?;
    }
    for name in w.keys(INDEX, &index::alias_of(&slot, ""), "", usize::MAX)? {
        let alias = index::tail(&name, '|').to_owned();
        if w.bytes(ALIASES, &record.scope.alias_slot(&alias))?.is_some() {
            remove_alias(w, &record.scope, &alias)?;
        }
    }
    for key in w.keys(GRANTS, &format!("{slot}|"), "", usize::MAX)? {
        super::grants::remove(w, &key)?;
    }
    w.remove(INDEX, &index::key(&record.scope, &record.id))?;
    w.remove(USES, &slot)?;
    w.remove(KEYS, &slot)?;
    let Some(family) = &record.family else { return Ok(()) };
    let mut family = family.clone();
    family.replicas.retain(|r| *r != record.scope.region);
    for mut relative in relatives(w, record)? {
        relative.family = Some(family.clone());
        // A primary that only waited for its replicas begins its own waiting period.
        if let Some(deletion) = &mut relative.deletion
            && deletion.at_ms.is_none()
            && family.replicas.is_empty()
        {
            deletion.at_ms = Some(now + u64::from(deletion.days) * DAY_MS);
        }
        w.put(KEYS, &relative.slot(), &relative)?;
    }
    Ok(())
}

/// The alias names of a key.
pub(super) fn aliases_of(
    view: &impl View,
    slot: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<String>, Fault> {
    let prefix = index::alias_of(slot, "");
    let after = if after.is_empty() { String::new() } else { format!("{prefix}{after}") };
    let names = view.keys(INDEX, &prefix, &after, limit)?;
    Ok(names.iter().map(|name| name.get(prefix.len()..).unwrap_or_default().to_owned()).collect())
}

/// The alias names of a scope.
pub(super) fn aliases_in(
    view: &impl View,
    scope: &Scope,
    after: &str,
    limit: usize,
) -> Result<Vec<String>, Fault> {
    let prefix = index::alias(scope, "");
    let after = if after.is_empty() { String::new() } else { format!("{prefix}{after}") };
    let names = view.keys(INDEX, &prefix, &after, limit)?;
    Ok(names.iter().map(|name| alias_name(name).to_owned()).collect())
}
