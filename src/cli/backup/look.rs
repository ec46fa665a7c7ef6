//! `backup mount`: look before you restore. A snapshot's ciphertext, mounted privately, is the lower directory of a
//! read-only mount of the plaintext; what nobody reads is never fetched.

use std::path::Path;
use std::sync::Arc;

use super::super::error::CliError;
use super::super::exit::Exit;
use super::super::guardian::Guardian;
use super::super::{logging, mount_point, signals};
use super::args::MountArgs;
use super::connect::{self, Scratch};
use crate::backup::{Journal, Meter, journal};
use crate::fs::{Fs, Options};
use crate::fuse::{self, MountConfig, Session, Transport};
use crate::view::SnapshotView;

/// Requests that wait for the store while others are served.
const WAITING: usize = 8;

pub(super) fn mount(args: &MountArgs) -> Result<Exit, CliError> {
    logging::to_stderr();
    let meter = Arc::new(Meter::default());
    let blocked = signals::block().map_err(CliError::io(Path::new("signals")))?;
    let scratch = Scratch::make()?;
    let point = mount_point::check(&args.mount_point, &scratch.0, false)?;
    let repo = connect::repo(&args.store, Some(&args.open), &meter)?;
    let snapshot = repo.snapshot(&args.snapshot, args.vault_id.as_deref())?;
    let reader = Arc::new(repo.reader()?);
    let keyring = connect::keyring_of_snapshot(&reader, &snapshot, &args.open.key)?;
    if journal(&reader, &snapshot)? == Journal::Changes {
        eprintln!(
            "envelopefs: the snapshot has changes in a journal, which do not show here: a file may be older than it was, or \
             not open. Restored and mounted, it has them."
        );
    }
    let config = MountConfig {
        source: repo.location().into(),
        read_only: true,
        no_atime: true,
        transport: Transport::Device,
        waiting_loops: WAITING,
        ..MountConfig::default()
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e| CliError::Mount(path, e)
    };
    let mut below = Guardian::start(&scratch.0).map_err(CliError::io(&scratch.0))?;
    let mut above = Guardian::start(&point).map_err(CliError::io(&point))?;
    let view = SnapshotView::new(reader, snapshot.clone())?;
    let session = Session::mount(view, &scratch.0, &config).map_err(failed(&scratch.0))?;
    below.mounted(session.device()).map_err(CliError::io(&scratch.0))?;
    let lower = std::thread::spawn(move || session.run());
    let options = Options { read_only: true, no_atime: true, ..Options::default() };
    let fs = Arc::new(Fs::open(&scratch.0, keyring, options).map_err(|e| CliError::Top(point.clone(), e))?);
    let mounted = fuse::mount(Arc::clone(&fs), &point, &config).map_err(failed(&point))?;
    above.mounted(mounted.device()).map_err(CliError::io(&point))?;
    let wishes = signals::listen(blocked).map_err(CliError::io(Path::new("signals")))?;
    println!("snapshot {} of {} at {}", &snapshot.id[..8], snapshot.when, point.display());
    let upper = std::thread::spawn(move || mounted.run());
    while !upper.is_finished() {
        if wishes.recv_timeout(std::time::Duration::from_millis(200)).is_ok() {
            above.unmount().map_err(CliError::io(&point))?;
        }
    }
    let served = upper.join().unwrap_or_else(|_| Err(std::io::Error::other("an event loop panicked")));
    fs.close();
    drop(fs);
    below.unmount().map_err(CliError::io(&scratch.0))?;
    let _ = lower.join();
    drop((above, below));
    served.map(|()| Exit::Ok).map_err(CliError::io(&point))
}
