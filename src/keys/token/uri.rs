//! `pkcs11:` URIs (RFC 7512): which token, which of its keys, by which module.
//!
//! A PIN never stands in one: `pin-value` is refused, and the refusal does not repeat it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::mechanism::Kind;
use super::wire::Place;
use crate::keys::KeyError;

/// What the URIs begin with.
pub(in crate::keys) const SCHEME: &str = "pkcs11:";
/// Names the module instead of the URIs' own `module-path`.
pub const MODULE_ENV: &str = "ENVELOPEFS_PKCS11_MODULE";
/// The longest value of one attribute, and the longest PIN: PKCS#11's own texts have at most 64 bytes, paths 4096.
const LONGEST: usize = 4096;

/// A URI in its parts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TokenUri {
    /// Which token, and which of its keys.
    pub(super) place: Place,
    /// Where the module is, as the URI has it.
    pub(super) module: Option<PathBuf>,
    /// A file that holds the PIN.
    pub(super) pin_source: Option<PathBuf>,
    /// How it wraps, where it was found out already.
    pub(super) mechanism: Option<Kind>,
}

impl TokenUri {
    /// Reads a URI.
    pub(in crate::keys) fn parse(text: &str) -> Result<Self, KeyError> {
        // An error repeats the URI, which must not repeat a PIN.
        let shown = if text.contains("pin-value") { "pkcs11:…pin-value=…" } else { text };
        Self::read(text).map_err(|why| KeyError::Uri { uri: shown.to_owned(), why })
    }

    fn read(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).ok_or("it does not begin with pkcs11:")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let mut seen = Vec::new();
        let parts = path.split(';').map(|part| (part, true));
        for (part, in_path) in parts.chain(query.split('&').map(|part| (part, false))) {
            if part.is_empty() {
                continue;
            }
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no value"))?;
            if seen.contains(&name) {
                return Err(format!("it has {name} twice"));
            }
            seen.push(name);
            let bytes = percent_decode_str(value).collect::<Vec<u8>>();
            if bytes.len() > LONGEST || bytes.contains(&0) {
                return Err(format!("the value of {name} is too long, or has a zero byte in it"));
            }
            if in_path { uri.set_path(name, bytes)? } else { uri.set_query(name, bytes)? }
        }
        if uri.place.object.is_none() && uri.place.id.is_none() {
            return Err("it names no key: give object=LABEL or id=ID".into());
        }
        if uri.module.is_none() && std::env::var_os(MODULE_ENV).is_none() {
            return Err(format!(
                "it names no module: give ?module-path=/path/to/module.so, or set {MODULE_ENV}"
            ));
        }
        Ok(uri)
    }

    fn set_path(&mut self, name: &str, value: Vec<u8>) -> Result<(), String> {
        match name {
            "token" => self.place.token = Some(utf8(name, value)?),
            "manufacturer" => self.place.manufacturer = Some(utf8(name, value)?),
            "model" => self.place.model = Some(utf8(name, value)?),
            "serial" => self.place.serial = Some(utf8(name, value)?),
            "slot-id" => {
                let text = utf8(name, value)?;
                self.place.slot_id = Some(text.parse().map_err(|_| format!("{text:?} is no slot id"))?);
            }
            "object" => self.place.object = Some(utf8(name, value)?),
            "id" if value.is_empty() => return Err("its id is empty".into()),
            "id" => self.place.id = Some(value),
            "type" => {
                let kind = utf8(name, value)?;
                if kind != "secret-key" && kind != "private" {
                    return Err(format!("type={kind} wraps no keys; use secret-key or private"));
                }
                self.place.kind = Some(kind);
            }
            _ => return Err(format!("{name} is no attribute of its path that this program knows")),
        }
        Ok(())
    }

    fn set_query(&mut self, name: &str, value: Vec<u8>) -> Result<(), String> {
        match name {
            "module-path" => {
                let path = PathBuf::from(utf8(name, value)?);
                if !path.is_absolute() {
                    return Err(format!("module-path {} is not absolute", path.display()));
                }
                self.module = Some(path);
            }
            "pin-source" => {
                let text = utf8(name, value)?;
                let path = text.strip_prefix("file:").unwrap_or(&text);
                let path = path.strip_prefix("//").filter(|p| p.starts_with('/')).unwrap_or(path);
                if !path.starts_with('/') {
                    return Err(format!("pin-source {text:?} is no file; use pin-source=file:/path"));
                }
                self.pin_source = Some(PathBuf::from(path));
            }
            "mechanism" => {
                let text = utf8(name, value)?;
                let known = || {
                    let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                    format!("mechanism={text} is none of {}", names.join(", "))
                };
                self.mechanism = Some(Kind::by_name(&text).ok_or_else(known)?);
            }
            "pin-value" => {
                return Err(
                    "a PIN does not belong into a URI, which others can see: use pin-source=file:/path, \
                            ENVELOPEFS_PIN, or be asked for it"
                        .into(),
                );
            }
            "module-name" => return Err("module-name is not looked up here: use module-path=/path".into()),
            _ => return Err(format!("{name} is no attribute of its query that this program knows")),
        }
        Ok(())
    }

    /// The module's file: of the environment where that names one, else the URI's.
    pub(super) fn module(&self) -> PathBuf {
        let given = std::env::var_os(MODULE_ENV).map(PathBuf::from);
        given.or_else(|| self.module.clone()).unwrap_or_default()
    }
}

