//! A way to the S3 server on which things go wrong: an HTTP proxy on loopback that answers in the server's stead, cuts
//! connections, says nothing, or turns a bit over.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

/// What happens to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It is answered by this status and code of error, and does not come to the server.
    Answer(u16, &'static str),
    /// It comes to the server; of the answer, the first half comes back.
    CutAnswer,
    /// Half of it is taken, then the connection is gone.
    CutRequest,
    /// It comes to nobody and is answered by nothing, until the fault is another one.
    Freeze,
    /// A bit of the answer's content is another one.
    FlipAnswer,
    /// A bit of its own content is another one.
    FlipRequest,
}

/// Which requests go wrong.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    /// One in so many.
    pub(crate) every: usize,
    /// Requests whose first line has this, such as `PUT` or `/data/`.
    pub(crate) of: &'static str,
}

/// The proxy; it ends when it is dropped.
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    server: String,
    plan: Mutex<Option<Plan>>,
    changed: Condvar,
    seen: AtomicUsize,
    faults: AtomicUsize,
    end: AtomicBool,
}

impl Proxy {
    /// Before the server at `endpoint` (`http://HOST:PORT`).
    pub(crate) fn before(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: endpoint.trim_start_matches("http://").to_owned(),
            plan: Mutex::default(),
            changed: Condvar::new(),
            seen: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
            end: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if of_thread.end.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), shared) = (client, Arc::clone(&of_thread)) else { continue };
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Self { endpoint: format!("http://{address}"), shared, address }
    }

    /// From now on this goes wrong; nothing with `None`.
    pub(crate) fn set(&self, plan: Option<Plan>) {
        self.shared.seen.store(0, Ordering::SeqCst);
        *self.shared.plan.lock().unwrap() = plan;
        self.shared.changed.notify_all();
    }

    /// Requests that went wrong so far.
    pub(crate) fn faults(&self) -> usize {
        self.shared.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.set(None);
        let _ = TcpStream::connect(self.address);
    }
}

/// Up to the empty line, it included.
fn head_of(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 64 << 10 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(head)
}

fn length_in(head: &[u8]) -> usize {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let line =
        text.lines().find_map(|line| line.strip_prefix("content-length:").map(str::trim).map(str::to_owned));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Shared {
    /// The fault of a request, whose first line is given.
    fn fault_of(&self, line: &str) -> Option<Fault> {
        let plan = self.plan.lock().unwrap().clone()?;
        if !line.contains(plan.of)
            || !(self.seen.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(plan.every)
        {
            return None;
        }
        self.faults.fetch_add(1, Ordering::SeqCst);
        Some(plan.fault)
    }

    /// Answers requests until one goes wrong or the client leaves. Each goes to the server by a connection of its own.
    fn serve(&self, mut client: TcpStream) {
        let mut from = std::io::BufReader::new(client.try_clone().unwrap());
        while let Some(head) = head_of(&mut from) {
            let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
            let fault = self.fault_of(&line);
            let mut body = vec![0; length_in(&head)];
            if fault == Some(Fault::CutRequest) {
                let half = body.len() / 2;
                let _ = from.read_exact(&mut body[..half]);
                let _ = client.shutdown(Shutdown::Both);
                return;
            }
            if String::from_utf8_lossy(&head).to_ascii_lowercase().contains("expect: 100-continue") {
                let _ = client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            if from.read_exact(&mut body).is_err() {
                return;
            }
            match fault {
                Some(Fault::Answer(status, code)) => {
                    let text = format!(
                        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>"
                    );
                    let answer = format!(
                        "HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{text}",
                        text.len()
                    );
                    if client.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                    continue;
                }
                Some(Fault::Freeze) => {
                    let frozen =
                        |plan: &mut Option<Plan>| plan.as_ref().is_some_and(|p| p.fault == Fault::Freeze);
                    drop(self.changed.wait_while(self.plan.lock().unwrap(), frozen));
                    return;
                }
                Some(Fault::FlipRequest) => flip(&mut body),
                _ => {}
            }
            let Some(mut answer) = self.ask(&head, &body) else { return };
            let content = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| at + 4);
            match fault {
                Some(Fault::FlipAnswer) => flip(&mut answer[content..]),
                Some(Fault::CutAnswer) => answer.truncate(content + (answer.len() - content) / 2),
                _ => {}
            }
            let _ = client.write_all(&answer);
            // The server was told to close, and has told the client so.
            let _ = client.shutdown(Shutdown::Both);
            return;
        }
    }

    /// The server's answer.
    fn ask(&self, head: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        let mut server = TcpStream::connect(&self.server).ok()?;
        let head = head.strip_suffix(b"\r\n")?;
        server.write_all(&[head, b"Connection: close\r\n\r\n", body].concat()).ok()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok()?;
        Some(answer)
    }
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 4;
    }
}
