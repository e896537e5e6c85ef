//! Another user for a process that was started by root.

use std::io;

use anyhow::{Context as _, ensure};
use rustix::process::{Gid, Uid};

/// Where users are named. Those of a directory on the network are not asked for.
const USERS: &str = "/etc/passwd";
const MAX_USERS: usize = 1 << 20;

/// A user of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// The user of that name.
    ///
    /// # Errors
    /// There is none; or it is root, which would change nothing.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let text = crate::config::read::bounded(USERS.as_ref(), MAX_USERS).with_context(|| USERS.to_owned())?;
        let user = find(&String::from_utf8_lossy(&text), name)
            .with_context(|| format!("`engine.user`: {USERS} has no user `{name}`"))?;
        ensure!(user.uid != 0 && user.gid != 0, "`engine.user`: `{name}` has the rights of root");
        Ok(user)
    }

    /// This process is that user from now on, and in no group but its own. To be called before any thread is started.
    ///
    /// # Errors
    /// This process may not: only root may.
    pub fn become_it(self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::thread::set_thread_groups(&[gid])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    }
}

/// passwd(5): `name:password:uid:gid:…`.
fn find(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        is_it.then_some(User { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\n# broken\npostern-engine2:x:9:9::/:\npostern-engine:x:991:990::/:/nologin\n";
        assert_eq!(find(users, "postern-engine"), Some(User { uid: 991, gid: 990 }));
        assert_eq!((find(users, "postern"), find(users, "")), (None, None));
        assert!(User::named("root").unwrap_err().to_string().contains("rights of root"));
        assert!(User::named("no-such-user").unwrap_err().to_string().contains("has no user"));
    }
}
