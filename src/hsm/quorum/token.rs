//! Tokens: what is signed, who has signed it, and for how long that holds. In memory only: a token ends with its login,
//! and a login ends with the process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Guard, Service};

/// How long a token lives (CloudHSM: ten minutes).
pub(super) const LIFE: Duration = Duration::from_secs(600);
/// Tokens of one appliance (CloudHSM: 1,024).
const MAX_TOKENS: usize = 1024;
/// Tokens of one user, so that no crypto user fills the appliance.
const MAX_OWN: usize = 32;

/// One token.
#[derive(Clone)]
pub(in super::super) struct Token {
    pub(super) app: u64,
    pub(super) username: String,
    pub(super) service: Service,
    /// The only key that it is good for.
    pub(super) key: Option<u64>,
    pub(super) until: Instant,
    /// What is signed.
    pub(super) data: Vec<u8>,
    /// By user; each was good when it came, and is looked at again when it is used.
    pub(super) signatures: BTreeMap<String, Vec<u8>>,
    /// An operation that needs it is under way. It stays where it is, so that it ends with its login all the same.
    pub(super) taken: bool,
}

impl Token {
    fn lives(&self, now: Instant) -> bool {
        now < self.until
    }

    /// How many approve: each user with a key of `keys` counts once, and each key once.
    pub(super) fn approvals(&self, keys: &BTreeMap<String, String>) -> u32 {
        let by = |(name, signature): (&String, &Vec<u8>)| {
            keys.get(name).filter(|key| signed(key, &self.data, signature))
        };
        let signers: BTreeSet<_> = self.signatures.iter().filter_map(by).collect();
        u32::try_from(signers.len()).unwrap_or(u32::MAX)
    }

    fn fits(&self, app: u64, username: &str, guard: &Guard) -> bool {
        let key = guard.key.as_ref().map(|k| k.handle);
        self.app == app
            && self.username == username
            && self.service == guard.service
            && self.key.is_none_or(|bound| Some(bound) == key)
    }
}

/// Whether a signature (PKCS#1 v1.5 with SHA-256) is by this key, which is DER (PKCS#1) in base64.
pub(super) fn signed(key: &str, data: &[u8], signature: &[u8]) -> bool {
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    BASE64.decode(key).is_ok_and(|der| {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).verify(data, signature).is_ok()
    })
}

/// All tokens of an appliance.
#[derive(Default)]
pub(in super::super) struct Tokens(Mutex<Vec<Token>>);

impl Tokens {
    /// A new token. It ends an older one of the same user and service, but for key services (CloudHSM: one active token).
    pub(super) fn add(&self, token: Token, now: Instant) -> Result<(), &'static str> {
        let mut all = self.0.lock();
        all.retain(|t| {
            t.lives(now)
                && (t.service.is_of_keys() || t.service != token.service || t.username != token.username)
        });
        if all.len() >= MAX_TOKENS {
            return Err("the HSM holds as many quorum tokens as it can; they expire within ten minutes");
        }
        if all.iter().filter(|t| t.username == token.username).count() >= MAX_OWN {
            return Err(
                "you have as many quorum tokens as one user can have: quorum token-sign delete --scope user",
            );
        }
        all.push(token);
        Ok(())
    }

    /// Looks at or changes the token with this data, where it lives and is this login's.
    pub(super) fn with<T>(
        &self,
        app: u64,
        username: &str,
        data: &[u8],
        now: Instant,
        change: impl FnOnce(&mut Token) -> T,
    ) -> Option<T> {
        let mut all = self.0.lock();
        let mine = |t: &&mut Token| t.app == app && t.username == username && t.data == data && t.lives(now);
        all.iter_mut().find(mine).map(change)
    }

    /// Takes a token that has the approvals that an operation needs.
    pub(super) fn take(
        &self,
        app: u64,
        username: &str,
        guard: &Guard,
        keys: &BTreeMap<String, String>,
        now: Instant,
    ) -> Option<Token> {
        let mut all = self.0.lock();
        let good = |t: &&mut Token| {
            t.lives(now) && t.fits(app, username, guard) && t.approvals(keys) >= guard.needed
        };
        let token = all.iter_mut().filter(|t| !t.taken).find(good)?;
        token.taken = true;
        Some(token.clone())
    }

    /// What [`Tokens::take`] took, for an operation that failed.
    pub(super) fn give_back(&self, token: &Token) {
        let mut all = self.0.lock();
        all.iter_mut().filter(|t| t.data == token.data).for_each(|t| t.taken = false);
    }

    /// The same for one that succeeded.
    pub(super) fn used(&self, token: &Token) {
        self.end(|t| t.data == token.data);
    }

    /// How many there are.
    pub(in super::super) fn count(&self) -> usize {
        let now = Instant::now();
        self.0.lock().iter().filter(|t| t.lives(now)).count()
    }

    /// Those that live.
    pub(super) fn list(&self, now: Instant) -> Vec<Token> {
        self.0.lock().iter().filter(|t| t.lives(now)).cloned().collect()
    }

    /// Ends tokens; says how many.
    pub(in super::super) fn end(&self, which: impl Fn(&Token) -> bool) -> usize {
        let mut all = self.0.lock();
        let before = all.len();
        all.retain(|t| !which(t));
        before - all.len()
    }

    /// Ends the tokens of an application's login.
    pub(in super::super) fn end_of(&self, app: u64) {
        self.end(|t| t.app == app);
    }
}

