//! `bench`: measures ciphers, the pipeline, and mounts.

mod kernel;
mod mount;
mod output;
mod pipeline;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Subcommand};

use super::error::CliError;
use super::exit::Exit;
use super::{logging, signals, umount};
use crate::bench::{self, Keeper, NullError};

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measures how fast blocks are sealed and opened: each kernel, the aes-gcm-siv crate, AWS-LC.
    Kernel(kernel::KernelBenchArgs),
    /// Measures how sealing and opening scale with threads.
    Pipeline(pipeline::PipelineBenchArgs),
    /// Measures real mounts with fio and a source tree, beside the lower filesystem, a FUSE filesystem that does
    /// nothing, gocryptfs, securefs, CryFS, EncFS and fscrypt, where they are installed. Needs root.
    Mount(Box<mount::MountBenchArgs>),
    /// Serves a filesystem that keeps nothing, the ceiling of `bench mount`, until it is unmounted.
    #[command(hide = true)]
    NullFs {
        /// An empty directory.
        mount_point: PathBuf,
    },
    /// Cleans up after a run that was killed.
    #[command(hide = true)]
    Guard {
        /// What to unmount and remove.
        dirs: Vec<PathBuf>,
    },
}

pub(super) fn run(args: &BenchArgs) -> Result<Exit, CliError> {
    match &args.what {
        What::Kernel(args) => kernel::run(args),
        What::Pipeline(args) => pipeline::run(args),
        What::Mount(args) => mount::run(args),
        What::NullFs { mount_point } => null_fs(mount_point),
        What::Guard { dirs } => {
            signals::ignore();
            bench::serve_guard(std::io::stdin(), dirs);
            Ok(Exit::Ok)
        }
    }
}

/// Serves until the mount is gone. A signal takes it away.
fn null_fs(mount_point: &Path) -> Result<Exit, CliError> {
    logging::to_stderr();
    let path = mount_point.canonicalize().map_err(CliError::io(mount_point))?;
    let blocked = signals::block().map_err(CliError::io(Path::new("signals")))?;
    let wishes = signals::listen(blocked).map_err(CliError::io(Path::new("signals")))?;
    let point = path.clone();
    let listener = move || {
        for _ in wishes {
            if let Err(e) = umount::unmount(&point, true) {
                eprintln!("envelopefs: {}: {e}", point.display());
            }
        }
    };
    let told = std::thread::Builder::new().name("efs-wishes".to_owned()).spawn(listener);
    told.map_err(CliError::io(Path::new("a thread")))?;
    bench::serve_null(&path, || eprintln!("mounted; ends when it is unmounted")).map_err(|e| match e {
        NullError::Mount(e) => CliError::Mount(path.clone(), e),
        NullError::Serve(e) => CliError::Io(path.clone(), e),
    })?;
    Ok(Exit::Ok)
}

/// A keeper that ends what it keeps at the first signal. At the second one the process goes at once, and the guard
/// cleans up.
fn keeper() -> Result<Keeper, CliError> {
    let blocked = signals::block().map_err(CliError::io(Path::new("signals")))?;
    let wishes = signals::listen(blocked).map_err(CliError::io(Path::new("signals")))?;
    let stop = Arc::new(AtomicBool::new(false));
    let wish = Arc::clone(&stop);
    let listener = move || {
        for _ in wishes {
            if wish.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(Exit::Interrupted.code()));
            }
            eprintln!("envelopefs: interrupted: unmounting and removing what was made");
        }
    };
    std::thread::Builder::new()
        .name("efs-wishes".to_owned())
        .spawn(listener)
        .map_err(CliError::io(Path::new("a thread")))?;
    Ok(Keeper::new(stop))
}

/// How this run was called, for its report.
fn command_line() -> String {
    let words = std::env::args_os().enumerate().map(|(at, word)| {
        let word = word.to_string_lossy().into_owned();
        // The program by its name: where it lies tells nothing.
        if at == 0 {
            Path::new(&word).file_name().map_or(word.clone(), |n| n.to_string_lossy().into_owned())
        } else {
            word
        }
    });
    words.collect::<Vec<_>>().join(" ")
}
