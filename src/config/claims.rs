//! `[claims]`: the store in which balancers agree where a room goes before one of them sends it there.

use std::time::Duration;

use redis::IntoConnectionInfo;

use super::read;
use super::section::Section;
use super::types::Secret;

/// `[claims]`. Without a `url` there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimsConfig {
    /// Where the Redis is. A secret, since it may hold a password. None if `backend` is `none`.
    pub url: Option<Secret>,
    /// What every key begins with.
    pub prefix: String,
    /// How long a claim holds that is not renewed.
    pub lease: Duration,
    /// How long Redis may take to answer.
    pub timeout: Duration,
}

impl Default for ClaimsConfig {
    fn default() -> Self {
        Self { url: None, prefix: "usher:".into(), lease: Duration::from_secs(15), timeout: Duration::from_millis(100) }
    }
}

/// Reads `[claims]`. No message shows the `url`.
pub(super) fn read(mut section: Section<'_>) -> ClaimsConfig {
    let mut claims = ClaimsConfig::default();
    let redis = section.optional("backend", |node| match read::text(node)?.as_str() {
        "redis" => Ok(true),
        "none" => Ok(false),
        other => Err(format!("{:?} is no backend; write \"redis\" or \"none\"", read::cut(other))),
    });
    let url = section.optional("url", |node| {
        let url = read::secret(node)?;
        check(&url).map(|()| url)
    });
    section.read(&mut claims.prefix, "prefix", |node| {
        let prefix = read::word(node)?;
        if prefix.len() <= 64 { Ok(prefix) } else { Err("is longer than 64 bytes; write a shorter one".into()) }
    });
    section.read(&mut claims.lease, "lease", read::duration(Duration::from_secs(3)..=Duration::from_secs(3600)));
    section.read(&mut claims.timeout, "timeout", read::duration(Duration::from_millis(5)..=Duration::from_secs(1)));
    let has_url = section.has("url");
    match redis {
        Some(true) if !has_url => section.error("url", "missing: the backend needs it; write \"redis://host:6379\""),
        Some(true) => claims.url = url,
        Some(false) | None if has_url => section.warn("url", "without backend = \"redis\" nothing is claimed"),
        Some(false) | None => {}
    }
    section.finish();
    claims
}

fn check(url: &Secret) -> Result<(), String> {
    let text = url.expose();
    if ["rediss:", "valkeys:"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err("TLS is not built in; write \"redis://host:6379\", through a tunnel if need be".into());
    }
    match text.into_connection_info() {
        Ok(_) => Ok(()),
        Err(_) => Err("is no address of a Redis; write \"redis://[user:password@]host[:port][/db]\" or \
                       \"unix:///path/of/socket\""
            .into()),
    }
}
