//! Key states, and which operation a state allows
//! (<https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html>).

use super::error::KmsError;
use super::records::KeyRecord;
use super::spec::{Manager, Origin};

/// AWS's key states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Enabled,
    Disabled,
    PendingDeletion,
    PendingReplicaDeletion,
    PendingImport,
    /// Its custom key store is not connected.
    Unavailable,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::PendingReplicaDeletion => "PendingReplicaDeletion",
            Self::PendingImport => "PendingImport",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// The state that a record alone tells.
pub(super) fn stored(record: &KeyRecord) -> State {
    match record.deletion {
        Some(deletion) if deletion.at_ms.is_none() => return State::PendingReplicaDeletion,
        Some(_) => return State::PendingDeletion,
        None => {}
    }
    let lacks = record.materials.is_empty() || record.materials.iter().any(|m| !m.is_present());
    match (record.origin, record.enabled) {
        // One material that expired or was deleted makes the whole key unusable.
        (Origin::External, _) if lacks => State::PendingImport,
        (_, true) => State::Enabled,
        (_, false) => State::Disabled,
    }
}

/// Refuses to use a key in a state that does not allow cryptographic operations.
pub(super) fn usable(record: &KeyRecord, state: State) -> Result<(), KmsError> {
    match state {
        State::Enabled => Ok(()),
        State::Disabled => Err(KmsError::Disabled(record.arn())),
        other => Err(wrong(record, other)),
    }
}

/// Refuses to change a key that is about to be deleted.
pub(super) fn not_pending_deletion(record: &KeyRecord) -> Result<(), KmsError> {
    match stored(record) {
        state @ (State::PendingDeletion | State::PendingReplicaDeletion) => Err(wrong(record, state)),
        _ => Ok(()),
    }
}

/// Refuses to enable or disable a key that has no material, or is about to be deleted.
pub(super) fn switchable(record: &KeyRecord) -> Result<(), KmsError> {
    not_pending_deletion(record)?;
    match stored(record) {
        State::PendingImport => Err(wrong(record, State::PendingImport)),
        _ => Ok(()),
    }
}

/// Refuses to manage a key that is AWS's own.
pub(super) fn manageable(record: &KeyRecord) -> Result<(), KmsError> {
    match record.manager {
        Manager::Customer => Ok(()),
        // AWS refuses by the key's policy, which nobody can change.
        Manager::Aws => Err(KmsError::exception(
            "AccessDeniedException",
            format!("{} is managed by the service; it cannot be changed", record.arn()),
        )),
    }
}

/// KMSInvalidStateException with AWS's words.
pub(super) fn wrong(record: &KeyRecord, state: State) -> KmsError {
    let what = match state {
        State::Enabled => "enabled",
        State::Disabled => "disabled",
        State::PendingDeletion => "pending deletion",
        State::PendingReplicaDeletion => "pending replica deletion",
        State::PendingImport => "pending import",
        State::Unavailable => "unavailable",
    };
    KmsError::InvalidState(format!("{} is {what}.", record.arn()))
}