/// The one spelling that a volume config keeps.
impl std::fmt::Display for TokenUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slot = self.place.slot_id.map(|slot| slot.to_string());
        let path = [
            ("token", self.place.token.as_deref()),
            ("manufacturer", self.place.manufacturer.as_deref()),
            ("model", self.place.model.as_deref()),
            ("serial", self.place.serial.as_deref()),
            ("slot-id", slot.as_deref()),
            ("object", self.place.object.as_deref()),
            ("type", self.place.kind.as_deref()),
        ];
        let mut parts: Vec<String> = path
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", escape((*value)?.as_bytes(), b""))))
            .collect();
        if let Some(id) = &self.place.id {
            let all = id.iter().fold(String::new(), |mut text, byte| {
                write!(text, "%{byte:02X}").expect("writing to a String does not fail");
                text
            });
            parts.push(format!("id={all}"));
        }
        let file = |path: &Path| escape(path.as_os_str().as_encoded_bytes(), b"/");
        let mut query = Vec::new();
        query.extend(self.module.as_deref().map(|p| format!("module-path={}", file(p))));
        query.extend(self.pin_source.as_deref().map(|p| format!("pin-source=file:{}", file(p))));
        query.extend(self.mechanism.map(|kind| format!("mechanism={}", kind.name())));
        write!(f, "{SCHEME}{}", parts.join(";"))?;
        if query.is_empty() { Ok(()) } else { write!(f, "?{}", query.join("&")) }
    }
}

fn utf8(name: &str, value: Vec<u8>) -> Result<String, String> {
    String::from_utf8(value).map_err(|_| format!("the value of {name} is not UTF-8"))
}

fn escape(bytes: &[u8], also: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String does not fail");
        }
    }
    out
}

/// The URI of the secret key with a label in the only token of a module, its PIN in a file.
pub fn uri_of(label: &str, module: &Path, pin: &Path) -> String {
    let uri = TokenUri {
        place: Place {
            object: Some(label.to_owned()),
            kind: Some("secret-key".to_owned()),
            ..Place::default()
        },
        module: Some(module.to_owned()),
        pin_source: Some(pin.to_owned()),
        ..TokenUri::default()
    };
    uri.to_string()
}

/// Whether a URI needs a PIN that it does not say where to find.
pub fn needs_pin(uri: &str) -> bool {
    uri.starts_with(SCHEME) && TokenUri::parse(uri).is_ok_and(|uri| uri.pin_source.is_none())
}

/// The PIN for a token: from the file that its URI names, else the one given.
pub(super) fn pin(
    uri: &TokenUri,
    given: Option<&Zeroizing<String>>,
) -> Result<Option<Zeroizing<String>>, KeyError> {
    match (&uri.pin_source, given) {
        (Some(path), _) => {
            read_pin(path).map(Some).map_err(|why| KeyError::Denied(format!("{}: {why}", path.display())))
        }
        (None, Some(pin)) => {
            check_pin(pin).map_err(|why| KeyError::Denied(format!("{uri}: {why}")))?;
            Ok(Some(pin.clone()))
        }
        (None, None) => Ok(None),
    }
}

/// Whether a PIN can be one.
///
/// # Errors
/// It is empty, or too long for a helper.
pub fn check_pin(pin: &str) -> Result<(), String> {
    match pin.len() {
        0 => Err("the PIN is empty".into()),
        1..=LONGEST => Ok(()),
        len => Err(format!("the PIN has {len} bytes, at most {LONGEST} are taken")),
    }
}

