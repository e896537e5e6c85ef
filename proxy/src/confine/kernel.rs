//! What the kernel of this machine can enforce. Tried, not read off a version: in a thread of its own, since both walls are put up
//! for one thread and those that it starts.

use std::io::ErrorKind;
use std::net::UdpSocket;

use landlock::{LandlockStatus, Ruleset, RulesetStatus};

use super::{Role, calls, files};

/// Does the list of system calls hold here? Err says why not.
///
/// # Errors
/// In words.
pub fn filter() -> Result<(), String> {
    let tried = std::thread::Builder::new().name("confined".to_owned()).spawn(|| {
        rustix::thread::set_no_new_privs(true).map_err(|error| format!("the kernel refuses no_new_privs ({error})"))?;
        calls::apply(Role::Gateway).map_err(|error| error.to_string())?;
        #[expect(clippy::disallowed_methods, reason = "it must fail, which is what is tried")]
        match UdpSocket::bind("127.0.0.1:0") {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            Err(error) => {
                Err(format!("a confined thread got another error for a new socket than that it may not ({error})"))
            }
            Ok(_) => Err("the filter of system calls is taken, but a confined thread can open a socket".to_owned()),
        }
    });
    let tried = tried.map_err(|error| format!("no thread to try it in ({error})"))?;
    tried.join().unwrap_or_else(|_| Err("the thread in which it was tried died".to_owned()))
}

/// What Landlock can do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landlock {
    /// The version of its interface that is used; 0: there is none.
    pub abi: u32,
    /// All rules that are asked for hold.
    pub complete: bool,
}

/// Which rules for files hold here.
///
/// # Errors
/// In words.
pub fn landlock() -> Result<Landlock, String> {
    let tried = std::thread::Builder::new().name("confined".to_owned()).spawn(|| {
        let tried =
            files::asked(Ruleset::default()).and_then(|rules| rules.create()).and_then(|rules| rules.restrict_self());
        let status = tried.map_err(|error| error.to_string())?;
        let abi = match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
            LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
        };
        Ok(Landlock { abi, complete: status.ruleset == RulesetStatus::FullyEnforced })
    });
    let tried = tried.map_err(|error| format!("no thread to try it in ({error})"))?;
    tried.join().unwrap_or_else(|_| Err("the thread in which it was tried died".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_leaves_this_thread_as_it_was() {
        filter().unwrap();
        landlock().unwrap();
        #[expect(clippy::disallowed_methods, reason = "it must not fail here")]
        let bound = UdpSocket::bind("127.0.0.1:0");
        bound.unwrap();
        std::fs::read("/etc/passwd").unwrap();
    }
}
