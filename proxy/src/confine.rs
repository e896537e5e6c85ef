//! What a process can still do when it is offline, given by the kernel and for as long as it lives.
//!
//! Two roles are confined: the engine, always, and a gateway that is offline. Each makes its sockets first, then calls
//! [`confine`], and only then starts threads: the kernel hands the confinement on to threads that are started later, and none
//! that runs already could be missed. What is allowed is a list ([`calls`]); whatever a later kernel adds is refused.
//!
//! | wall | what it does |
//! | --- | --- |
//! | seccomp | no new socket, no connection, no datagram, no descriptor from elsewhere, no other program, no look into other processes |
//! | Landlock | files: only what the role reads and writes; no signals to other processes, no abstract UNIX sockets |
//! | audit | what was open before and is no listener or line to the supervisor's processes: refused in words |
//!
//! Landlock is the second wall. A kernel without it is said, and `postern doctor` says what is missing; without seccomp
//! nothing starts.

pub mod calls;
pub mod descriptors;
pub mod files;
pub mod kernel;
pub mod user;

use std::os::fd::BorrowedFd;

pub use files::Files;
use landlock::RulesetStatus;

/// What a confined process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The model on this machine. Answers on one UNIX socket that it had before.
    Engine,
    /// A model for gateways on other machines. Accepts connections, makes none.
    Node,
    /// A gateway that is offline. Accepts connections, makes none.
    Gateway,
}

impl Role {
    /// Its name in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Node => "node",
            Self::Gateway => "gateway",
        }
    }
}

/// Why a process is not confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// It was called too late.
    #[error("{0} threads run already, and what they do would not be confined")]
    Threads(usize),
    /// The kernel refuses to promise that no other program gets more rights.
    #[error("the kernel refuses no_new_privs: {0}")]
    NoNewPrivileges(std::io::Error),
    /// The list of calls is not taken.
    #[error("the kernel takes no filter of system calls (seccomp): {0}; `postern doctor` says what it can do")]
    Filter(String),
    /// Landlock is there, and does not take the rules.
    #[error("the kernel does not take the rules for files (Landlock): {0}")]
    Files(#[from] landlock::RulesetError),
    /// A descriptor is open that could lead outside.
    #[error(
        "descriptor {number} is {what}, and must not be there when a process is offline; close it in whatever starts Postern"
    )]
    Descriptor {
        /// Its number.
        number: String,
        /// What it is.
        what: String,
    },
    /// What is open cannot be seen.
    #[error("/proc/self cannot be read, so nobody can say what is open: {0}")]
    Proc(std::io::Error),
}

/// What is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confined {
    /// Files are confined too.
    pub files: bool,
    /// As far as this kernel knows the rules, all of them hold.
    pub complete: bool,
}

/// Confines this process for as long as it lives. `sockets` are those that it keeps: listeners, and UNIX sockets to the
/// supervisor's own processes. To be called before any thread is started; it cannot be undone.
///
/// # Errors
/// See [`ConfineError`]: the process must end.
pub fn confine(role: Role, files: &Files, sockets: &[BorrowedFd<'_>]) -> Result<Confined, ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(ConfineError::Proc)?.count();
    if threads != 1 {
        return Err(ConfineError::Threads(threads));
    }
    let kept = descriptors::Kept::of(sockets)?;
    rustix::thread::set_no_new_privs(true).map_err(|error| ConfineError::NoNewPrivileges(error.into()))?;
    let restricted = files::restrict(files)?;
    calls::apply(role)?;
    descriptors::audit(&kept)?;
    let confined = Confined {
        files: restricted != RulesetStatus::NotEnforced,
        complete: restricted == RulesetStatus::FullyEnforced,
    };
    let (role, files, complete) = (role.as_str(), confined.files, confined.complete);
    if confined.files {
        tracing::info!(role, files, complete, "confined: this process can reach nothing from now on");
    } else {
        tracing::warn!(
            role,
            "confined, but for files: this kernel has no Landlock; `postern doctor` says what that means"
        );
    }
    Ok(confined)
}
