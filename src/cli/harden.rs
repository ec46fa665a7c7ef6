//! What every command does first: keys must not reach a core file, a debugger or the swap.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Set before the command line is looked at. A refusal of the system weakens this run, and is no reason to fail.
pub(super) fn early() {
    let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    raise(Resource::Memlock);
}

/// For the daemon: as many descriptors as this user may have.
pub(super) fn raise_descriptor_limit() {
    raise(Resource::Nofile);
}

/// Keeps all memory out of the swap, where the system lets an unlimited amount be locked.
pub(super) fn lock_memory() {
    use rustix::mm::{MlockAllFlags, mlockall};
    let limit = rustix::process::getrlimit(Resource::Memlock).current;
    if limit.is_some() {
        log::info!(
            "memory can reach the swap: RLIMIT_MEMLOCK is limited; raise it (LimitMEMLOCK=infinity) to lock all"
        );
    } else if let Err(e) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        log::info!("memory can reach the swap: {e}");
    }
}

fn raise(resource: Resource) {
    let limit = rustix::process::getrlimit(resource);
    let _ = rustix::process::setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// No program that this process starts gains rights. After the last set-uid helper was started.
pub(super) fn no_new_privileges() {
    let _ = rustix::thread::set_no_new_privs(true);
}