/// The first line of a file that nobody else may read.
fn read_pin(path: &Path) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    /// A PIN, the end of its line, and a byte by which a longer one is seen to be.
    const MOST: u64 = LONGEST as u64 + 3;
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("open flags fit an int");
    let mut open = std::fs::OpenOptions::new();
    let file =
        open.read(true).custom_flags(flags).open(path).map_err(|e| format!("the PIN is not read: {e}"))?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_file() {
        return Err("the PIN is not read: it is no regular file".into());
    }
    if meta.mode() & 0o077 != 0 || (meta.uid() != me && meta.uid() != 0) {
        return Err(format!(
            "the PIN is not taken: others can read the file (mode {:04o}, owner {}): chmod 600 it",
            meta.mode() & 0o7777,
            meta.uid()
        ));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 4));
    file.take(MOST).read_to_end(&mut bytes).map_err(|e| format!("the PIN is not read: {e}"))?;
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| "the PIN is not UTF-8".to_owned())?;
    check_pin(text)?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What is read is written again in one spelling, whatever the order and the escapes.
    #[test]
    fn uris_have_one_spelling() {
        let text = "pkcs11:object=my%20key;token=hsm%3B1;id=%01%ff;type=secret-key?pin-source=file:/run/p%20n&module-path=/usr/lib/m.so";
        let uri = TokenUri::parse(text).unwrap();
        assert_eq!(
            (uri.place.token.as_deref(), uri.place.object.as_deref()),
            (Some("hsm;1"), Some("my key"))
        );
        assert_eq!(
            (uri.place.id.as_deref(), uri.pin_source.as_deref()),
            (Some(&[1, 255][..]), Some(Path::new("/run/p n")))
        );
        let once = uri.to_string();
        assert_eq!(
            once,
            "pkcs11:token=hsm%3B1;object=my%20key;type=secret-key;id=%01%FF?module-path=/usr/lib/m.so&pin-source=file:/run/p%20n"
        );
        assert_eq!(TokenUri::parse(&once).unwrap(), uri);
        let with = TokenUri { mechanism: Some(Kind::Gcm), ..uri };
        assert_eq!(TokenUri::parse(&with.to_string()).unwrap(), with);
    }

    /// Each slip is told, and a PIN in a URI is refused without being repeated.
    #[test]
    fn slips_are_told() {
        for (text, word) in [
            ("pkcs11:token=a?module-path=/m.so", "names no key"),
            ("pkcs11:object=a", "names no module"),
            ("pkcs11:object=a?module-path=m.so", "not absolute"),
            ("pkcs11:object=a;object=b?module-path=/m.so", "twice"),
            ("pkcs11:object?module-path=/m.so", "no value"),
            ("pkcs11:object=a;color=b?module-path=/m.so", "color"),
            ("pkcs11:object=a;type=cert?module-path=/m.so", "wraps no keys"),
            ("pkcs11:object=a;slot-id=x?module-path=/m.so", "slot id"),
            ("pkcs11:object=%ff?module-path=/m.so", "UTF-8"),
            ("pkcs11:object=a?module-path=/m.so&pin-source=|sh", "no file"),
            ("pkcs11:object=a?module-path=/m.so&mechanism=rot13", "aes-gcm"),
            ("pkcs11:object=a?module-path=/m.so&pin-value=hunter2", "does not belong"),
        ] {
            let error = TokenUri::parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("hunter2"), "{error}");
        }
    }

    /// A PIN file that others can read is not taken.
    #[test]
    fn a_pin_file_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        std::fs::write(&path, "user:secret\r\nmore").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_pin(&path).unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_pin(&path).unwrap().as_str(), "user:secret");
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(read_pin(&path).unwrap_err(), "the PIN is empty");
        for (len, fits) in [(LONGEST, true), (LONGEST + 1, false), (3 * LONGEST, false)] {
            for end in ["", "\n", "\r\n", "\nmore"] {
                std::fs::write(&path, "7".repeat(len) + end).unwrap();
                match read_pin(&path) {
                    Ok(pin) => assert!(fits && pin.len() == len, "{len} {end:?}"),
                    Err(why) => assert!(!fits && why.contains("at most 4096"), "{why}"),
                }
            }
        }
    }
}
