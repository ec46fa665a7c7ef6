//! `-o` lists and the call of mount(8): `mount -t fuse.envelopefs VAULT MOUNTPOINT -o ...`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::args::MountArgs;
use super::error::CliError;
use super::secrets::KeyArgs;
use crate::crypto::kernel::Kind;
use crate::fuse::Transport;

/// What a mount shall be: switches and options brought together.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mount option")]
pub(super) struct MountOptions {
    pub(super) foreground: bool,
    pub(super) log_file: Option<PathBuf>,
    pub(super) no_sandbox: bool,
    pub(super) read_only: bool,
    pub(super) no_atime: bool,
    pub(super) allow_other: bool,
    pub(super) suid: bool,
    pub(super) dev: bool,
    pub(super) no_exec: bool,
    pub(super) shared: bool,
    pub(super) nonempty: bool,
    pub(super) no_journal: bool,
    pub(super) ciphertext: bool,
    pub(super) kernel: Option<Kind>,
    pub(super) direct_lower: bool,
    pub(super) transport: Transport,
    /// Seconds that an unwrapped data key is kept.
    pub(super) key_cache: Option<u64>,
    /// Files of one listed directory whose keys are unwrapped ahead.
    pub(super) prefetch_keys: usize,
    pub(super) key: KeyArgs,
}

impl MountOptions {
    /// Switches first, then the list, in order: the last word counts.
    pub(super) fn new(args: &MountArgs) -> Result<Self, CliError> {
        let mut options = Self {
            foreground: args.foreground,
            log_file: args.log_file.clone(),
            no_sandbox: args.no_sandbox,
            read_only: args.read_only,
            allow_other: args.allow_other,
            shared: args.shared,
            nonempty: args.nonempty,
            no_journal: args.no_journal,
            ciphertext: args.view == "ciphertext",
            transport: args.transport.parse().map_err(CliError::Usage)?,
            key: args.key.clone(),
            ..Self::default()
        };
        if let Some(name) = &args.kernel {
            options.kernel = Some(kernel(name)?);
        }
        for word in &args.options {
            options.apply(word)?;
        }
        Ok(options)
    }

    /// With paths that stay true when the daemon leaves this working directory.
    pub(super) fn absolute(mut self) -> std::io::Result<Self> {
        let key = &mut self.key;
        let hsm = key.embedded_hsm.as_mut().and_then(Option::as_mut);
        for path in [self.log_file.as_mut(), key.kms_dir.as_mut(), hsm].into_iter().flatten() {
            *path = std::path::absolute(&path)?;
        }
        Ok(self)
    }

    fn apply(&mut self, word: &str) -> Result<(), CliError> {
        match word.split_once('=').unwrap_or((word, "")) {
            ("ro", _) => self.read_only = true,
            ("rw", _) => self.read_only = false,
            ("noatime", _) => self.no_atime = true,
            ("atime" | "relatime", _) => self.no_atime = false,
            ("suid", _) => self.suid = true,
            ("nosuid", _) => self.suid = false,
            ("dev", _) => self.dev = true,
            ("nodev", _) => self.dev = false,
            ("exec", _) => self.no_exec = false,
            ("noexec", _) => self.no_exec = true,
            ("allow_other", _) => self.allow_other = true,
            ("shared", _) => self.shared = true,
            ("nonempty", _) => self.nonempty = true,
            ("no-journal", _) => self.no_journal = true,
            ("journal", _) => self.no_journal = false,
            ("kernel", name) => self.kernel = Some(kernel(name)?),
            ("direct-lower", _) => self.direct_lower = true,
            ("transport", way) => self.transport = way.parse().map_err(CliError::Usage)?,
            ("view", "ciphertext") => self.ciphertext = true,
            ("view", "plaintext") => self.ciphertext = false,
            ("foreground", _) => self.foreground = true,
            ("no-sandbox", _) => self.no_sandbox = true,
            ("kms-dir", dir) if !dir.is_empty() => self.key.kms_dir = Some(dir.into()),
            ("embedded-hsm", dir) => {
                self.key.embedded_hsm = Some(Some(dir).filter(|d| !d.is_empty()).map(PathBuf::from))
            }
            ("passphrase-file", file) if !file.is_empty() => self.key.passphrase_file = Some(file.into()),
            ("key_cache" | "key-cache", seconds) => self.key_cache = Some(key_cache(seconds)?),
            ("prefetch-keys", count) => self.prefetch_keys = prefetch_keys(count)?,
            ("log-file", file) if !file.is_empty() => self.log_file = Some(file.into()),
            // What mount(8) and fstab carry for others, and what holds here anyway.
            ("" | "defaults" | "auto" | "noauto" | "user" | "users" | "nouser" | "owner" | "group", _) => {}
            ("_netdev" | "nofail" | "async" | "default_permissions" | "comment", _) => {}
            (word, _) if word.starts_with("x-") || word.starts_with("X-") => {}
            _ => return Err(CliError::Usage(format!("mount option {word:?} is not known"))),
        }
        Ok(())
    }
}

