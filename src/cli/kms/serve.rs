//! `kms serve`: the wire server on an embedded store.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::cli::{harden, signals};
use crate::hsm::KeyStore;
use crate::kms::Engine;
use crate::kms::Limits;
use crate::kms::quota::Quotas;
use crate::kms::server::{Address, Server, Settings};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Open the store by this key of a PKCS#11 token (pkcs11:...), instead of the URI that the store has for it.
    #[arg(long, value_name = "URI", help_heading = "Keys")]
    pub(super) kms_key_uri: Option<String>,
    /// Where to listen; port 0 takes a free one and prints it.
    #[arg(long, value_name = "HOST:PORT|unix:PATH", default_value = "127.0.0.1:9777")]
    listen: String,
    /// Certificate chain (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve plain HTTP also on addresses that other hosts reach: everybody on the way reads data keys.
    #[arg(long)]
    allow_plain: bool,
    /// Keys, materials, aliases and principals with fixed names (TOML, docs/KMS.md), made where they are missing.
    #[arg(long, value_name = "FILE")]
    seed: Option<PathBuf>,
    /// Request quotas: aws, off, xFACTOR, or CLASS=RATE,... (requests a second) [default: aws; off with --test-reset].
    #[arg(long = "quota", value_name = "SETTING", value_parser = Quotas::parse)]
    quotas: Option<Quotas>,
    /// An HSM cluster for custom key stores: its id (cluster- and 11 to 16 letters and digits 2 to 7) and the file that
    /// describes it (docs/KMS.md).
    #[arg(long, value_name = "ID=FILE", value_parser = cluster)]
    hsm_cluster: Vec<(String, PathBuf)>,
    /// A service control policy (JSON) over every account of the store: each one given has to allow a call.
    #[arg(long, value_name = "FILE")]
    service_control_policy: Vec<PathBuf>,
    /// Serve a page at /console to browsers on this machine: keys, policies, grants, audit, usage; read-only without login.
    #[arg(long)]
    console: bool,
    /// For test suites only: POST /moto-api/reset forgets every key, without asking who.
    #[arg(long)]
    test_reset: bool,
    /// Longest plaintext of Encrypt in bytes, up to 10240 (AWS: 4096).
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    max_plaintext: usize,
}

/// Serves until a signal ends it.
pub(super) fn run(
    args: &ServeArgs,
    open: impl FnOnce() -> Result<Engine, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    // Before any thread starts.
    let blocked = signals::block()?;
    harden::raise_descriptor_limit();
    let seed = args
        .seed
        .as_ref()
        .map(|path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display())));
    let settings = Settings {
        listen: args.listen.clone(),
        tls: args.tls_cert.clone().zip(args.tls_key.clone()),
        allow_plain: args.allow_plain,
        test_reset: args.test_reset,
        seed: seed.transpose()?,
        console: args.console,
    };
    let limits = Limits { plaintext: args.max_plaintext, ..Limits::default() };
    // A test suite makes keys far faster than AWS lets anybody.
    let usual = if args.test_reset { Quotas::off() } else { Quotas::default() };
    let quotas = args.quotas.clone().unwrap_or(usual);
    let control = args.service_control_policy.iter().map(|path| {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        std::fs::read_to_string(path).map(|text| (name, text)).map_err(|e| format!("{}: {e}", path.display()))
    });
    let control = control.collect::<Result<Vec<_>, _>>()?;
    let engine = open()?.with_limits(limits).with_quotas(quotas).with_service_control(control)?.hold()?;
    for (id, file) in &args.hsm_cluster {
        engine.add_cluster(id, Arc::new(KeyStore::described(file)?));
    }
    let server = Server::bind(Arc::new(engine), &settings)?;
    for address in server.addresses() {
        match address {
            Address::Unix(path) if path.ends_with(crate::kms::server::CONTROL_SOCKET) => {
                log::info!("control socket {}", path.display());
            }
            address => {
                super::print(&format!("listening on {address}\n"))?;
                if args.console {
                    super::print(&format!("console at {address}/console\n"))?;
                }
            }
        }
    }
    if args.test_reset {
        log::warn!("--test-reset: whoever reaches this server can delete every key, without a signature");
    }
    let stopper = server.stopper();
    let signals = signals::listen(blocked)?;
    std::thread::Builder::new().name("efs-kms-stop".into()).spawn(move || {
        if signals.recv().is_ok() {
            stopper.stop();
        }
    })?;
    Ok(server.run()?)
}

/// Reads `cluster-ID=FILE`.
fn cluster(text: &str) -> Result<(String, PathBuf), String> {
    let (id, file) = text.split_once('=').ok_or("write cluster-ID=FILE")?;
    let tail = id.strip_prefix("cluster-").unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphabetic() || ('2'..='7').contains(&c);
    if !(11..=16).contains(&tail.len()) || !tail.chars().all(fits) {
        return Err(format!("{id:?}: an id is cluster- and 11 to 16 letters and digits 2 to 7"));
    }
    Ok((id.to_owned(), file.into()))
}
