//! `hsm serve --metrics`: `/healthz` and `/metrics` over plain HTTP, for this machine.
//!
//! Without login, so on the loopback interface only. One thread answers one connection after another and waits for none
//! longer than [`PATIENCE`]: it costs the HSM nothing, and who keeps it busy keeps nobody but its readers waiting.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::appliance::Appliance;
use super::error::HsmError;

/// How long a request may take to come, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request.
const MAX_REQUEST: usize = 4096;

/// A running monitor; ends when dropped.
pub struct Monitor {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Monitor {
    /// Listens.
    ///
    /// # Errors
    /// An address that is not of the loopback interface, or cannot be had.
    pub fn start(appliance: Arc<Appliance>, at: SocketAddr) -> Result<Self, HsmError> {
        if !at.ip().is_loopback() {
            return Err(HsmError::Refused(format!(
                "{at}: metrics need no login, so they are served on the loopback interface only (127.0.0.1:PORT)"
            )));
        }
        let refused = |e: std::io::Error| HsmError::Unreachable { at: at.to_string(), why: e.to_string() };
        let listener = TcpListener::bind(at).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("hsm-monitor".into())
            .spawn(move || serve(&listener, &appliance, &stopped))
            .map_err(HsmError::io("hsm-monitor"))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens: the port, where the system chose one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect_timeout(&self.address, PATIENCE);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, appliance: &Appliance, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        match stream {
            // A reader that goes away in the middle is its own business.
            Ok(stream) => drop(answer(stream, appliance)),
            Err(e) => {
                log::warn!("metrics: a connection could not be accepted: {e}");
                // Out of descriptors: trying again at once would spin.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn answer(mut stream: TcpStream, appliance: &Appliance) -> std::io::Result<()> {
    let head = request(&mut stream)?;
    let mut words = head.split(|b| *b == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/healthz") => match appliance.ailment() {
            None => ("200 OK", "ok\n".to_owned()),
            Some(why) => ("503 Service Unavailable", format!("{why}\n")),
        },
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK", appliance.metrics()),
        (b"GET" | b"HEAD", _) => ("404 Not Found", "there are /healthz and /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET\n".to_owned()),
    };
    let body_is_asked = method != b"HEAD";
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes())?;
    if body_is_asked {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}

/// The head of a request, which has to come whole in time.
fn request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut piece = [0; 512];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > MAX_REQUEST {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => head.extend_from_slice(piece.get(..n).unwrap_or_default()),
        }
    }
    Ok(head)
}