fn kernel(name: &str) -> Result<Kind, CliError> {
    name.parse().map_err(|e: crate::crypto::kernel::KernelError| CliError::Usage(e.to_string()))
}

/// A day at most: a key that was taken away should not open files for longer.
fn key_cache(seconds: &str) -> Result<u64, CliError> {
    seconds
        .parse()
        .ok()
        .filter(|s| *s <= 86400)
        .ok_or_else(|| CliError::Usage(format!("key_cache={seconds}: seconds from 0 to 86400 are expected")))
}

/// Half of the keys that are kept at most: those of open files should not be pushed out.
fn prefetch_keys(count: &str) -> Result<usize, CliError> {
    count
        .parse()
        .ok()
        .filter(|n| *n <= 4096)
        .ok_or_else(|| CliError::Usage(format!("prefetch-keys={count}: a number from 0 to 4096 is expected")))
}

/// mount.fuse(8) calls `envelopefs VAULT MOUNTPOINT -o ...`: a first argument that is a path means `mount`.
pub(super) fn rewrite(mut argv: Vec<OsString>) -> Vec<OsString> {
    let is_path = |first: &OsString| first.as_encoded_bytes().contains(&b'/');
    if argv.len() > 2 && argv.get(1).is_some_and(is_path) {
        argv.insert(1, OsStr::new("mount").to_owned());
    }
    argv
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<MountOptions, CliError> {
        let mut options = MountOptions::default();
        words.iter().try_for_each(|word| options.apply(word))?;
        Ok(options)
    }

    /// A line of fstab is understood: what concerns us is taken, what concerns others is passed over.
    #[test]
    fn an_fstab_line_is_understood() {
        let words =
            ["rw", "noatime", "_netdev", "x-systemd.automount", "kms-dir=/etc/kms", "allow_other", "nofail"];
        let options = options(&words).expect("all known");
        assert!(options.no_atime && options.allow_other && !options.read_only);
        assert_eq!(options.key.kms_dir, Some("/etc/kms".into()));
    }

    /// The last of two contrary words counts, as in mount(8).
    #[test]
    fn the_last_word_counts() {
        assert!(!options(&["ro", "rw"]).expect("known").read_only);
        assert!(options(&["suid"]).expect("known").suid);
        assert!(!options(&["suid", "nosuid"]).expect("known").suid);
    }

    /// A misspelt option is refused: `allow_othr` must not quietly mount something else than was asked for.
    #[test]
    fn an_unknown_word_is_refused() {
        assert!(options(&["allow_othr"]).is_err());
        assert!(options(&["kms-dir="]).is_err());
        assert!(options(&["kernel=vaes"]).is_err());
        assert_eq!(options(&["kernel=portable"]).expect("known").kernel, Some(Kind::Portable));
        assert!(options(&["transport=carrier"]).is_err());
        for bad in ["key_cache", "key_cache=", "key_cache=-1", "key_cache=1h", "key_cache=86401"] {
            assert!(options(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(options(&["key_cache=0"]).expect("known").key_cache, Some(0));
        for bad in ["prefetch-keys", "prefetch-keys=-1", "prefetch-keys=all", "prefetch-keys=4097"] {
            assert!(options(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(options(&["prefetch-keys=4096"]).expect("known").prefetch_keys, 4096);
    }

    /// The call of mount.fuse(8) becomes `mount`; a real subcommand stays.
    #[test]
    fn a_path_first_means_mount() {
        let argv = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            rewrite(argv(&["e", "/v", "/m", "-o", "ro"])),
            argv(&["e", "mount", "/v", "/m", "-o", "ro"])
        );
        assert_eq!(rewrite(argv(&["e", "info", "/v"])), argv(&["e", "info", "/v"]));
        assert_eq!(rewrite(argv(&["e"])), argv(&["e"]));
    }
}
