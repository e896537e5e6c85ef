//! Which files a confined process may open, by Landlock: below these paths, and nothing else.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The version of Landlock whose rules are asked for; an older kernel keeps to those that it knows.
pub(super) const ASKED: ABI = ABI::V6;

/// What every process of ours reads: the clock of the place, random numbers, what it is told of processor and memory.
const COMMON: &[&str] = &[
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
];
/// Links in a folder of a model that are followed, at most.
const MAX_LINKS: usize = 4096;
/// What a driver of a GPU reads, beside its devices.
const OF_GPUS: &[&str] = &["/usr", "/lib", "/lib64", "/opt", "/etc", "/proc", "/sys"];

/// What a role needs. A path that is not there is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Files and folders that are read.
    pub read: Vec<PathBuf>,
    /// Folders in which files are made, changed and removed.
    pub write: Vec<PathBuf>,
    /// Devices that are opened, and told what to do.
    pub devices: Vec<PathBuf>,
}

impl Files {
    /// For an engine: its model, and in a program that computes on GPUs what a driver needs.
    #[must_use]
    pub fn of_model(model: &Path) -> Self {
        let mut files = Self { read: vec![model.to_owned()], ..Self::default() };
        // A folder may hold links to where the files are.
        let entries = std::fs::read_dir(model).into_iter().flatten().flatten().take(MAX_LINKS);
        files.read.extend(entries.filter_map(|entry| std::fs::canonicalize(entry.path()).ok()));
        if postern_engine::computes_on_gpus() {
            files.read.extend(OF_GPUS.iter().map(PathBuf::from));
            let devices = std::fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
            files.devices.extend(devices.filter(|path| is_of_gpu(path)));
        }
        files
    }

    /// These folders, and those of these files: an editor puts another file in the place of one.
    #[must_use]
    pub fn beside(paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
        let folder = |path: PathBuf| match path.parent() {
            Some(parent) if !path.is_dir() => parent.to_owned(),
            _ => path,
        };
        // A link leads to another folder, as mounted secrets do.
        let target = |path: &PathBuf| std::fs::canonicalize(path).ok();
        let mut folders: Vec<_> =
            paths.into_iter().flat_map(|path| target(&path).into_iter().chain([path])).map(folder).collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

fn is_of_gpu(device: &Path) -> bool {
    device.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvidia"))
}

/// Puts the rules in force for this thread, and for those that it starts.
pub(super) fn restrict(files: &Files) -> Result<RulesetStatus, RulesetError> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let writing: BitFlags<AccessFs> = reading
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let telling = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev;
    let read = COMMON.iter().map(PathBuf::from).chain(files.read.iter().cloned());
    let status = asked(Ruleset::default())?
        .create()?
        .add_rules(path_beneath_rules(read, reading))?
        .add_rules(path_beneath_rules(&files.write, writing))?
        .add_rules(path_beneath_rules(&files.devices, telling))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// What is refused unless a rule allows it. Beside files: binding and connecting TCP, abstract UNIX sockets and signals of others.
pub(super) fn asked(rules: Ruleset) -> Result<Ruleset, RulesetError> {
    rules
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ASKED))?
        .handle_access(AccessNet::from_all(ASKED))?
        .scope(Scope::from_all(ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_links_is_followed_and_files_stand_for_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("blobs")).unwrap();
        std::fs::create_dir_all(at("model")).unwrap();
        std::fs::write(at("blobs/weights"), "").unwrap();
        std::os::unix::fs::symlink(at("blobs/weights"), at("model/weights.safetensors")).unwrap();
        let real = std::fs::canonicalize(at("blobs/weights")).unwrap();
        assert!(Files::of_model(&at("model")).read.contains(&real));
        let folders = Files::beside([at("model/weights.safetensors"), at("blobs"), at("gone/key.pem")]);
        assert!([at("model"), at("blobs"), at("gone")].iter().all(|folder| folders.contains(folder)), "{folders:?}");
    }

    /// Landlock restricts one thread, so a test can have it.
    #[test]
    fn only_what_is_named_is_read_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["read", "write", "other"] {
            std::fs::create_dir(at(folder)).unwrap();
            std::fs::write(at(folder).join("file"), "text").unwrap();
        }
        let files = Files { read: vec![at("read")], write: vec![at("write"), at("gone")], devices: Vec::new() };
        let (read, write, other) = (at("read/file"), at("write/file"), at("other/file"));
        let confined = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            if restrict(&files).unwrap() == RulesetStatus::NotEnforced {
                return None;
            }
            let new = write.with_file_name("new");
            Some([
                ("read", std::fs::read(&read).is_ok(), true),
                ("written", std::fs::write(&read, "x").is_ok(), false),
                ("kept", std::fs::write(&write, "x").and_then(|()| std::fs::rename(&write, &new)).is_ok(), true),
                ("elsewhere", std::fs::read(&other).is_ok(), false),
                ("passwords", std::fs::read("/etc/passwd").is_ok(), false),
                ("null", std::fs::write("/dev/null", "x").is_ok(), true),
                ("self", std::fs::read_dir("/proc/self/fd").is_ok(), true),
                ("others", std::fs::read("/proc/1/status").is_ok(), false),
                ("executed", std::process::Command::new("/bin/true").status().is_ok(), false),
            ])
        });
        match confined.join().unwrap() {
            Some(tried) => tried.iter().for_each(|(what, did, may)| assert_eq!(did, may, "{what}")),
            None => eprintln!("this kernel has no Landlock: nothing was tried"),
        }
    }
}