/// The file of a token, as CloudHSM CLI writes it.
#[derive(Serialize, Deserialize)]
pub(super) struct TokenFile {
    pub(super) version: String,
    /// What the appliance made: base64 of JSON that says what is approved.
    pub(super) approval_data: String,
    /// SHA-256 of it.
    pub(super) token: String,
    pub(super) signatures: Vec<Approval>,
}

/// One approval.
#[derive(Serialize, Deserialize)]
pub(super) struct Approval {
    pub(super) username: String,
    pub(super) signature: String,
}

/// The file of a registration.
#[derive(Serialize, Deserialize)]
pub(super) struct RegistrationFile {
    pub(super) version: String,
    pub(super) tokens: Vec<Registration>,
}

/// What a user signs to show that he has the key.
#[derive(Serialize, Deserialize)]
pub(super) struct Registration {
    pub(super) approval_data: String,
    pub(super) unsigned: String,
    pub(super) signed: String,
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};

    use super::*;

    struct Signer(RsaKeyPair);

    impl Signer {
        fn new() -> Self {
            Self(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
        }

        fn key(&self) -> String {
            BASE64.encode(self.0.public_key().as_ref())
        }

        fn sign(&self, data: &[u8]) -> Vec<u8> {
            let mut out = vec![0; self.0.public_modulus_len()];
            let random = aws_lc_rs::rand::SystemRandom::new();
            self.0.sign(&RSA_PKCS1_SHA256, &random, data, &mut out).unwrap();
            out
        }
    }

    fn token(username: &str, service: Service, now: Instant) -> Token {
        Token {
            app: 7,
            username: username.into(),
            service,
            key: None,
            until: now + LIFE,
            data: b"what is approved".to_vec(),
            signatures: BTreeMap::new(),
            taken: false,
        }
    }

    fn guard(service: Service, needed: u32) -> Guard {
        Guard { service, needed, key: None }
    }

    /// A user counts once, one key under two names counts once, a signature over something else, by another key, or of
    /// a user who is none (any more) counts not at all.
    #[test]
    fn approvals_are_of_distinct_users() {
        let now = Instant::now();
        let (ann, ben) = (Signer::new(), Signer::new());
        let mut token = token("ann", Service::User, now);
        let data = token.data.clone();
        let keys = |all: &[(&str, &Signer)]| -> BTreeMap<String, String> {
            all.iter().map(|(name, signer)| ((*name).to_owned(), signer.key())).collect()
        };
        let both = keys(&[("ann", &ann), ("ben", &ben)]);
        assert_eq!(token.approvals(&both), 0);
        token.signatures.insert("ann".into(), ann.sign(&data));
        assert_eq!(token.approvals(&both), 1);
        for bad in [ann.sign(&data), ben.sign(b"what is not"), vec![], vec![0; 256]] {
            token.signatures.insert("ben".into(), bad);
            assert_eq!(token.approvals(&both), 1);
        }
        token.signatures.insert("ben".into(), ben.sign(&data));
        assert_eq!(token.approvals(&both), 2);
        assert_eq!(token.approvals(&keys(&[("ann", &ann)])), 1, "ben is gone");
        assert_eq!(token.approvals(&keys(&[("ann", &ann), ("ben", &Signer::new())])), 1, "ben has a new key");
        token.signatures.insert("cat".into(), ann.sign(&data));
        let same = keys(&[("ann", &ann), ("cat", &ann)]);
        assert_eq!(token.approvals(&same), 1, "one key is one approver");
    }

    /// A token is taken once, by its login, for its service and its key, as long as it lives.
    #[test]
    fn a_token_is_good_for_one_operation_of_its_login() {
        let now = Instant::now();
        let signers = [Signer::new(), Signer::new()];
        let mut made = token("ann", Service::User, now);
        let mut keys = BTreeMap::new();
        for (name, signer) in ["ann", "ben"].iter().zip(&signers) {
            made.signatures.insert((*name).to_owned(), signer.sign(&made.data));
            keys.insert((*name).to_owned(), signer.key());
        }
        let tokens = Tokens::default();
        tokens.add(made, now).unwrap();
        let two = guard(Service::User, 2);
        assert!(tokens.take(8, "ann", &two, &keys, now).is_none(), "another login");
        assert!(tokens.take(7, "ben", &two, &keys, now).is_none(), "another user");
        assert!(tokens.take(7, "ann", &guard(Service::Quorum, 2), &keys, now).is_none(), "another service");
        assert!(tokens.take(7, "ann", &guard(Service::User, 3), &keys, now).is_none(), "too few");
        assert!(tokens.take(7, "ann", &two, &keys, now + LIFE).is_none(), "too late");
        let taken = tokens.take(7, "ann", &two, &keys, now).unwrap();
        assert!(tokens.take(7, "ann", &two, &keys, now).is_none(), "in use");
        tokens.give_back(&taken);
        let taken = tokens.take(7, "ann", &two, &keys, now + LIFE - Duration::from_secs(1)).unwrap();
        // It does not come back to a login that ended meanwhile.
        tokens.end_of(7);
        tokens.give_back(&taken);
        assert!(tokens.list(now).is_empty());
        let mut again = taken;
        again.taken = false;
        tokens.add(again, now).unwrap();
        tokens.used(&tokens.take(7, "ann", &two, &keys, now).unwrap());
        assert!(tokens.list(now).is_empty());
    }

    /// One token of a user and an admin's service, a bounded number for keys and of all; expired ones make room.
    #[test]
    fn the_number_of_tokens_is_bounded() {
        let now = Instant::now();
        let tokens = Tokens::default();
        (0..3).for_each(|_| tokens.add(token("ann", Service::User, now), now).unwrap());
        assert_eq!(tokens.list(now).len(), 1);
        (0..MAX_OWN - 1).for_each(|_| tokens.add(token("ann", Service::KeyUsage, now), now).unwrap());
        assert!(tokens.add(token("ann", Service::KeyUsage, now), now).is_err());
        let more = (0..MAX_TOKENS).filter(|i| {
            let name = format!("user{}", i / MAX_OWN);
            tokens.add(token(&name, Service::KeyUsage, now), now).is_ok()
        });
        assert_eq!(more.count(), MAX_TOKENS - MAX_OWN);
        assert!(tokens.add(token("ben", Service::User, now), now).is_err());
        let later = now + LIFE;
        tokens.add(token("ben", Service::User, later), later).unwrap();
        assert_eq!(tokens.list(later).len(), 1);
    }
}
