//! `postern doctor`: what this machine can enforce, tried where it can be tried.

use std::path::Path;

use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
use serde::Serialize;

use crate::config::read::bounded;
use crate::confine::kernel;

/// Bytes of a file of /proc that is read.
const MAX_SETTING: usize = 4096;

/// How it is with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is there.
    Good,
    /// It is not, and something is weaker for it.
    Weaker,
    /// It is not, and something does not start for it.
    Missing,
    /// To be known.
    Note,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What that means for Postern.
    pub means: &'static str,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing is missing without which something does not start.
    pub good: bool,
    /// Each thing.
    pub findings: Vec<Finding>,
}

impl Report {
    fn of(findings: Vec<Finding>) -> Self {
        Self { good: findings.iter().all(|finding| finding.state != State::Missing), findings }
    }

    /// For people.
    #[must_use]
    pub fn in_lines(&self) -> String {
        let lines = self.findings.iter().map(|Finding { name, state, found, means }| {
            let state = match state {
                State::Good => "good   ",
                State::Weaker => "weaker ",
                State::Missing => "missing",
                State::Note => "note   ",
            };
            format!("{state}  {name}: {found}\n         {means}\n")
        });
        let verdict = if self.good {
            "The engine and a gateway that is offline can be confined here."
        } else {
            "The engine, and a gateway with `offline: true`, do not start here."
        };
        lines.chain([format!("{verdict}\n")]).collect()
    }
}

/// Looks at this machine. Changes nothing that outlives this process.
#[must_use]
pub fn look() -> Report {
    Report::of(vec![
        filter(kernel::filter()),
        landlock(kernel::landlock()),
        proc(),
        dumpable(),
        namespaces(),
        io_uring(),
        users(),
    ])
}

fn filter(tried: Result<(), String>) -> Finding {
    let (state, found, means) = match tried {
        Ok(()) => (
            State::Good,
            "a confined thread can open no socket".to_owned(),
            "The wall: only listed system calls are possible for the engine, and for a gateway that is offline.",
        ),
        Err(why) => (
            State::Missing,
            why,
            "Without it nothing is confined, so the engine and a gateway that is offline do not start. In a container, its runtime has to allow `seccomp`.",
        ),
    };
    Finding { name: "system calls (seccomp, no_new_privs)", state, found, means }
}

fn landlock(tried: Result<kernel::Landlock, String>) -> Finding {
    const NAME: &str = "files (Landlock)";
    let weaker = |found, means| Finding { name: NAME, state: State::Weaker, found, means };
    match tried {
        Ok(kernel::Landlock { abi: 0, .. }) => weaker(
            "not in this kernel, or not switched on (`lsm=` at boot)".to_owned(),
            "Confined processes cannot leave the machine all the same, but may open every file that their user may.",
        ),
        Ok(kernel::Landlock { abi, complete: false }) => weaker(
            format!("ABI {abi}, older than ABI 6"),
            "Files are confined as far as this kernel can. Before ABI 5 devices, before ABI 6 signals and abstract UNIX sockets, are held by the list of system calls alone.",
        ),
        Ok(kernel::Landlock { abi, complete: true }) => Finding {
            name: NAME,
            state: State::Good,
            found: format!("ABI {abi}"),
            means: "The second wall: confined processes open only what they are for.",
        },
        Err(why) => weaker(
            why,
            "The kernel has it, and something refuses it: a container's runtime, perhaps. A confined process does not start then.",
        ),
    }
}

/// What is open is read there when a process is confined.
fn proc() -> Finding {
    let (state, found) = match std::fs::read_dir("/proc/self/fd") {
        Ok(_) => (State::Good, "/proc is there".to_owned()),
        Err(error) => (State::Missing, format!("/proc/self/fd: {error}")),
    };
    Finding {
        name: "descriptors (/proc)",
        state,
        found,
        means: "Before a process goes on as confined, everything that is open in it is looked at.",
    }
}

fn dumpable() -> Finding {
    let set = set_dumpable_behavior(DumpableBehavior::NotDumpable).and_then(|()| dumpable_behavior());
    let state = if set == Ok(DumpableBehavior::NotDumpable) { State::Good } else { State::Weaker };
    let found = match state {
        State::Good => "a process can take itself out".to_owned(),
        _ => "a process cannot take itself out".to_owned(),
    };
    Finding {
        name: "core files and looks into memory",
        state,
        found,
        means: "Gateway and engine are in no core file, and other processes of their user cannot attach to them.",
    }
}

/// Confinement does not need them; the units for systemd do.
fn namespaces() -> Finding {
    let network = setting("/proc/sys/user/max_net_namespaces");
    let there = Path::new("/proc/self/ns/net").exists() && network.as_deref() != Some("0");
    let (state, found) = if there {
        (State::Good, "they can be made".to_owned())
    } else {
        (State::Weaker, "there are none, or `user.max_net_namespaces` is 0".to_owned())
    };
    Finding {
        name: "network namespaces",
        state,
        found,
        means: "`PrivateNetwork=yes` of deploy/systemd takes the network away from an offline instance as a whole; what confines it is not this.",
    }
}

fn io_uring() -> Finding {
    let found = match setting("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("2") => "switched off".to_owned(),
        Some(_) => "there".to_owned(),
        None => "this kernel does not say".to_owned(),
    };
    Finding {
        name: "io_uring",
        state: State::Note,
        found,
        means: "Confined processes have no way to it, whether it is there or not.",
    }
}

fn users() -> Finding {
    let root = rustix::process::geteuid().is_root();
    let found = if root { "this is root" } else { "this is not root" }.to_owned();
    Finding {
        name: "a user of its own for the engine",
        state: State::Note,
        found,
        means: "`engine.user` is for a `postern run` that root starts; else gateway and engine are one user, and what keeps them apart is their confinement.",
    }
}

fn setting(path: &str) -> Option<String> {
    let bytes = bounded(path.as_ref(), MAX_SETTING).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_keeps_something_from_starting_is_no_good() {
        let old = kernel::Landlock { abi: 1, complete: false };
        for (tried, abi, good) in [
            (Ok(()), old, true),
            (Ok(()), kernel::Landlock { abi: 0, complete: false }, true),
            (Err("a reason".to_owned()), kernel::Landlock { abi: 6, complete: true }, false),
        ] {
            let report = Report::of(vec![filter(tried.clone()), landlock(Ok(abi))]);
            assert_eq!(report.good, good, "{report:?}");
            assert_eq!(report.in_lines().contains("do not start here"), !good);
            assert!(tried.is_ok() || report.in_lines().contains("a reason"));
        }
        assert_eq!(landlock(Ok(old)).state, State::Weaker);
    }

    #[test]
    fn this_machine_is_looked_at() {
        let json = serde_json::to_value(look()).unwrap();
        assert!(json["findings"].as_array().unwrap().len() >= 5, "{json}");
        assert_eq!(json["findings"][0]["state"], "good", "{json}");
    }
}
