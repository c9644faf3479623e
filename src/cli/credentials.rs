//! With which API key a command signs: one of a config, one that is named, or that of `postern dev`.

use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Credentials {
    /// Take key and secret from this config.
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long, default_value = "devkey", conflicts_with = "config")]
    key: String,
    #[arg(long, default_value = "secret", conflicts_with = "config")]
    secret: String,
}

impl Credentials {
    /// API key = secret.
    pub fn keys(&self) -> Result<BTreeMap<String, String>, String> {
        match &self.config {
            Some(path) => Ok(super::run::read_config(path)?.keys),
            None => Ok(BTreeMap::from([(self.key.clone(), self.secret.clone())])),
        }
    }
}
