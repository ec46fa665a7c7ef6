//! The seed file: keys, materials, aliases and principals with fixed names, for repeatable tests.
//!
//! ```toml
//! [[principal]]
//! name = "tester"
//! account = "123456789012"
//! access-key = "FOOBARKEY"
//! secret = "FOOBARSECRET"
//!
//! [[key]]
//! id = "1234abcd-12ab-34cd-56ef-1234567890ab"
//! account = "123456789012"
//! region = "us-east-1"
//! aliases = ["alias/testing"]
//! materials = ["<64 hex digits>"]     # the last one is current; none: random
//! ```
//! What is there already stays as it is, so the same seed can be given at every start.

use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::arn::{self, HOME_ACCOUNT, HOME_REGION, Scope};
use super::engine::Engine;
use super::error::KmsError;
use super::keys::{blank, insert, write_alias};
use super::principals::NewPrincipal;
use super::records::{KeyRecord, MaterialRef};
use super::spec::{KeySpec, KeyUsage, RotationKind};
use super::table::{ALIASES, KEYS, MATERIALS, View, Writer};
use super::{hex, pk};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seed {
    #[serde(default)]
    principal: Vec<SeedPrincipal>,
    #[serde(default)]
    key: Vec<SeedKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SeedPrincipal {
    name: String,
    account: Option<String>,
    access_key: Option<String>,
    secret: Option<String>,
    #[serde(default)]
    policies: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SeedKey {
    id: String,
    account: Option<String>,
    region: Option<String>,
    spec: Option<String>,
    usage: Option<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    materials: Vec<String>,
    policy: Option<String>,
    #[serde(default)]
    tags: std::collections::BTreeMap<String, String>,
}

fn bad(why: impl std::fmt::Display) -> KmsError {
    KmsError::Validation(format!("the seed file: {why}"))
}

impl Engine {
    /// Makes what the seed names and the store has not got.
    pub fn seed(&self, text: &str) -> Result<(), KmsError> {
        let seed: Seed = toml::from_str(text).map_err(|e| bad(e.message()))?;
        for p in seed.principal {
            let known = self.list_principals()?;
            let account = p.account.as_deref().unwrap_or(HOME_ACCOUNT);
            if known.iter().any(|k| k.name == p.name && k.account == account) {
                continue;
            }
            self.create_principal(NewPrincipal {
                boundary: None,
                name: p.name,
                account: p.account,
                policies: p.policies,
                access_key: p.access_key,
                secret: p.secret.map(Zeroizing::new),
            })?;
        }
        self.index()?;
        for key in seed.key {
            self.seed_key(key)?;
        }
        Ok(())
    }

    fn seed_key(&self, key: SeedKey) -> Result<(), KmsError> {
        let scope = Scope {
            account: key.account.unwrap_or_else(|| HOME_ACCOUNT.into()),
            region: key.region.unwrap_or_else(|| HOME_REGION.into()),
        };
        if !arn::is_key_id(&key.id) || arn::is_mrk(&key.id) {
            return Err(bad(format_args!("key id {} is no UUID in lower case", key.id)));
        }
        let spec = key.spec.as_deref().map_or(Some(KeySpec::Symmetric), KeySpec::from_name);
        let spec = spec.ok_or_else(|| bad("unknown key spec"))?;
        let usage = match key.usage.as_deref() {
            Some(name) => KeyUsage::from_name(name),
            None => spec.usages().first().copied(),
        };
        let usage = usage
            .filter(|u| spec.usages().contains(u))
            .ok_or_else(|| bad("the usage does not fit the spec"))?;
        let now = self.now();
        let mut record = blank(scope, key.id, now);
        (record.spec, record.usage, record.description) = (spec, usage, key.description);
        (record.policy, record.tags) = (key.policy, key.tags);
        let materials = seed_materials(spec, &record.id, &key.materials)?;
        self.store.write(|w| {
            if w.get::<KeyRecord>(KEYS, &record.slot())?.is_none() {
                for (at, (id, bytes)) in materials.iter().enumerate() {
                    w.put_bytes(MATERIALS, id, bytes)?;
                    let rotated = (at > 0).then_some(RotationKind::OnDemand);
                    record.materials.push(MaterialRef {
                        id: id.clone(),
                        created_ms: now,
                        rotated,
                        import: None,
                    });
                }
                insert(w, &record)?;
            }
            key.aliases.iter().try_for_each(|alias| seed_alias(w, &record, alias, now))
        })
    }
}

fn seed_alias(w: &Writer<'_>, record: &KeyRecord, alias: &str, now: u64) -> Result<(), super::store::Fault> {
    arn::check_alias(alias)?;
    if w.bytes(ALIASES, &record.scope.alias_slot(alias))?.is_some() {
        return Ok(());
    }
    write_alias(w, &record.scope, alias, &record.slot(), now)
}

type Seeded = (String, Zeroizing<Vec<u8>>);

/// Materials with ids that depend on key and position only, so that a ciphertext from one run opens in the next.
fn seed_materials(spec: KeySpec, id: &str, given: &[String]) -> Result<Vec<Seeded>, KmsError> {
    let fresh = || match spec.secret_len() {
        Some(len) => {
            let mut bytes = Zeroizing::new(vec![0; len]);
            crate::crypto::random::fill(&mut bytes);
            Ok(bytes)
        }
        None => pk::generate(spec).map_err(|_| bad("the crypto library made no key")),
    };
    let mut all = Vec::new();
    if given.is_empty() {
        all.push(fresh()?);
    }
    for text in given {
        let bytes = hex::decode(&text.to_ascii_lowercase()).map(Zeroizing::new);
        let bytes = bytes.ok_or_else(|| bad("a material is not hexadecimal"))?;
        let fits =
            spec.secret_len().map_or_else(|| pk::public(spec, &bytes).is_ok(), |len| len == bytes.len());
        if !fits {
            return Err(bad(format_args!("a material of key {id} does not fit its spec")));
        }
        all.push(bytes);
    }
    if all.len() > 1 && spec != KeySpec::Symmetric {
        return Err(bad("only a symmetric key has several materials"));
    }
    let name = |at: usize| hex::encode(&Sha256::digest(format!("seed {id} {at}").as_bytes()));
    Ok(all.into_iter().enumerate().map(|(at, bytes)| (name(at), bytes)).collect())
}
