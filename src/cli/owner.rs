//! Root goes on as the owner of a server's folder: what is written there stays the server's, and nothing that lies there, such as
//! a link, can turn root's rights against the machine.

use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `key` is the setting that names the folder.
pub fn become_owner(key: &str, dir: &Path) -> Result<(), String> {
    let there = std::fs::metadata(dir).map_err(|e| format!("{key}: cannot read {}: {e}", dir.display()))?;
    if !geteuid().is_root() || there.uid() == 0 {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(there.uid()), Gid::from_raw(there.gid()));
    let outcome = setgroups(&[group]).and_then(|()| setgid(group)).and_then(|()| setuid(user));
    outcome.map_err(|e| format!("cannot go on as the owner of {}: {e}", dir.display()))
}
