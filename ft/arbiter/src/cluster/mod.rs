//! An etcd cluster that keeps the terms, over TLS, for any number of arbiters in front of it.
//!
//! The program is built with it by the feature `etcd`: etcd's client library wants `protoc` when it is built.

#[cfg(feature = "etcd")]
mod client;
#[cfg(feature = "etcd")]
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::keys::check_private;
use crate::ledger::Ledger;

/// How long machines wait, by default.
pub const USUAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Members of a cluster at most.
const MAX_MEMBERS: usize = 16;

/// Where a cluster is, and by what we and it know each other.
#[derive(Debug, Clone)]
pub struct Access {
    /// Its members, such as `https://10.1.0.11:2379`.
    pub members: Vec<String>,
    /// Whoever signed the members' certificates, in PEM.
    pub ca: PathBuf,
    /// Our certificate, in PEM.
    pub certificate: PathBuf,
    /// The private key of our certificate, in PEM; for its owner alone.
    pub key: PathBuf,
    /// How long machines wait for an answer: their option `arbiter-timeout`.
    pub timeout: Duration,
}

/// What a handshake needs, in PEM.
#[cfg_attr(not(feature = "etcd"), allow(dead_code, reason = "only checked then"))]
struct Papers {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Access {
    /// What can be refused without asking the cluster.
    fn papers(&self) -> Result<Papers> {
        let count = self.members.len();
        ensure!((1..=MAX_MEMBERS).contains(&count), "{count} members of an etcd cluster: 1 to {MAX_MEMBERS} are known");
        for member in &self.members {
            let host = member.strip_prefix("https://").with_context(|| {
                format!(
                    "`{member}` is no https://HOST:PORT: over anything else, whoever stands between gives terms away"
                )
            })?;
            ensure!(!host.is_empty(), "`{member}` names no host");
        }
        check_private(&self.key)?;
        let read = |path: &PathBuf, what: &str| {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let begins = format!("-----BEGIN {what}");
            let is = bytes.windows(begins.len()).any(|window| window == begins.as_bytes());
            ensure!(is || what.is_empty(), "{} holds no {}, as PEM", path.display(), what.to_lowercase());
            Ok(bytes)
        };
        let [ca, certificate] = [&self.ca, &self.certificate].map(|path| read(path, "CERTIFICATE"));
        // A private key has one of several names.
        Ok(Papers { ca: ca?, certificate: certificate?, key: read(&self.key, "")? })
    }

    /// The terms in the cluster, whether it answers now or later.
    ///
    /// # Errors
    /// A member that is not asked over TLS, files that are not what they should be, or a program that was built without etcd's
    /// client.
    pub fn open(&self) -> Result<Box<dyn Ledger>> {
        let papers = self.papers()?;
        #[cfg(feature = "etcd")]
        {
            let cluster = client::Cluster::new(self, papers)?;
            cluster.watch();
            Ok(Box::new(cluster))
        }
        #[cfg(not(feature = "etcd"))]
        return absent(papers).map(|never| match never {});
    }

    /// All keys and values of terms in the cluster.
    ///
    /// # Errors
    /// As [`open`](Self::open), or when no member answers.
    pub fn terms(&self) -> Result<Vec<(String, String)>> {
        let papers = self.papers()?;
        #[cfg(feature = "etcd")]
        return client::Cluster::new(self, papers)?.terms();
        #[cfg(not(feature = "etcd"))]
        return absent(papers).map(|never| match never {});
    }
}

#[cfg(not(feature = "etcd"))]
fn absent(_: Papers) -> Result<std::convert::Infallible> {
    anyhow::bail!(
        "this program was built without etcd's client: `cargo build --release -p pollux-arbiter --features etcd` makes one \
         with it, and needs protoc (Debian: protobuf-compiler)"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_no_way_to_a_cluster_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let [ca, certificate, key] = ["ca", "certificate", "key"].map(|name| directory.path().join(name));
        let pem = "-----BEGIN CERTIFICATE-----\n";
        for (path, text) in [(&ca, pem), (&certificate, pem), (&key, "-----BEGIN PRIVATE KEY-----\n")] {
            std::fs::write(path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let good =
            Access { members: vec!["https://127.0.0.1:2379".into()], ca, certificate, key, timeout: USUAL_TIMEOUT };
        assert!(good.papers().is_ok());
        let refusal = |access: &Access| format!("{:#}", access.papers().err().unwrap());
        for member in ["http://127.0.0.1:2379", "127.0.0.1:2379", "https://", ""] {
            let access = Access { members: vec![member.into()], ..good.clone() };
            assert!(refusal(&access).contains(member), "{member}");
        }
        assert!(refusal(&Access { members: Vec::new(), ..good.clone() }).starts_with("0 members"));
        assert!(refusal(&Access { ca: good.key.clone(), ..good.clone() }).contains("no certificate"));
        let absent = Access { certificate: directory.path().join("absent"), ..good.clone() };
        assert!(refusal(&absent).contains("cannot read"));
        std::fs::set_permissions(&good.key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refusal(&good).contains("others than its owner"));
    }
}
