//! `envelopefs hsm serve`: one appliance, in the foreground, until a signal ends it.

use std::error::Error;
use std::io;

use super::Secrets;
use super::args::ServeArgs;
use crate::cli::{harden, logging, signals};
use crate::hsm::{Address, Appliance, Config, Monitor, Peers, Server, needs_passphrase};

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(args: &ServeArgs, secrets: Secrets<'_>) -> Result<(), Box<dyn Error>> {
    let signals = signals::listen(signals::block()?)?;
    harden::raise_descriptor_limit();
    harden::lock_memory();
    logging::to_stderr();
    let passphrase = if needs_passphrase(&args.dir)? { args.root.passphrase(secrets)? } else { None };
    let config = Config {
        legacy: args.legacy,
        hsm_iv: args.hsm_iv,
        default_user: args.default_user.clone(),
        max_members: usize::from(args.max_members),
        disable_key_availability_check: args.disable_key_availability_check,
        ..Config::default()
    };
    let appliance = Appliance::open(&args.dir, passphrase.as_ref().map(|p| p.as_str()), config)?;
    let mut listen: Vec<Address> = Vec::new();
    for text in &args.listen {
        listen.push(text.parse()?);
    }
    if listen.is_empty() {
        listen.push(Address::Unix(args.dir.join("hsm.sock")));
    }
    let reached = match &args.member_address {
        Some(text) => text.parse()?,
        None => absolute(listen.first().cloned().ok_or("no address to listen at")?)?,
    };
    appliance.join(&reached);
    let peers = Peers { uids: args.allow_uid.clone() };
    let mut servers = Vec::new();
    for at in &listen {
        servers.push(Server::start(appliance.clone(), at, peers.clone())?);
    }
    let monitor = args.metrics.map(|at| Monitor::start(appliance.clone(), at)).transpose()?;
    for server in &servers {
        println!("{}", server.address());
    }
    if let Some(monitor) = &monitor {
        println!("http://{}", monitor.address());
    }
    if args.until_eof {
        // Signals of the terminal concern the host, which may need this HSM to end well.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    } else {
        // The first signal ends it; what is durable is durable already.
        let _ = signals.recv();
    }
    drop(monitor);
    drop(servers);
    appliance.settle();
    Ok(())
}

/// A socket's path as others, in other directories, have it.
fn absolute(address: Address) -> std::io::Result<Address> {
    match address {
        Address::Unix(path) => Ok(Address::Unix(std::path::absolute(path)?)),
        tcp => Ok(tcp),
    }
}
