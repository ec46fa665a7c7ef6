//! What a daemon whose wrapping key is behind a network may reach of it, and read for it.

use std::path::{Path, PathBuf};

/// Name resolution, certificates, the code that glibc loads for both, and AWS's configuration below HOME.
const FILES: [&str; 14] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/pki",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/etc/ld.so.cache",
    "/lib",
    "/usr/lib",
];
/// Variables that name such files: other certificates, AWS's configuration and tokens.
const VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];
/// Answers that are too long for UDP; STS; the metadata service of an instance or a container.
const PORTS: [u16; 3] = [53, 443, 80];

/// Adds what exists here.
pub(super) fn add(readable: &mut Vec<PathBuf>, ports: &mut Vec<u16>) {
    readable.extend(FILES.iter().map(PathBuf::from));
    readable.extend(std::env::home_dir().map(|home| home.join(".aws")));
    for file in VARIABLES.iter().filter_map(std::env::var_os).map(PathBuf::from) {
        // Tokens are renewed by replacing them, often through a link: their directory then.
        readable.extend(file.parent().filter(|p| *p != Path::new("/")).map(Path::to_owned));
        readable.push(file);
    }
    readable.retain(|path| path.exists());
    ports.extend(PORTS);
    ports.sort_unstable();
    ports.dedup();
}
