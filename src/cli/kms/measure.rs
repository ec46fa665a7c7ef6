//! `kms measure`: GenerateDataKey on a server, signed requests on so many connections.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::backend::{Backend, Connection, Remote};
use super::print;

#[derive(Debug, Args)]
pub(super) struct MeasureArgs {
    /// Connections at a time, each with one request in flight; measured one after the other.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,16")]
    connections: Vec<usize>,
    /// Seconds for each.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    seconds: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the measurement; the server gets one key for it.
pub(super) fn run(args: &MeasureArgs, backend: Backend) -> Result<(), Box<dyn Error>> {
    let Backend::Url(remote) = backend else {
        return Err("name a server with --endpoint-url".into());
    };
    let made = remote.open()?.call(&remote, "CreateKey", &json!({ "Description": "kms measure" }))?;
    let input = json!({
        "KeyId": made["KeyMetadata"]["KeyId"],
        "KeySpec": "AES_256",
        "EncryptionContext": { "envelopefs:file": "0123456789abcdef" },
    });
    let mut all = Vec::new();
    for connections in &args.connections {
        let found = measure(&remote, *connections, Duration::from_secs(args.seconds), &input)?;
        if !args.json {
            print(&format!(
                "{connections:>3} connections  {:>8.0} GenerateDataKey/s  p50 {:>7.0} us  p99 {:>7.0} us\n",
                found["PerSecond"].as_f64().unwrap_or_default(),
                found["P50Micros"].as_f64().unwrap_or_default(),
                found["P99Micros"].as_f64().unwrap_or_default()
            ))?;
        }
        all.push(found);
    }
    if args.json { super::show::json(&json!({ "GenerateDataKey": all })) } else { Ok(()) }
}

fn measure(
    remote: &Remote,
    connections: usize,
    time: Duration,
    input: &Value,
) -> Result<Value, Box<dyn Error>> {
    let started = Instant::now();
    let end = started + time;
    let work = || -> Result<Vec<u32>, String> {
        let mut connection = remote.open().map_err(|e| e.to_string())?;
        let mut took = Vec::new();
        while Instant::now() < end {
            let before = Instant::now();
            once(remote, &mut connection, input)?;
            took.push(u32::try_from(before.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        Ok(took)
    };
    let mut took = Vec::new();
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            took.extend(thread.join().map_err(|_| "a measuring thread ended early")??);
        }
        Ok(())
    })?;
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a count of requests for a figure")]
    let per_second = took.len() as f64 / started.elapsed().as_secs_f64();
    Ok(json!({
        "Connections": connections,
        "Requests": took.len(),
        "PerSecond": per_second,
        "P50Micros": at(50),
        "P99Micros": at(99),
    }))
}

/// One request; a server that ends connections after each answer is connected to again.
fn once(remote: &Remote, connection: &mut Connection, input: &Value) -> Result<(), String> {
    if connection.call(remote, "GenerateDataKey", input).is_ok() {
        return Ok(());
    }
    *connection = remote.open().map_err(|e| e.to_string())?;
    connection.call(remote, "GenerateDataKey", input).map(|_| ()).map_err(|e| e.to_string())
}
