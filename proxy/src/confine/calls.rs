//! The system calls that a confined process may make, as a list; every other fails with `EPERM`, also those that kernels will
//! add later. A deny-list would miss some: io_uring and `sendmsg(MSG_FASTOPEN)` open connections without `connect`.
//!
//! Arguments that the kernel takes as 32 bits are compared as 32 bits: of the rest of a register it sees nothing. Calls that
//! make, address or receive what leads outside are not in the list: `socket`, `connect`, `bind`, `listen`, `sendmsg`,
//! `sendmmsg`, `recvmsg`, `recvmmsg`, `io_uring_*`, `pidfd_*`, `process_vm_*`, `ptrace`, `execve`, `fork`, `mount`, `setns`, `bpf`.

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::{ConfineError, Role};

/// `CLONE_THREAD` and every flag for a namespace: of these, the first must be set and none of the others.
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const CLONE_LOOKED_AT: u64 = (libc::CLONE_THREAD
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
/// Flags of `send`; with another one, `MSG_FASTOPEN` would connect.
const SEND_FLAGS: c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_MORE;

/// Options of sockets that may be set: what keeps a connection alive and fast, by level. `TCP_REPAIR`, `SO_ATTACH_*`,
/// `SO_BINDTODEVICE` and others are for nobody here.
const OPTIONS: &[(c_int, &[c_int])] = &[
    (libc::SOL_SOCKET, &[libc::SO_REUSEADDR, libc::SO_KEEPALIVE, libc::SO_LINGER, libc::SO_RCVBUF, libc::SO_SNDBUF]),
    (
        libc::IPPROTO_TCP,
        &[
            libc::TCP_NODELAY,
            libc::TCP_KEEPIDLE,
            libc::TCP_KEEPINTVL,
            libc::TCP_KEEPCNT,
            libc::TCP_USER_TIMEOUT,
            libc::TCP_QUICKACK,
        ],
    ),
];

/// What a descriptor may be asked to be: not whose process its signals go to.
const FCNTL: &[c_int] = &[
    libc::F_DUPFD,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_DUPFD_CLOEXEC,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// Requests that have nothing to do with devices and networks.
const IOCTL: &[u64] = &[libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS, libc::TIOCGWINSZ];

/// Names of threads and mappings, and what only looks.
const PRCTL: &[c_int] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_GET_DUMPABLE,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_GET_SECCOMP,
    libc::PR_GET_PDEATHSIG,
    libc::PR_CAPBSET_READ,
    libc::PR_SET_TIMERSLACK,
    libc::PR_GET_TIMERSLACK,
    libc::PR_SET_VMA,
];

/// Allowed with any arguments.
#[rustfmt::skip]
const PLAIN: &[c_long] = &[
    // Reading and writing what is open.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_close,
    libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_copy_file_range,
    // Waiting.
    libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_ppoll,
    libc::SYS_pselect6, libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
    libc::SYS_futex, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_restart_syscall,
    // Sockets that are there: no name of another end is among the arguments.
    libc::SYS_recvfrom, libc::SYS_shutdown, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt,
    // Files; Landlock says which.
    libc::SYS_openat, libc::SYS_newfstatat, libc::SYS_fstat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_getdents64, libc::SYS_getcwd,
    libc::SYS_fsync, libc::SYS_syncfs, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_ftruncate, libc::SYS_fallocate,
    libc::SYS_fadvise64, libc::SYS_renameat2, libc::SYS_unlinkat, libc::SYS_mkdirat, libc::SYS_linkat,
    libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_utimensat, libc::SYS_flock, libc::SYS_umask,
    // Memory.
    libc::SYS_brk, libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_madvise,
    libc::SYS_msync, libc::SYS_mincore, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_memfd_create,
    libc::SYS_membarrier, libc::SYS_get_mempolicy,
    // Threads of this process.
    libc::SYS_set_tid_address, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_gettid,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler, libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_getcpu,
    libc::SYS_exit, libc::SYS_exit_group,
    // Signals that come.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack,
    // What only looks.
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid,
    libc::SYS_getgroups, libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getpgid, libc::SYS_getsid, libc::SYS_capget,
    libc::SYS_getrusage, libc::SYS_getrlimit, libc::SYS_getpriority, libc::SYS_times, libc::SYS_uname, libc::SYS_sysinfo,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_getrandom,
];

/// What x86-64 has beside them, for the same.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_getdents,
    libc::SYS_rename, libc::SYS_renameat, libc::SYS_unlink, libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_link, libc::SYS_chmod,
    libc::SYS_dup2, libc::SYS_pipe, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_select,
    libc::SYS_eventfd, libc::SYS_getpgrp, libc::SYS_time, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[libc::SYS_renameat];

/// Not there, as libraries see it: they have another way, and take it only if a call does not exist. Of `clone3` the filter
/// could not see the flags.
const ABSENT: &[c_long] = &[libc::SYS_clone3, libc::SYS_openat2, libc::SYS_fchmodat2, libc::SYS_futex_waitv];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Puts the list in force for this thread, and for those that it starts.
pub(super) fn apply(role: Role) -> Result<(), ConfineError> {
    let own = std::process::id();
    let wrong = |error: &dyn std::fmt::Display| ConfineError::Filter(error.to_string());
    let absent = absent().map_err(|error| wrong(&error))?;
    let allowed = allowed(role, own).map_err(|error| wrong(&error))?;
    // The second one forbids to add more.
    for program in [absent, allowed] {
        seccompiler::apply_filter(&program).map_err(|error| wrong(&error))?;
    }
    Ok(())
}

/// The list as a program for the kernel. `own` is the ID of the process: it may send signals to itself, which is how a program aborts.
///
/// # Errors
/// The list is not one; or this is no processor that it is known for.
pub fn allowed(role: Role, own: u32) -> Result<BpfProgram, seccompiler::BackendError> {
    let filter = SeccompFilter::new(
        rules(role, own)?,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        arch()?,
    )?;
    filter.try_into()
}

fn absent() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = ABSENT.iter().map(|call| (*call, Vec::new())).collect();
    let not_there = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, not_there, arch()?)?.try_into()
}

fn arch() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

fn rules(role: Role, own: u32) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = PLAIN.iter().chain(OLDER).map(|call| (*call, Vec::new())).collect();
    // What `absent` answers with another error must not fail here first; the stricter of two filters counts.
    rules.extend(ABSENT.iter().map(|call| (*call, Vec::new())));
    if matches!(role, Role::Node | Role::Gateway) {
        rules.insert(libc::SYS_accept4, Vec::new());
    }
    if role == Role::Node {
        // Until its model is loaded, those who come are to be refused at once.
        rules.insert(libc::SYS_listen, Vec::new());
    }
    let mut with = |call: c_long, each: Vec<SeccompRule>| rules.insert(call, each);
    with(libc::SYS_clone, vec![all(&[(0, Dword, MaskedEq(CLONE_LOOKED_AT), CLONE_THREAD)])?]);
    with(libc::SYS_tgkill, vec![all(&[(0, Dword, Eq, u64::from(own))])?]);
    with(libc::SYS_socketpair, vec![all(&[(0, Dword, Eq, word(libc::AF_UNIX))])?]);
    // To whoever is at the other end already: no address, and no flag that connects.
    let to_the_other_end =
        [(3, Dword, MaskedEq(u64::from(!SEND_FLAGS.cast_unsigned())), 0), (4, Qword, Eq, 0), (5, Dword, Eq, 0)];
    with(libc::SYS_sendto, vec![all(&to_the_other_end)?]);
    // The compiler of policies gives way to others. Of its own process.
    with(libc::SYS_setpriority, vec![all(&[(0, Dword, Eq, u64::from(libc::PRIO_PROCESS)), (1, Dword, Eq, 0)])?]);
    // Reads a bound of its own, and sets none.
    with(libc::SYS_prlimit64, vec![all(&[(0, Dword, Eq, 0), (2, Qword, Eq, 0)])?]);
    with(libc::SYS_fcntl, each(1, FCNTL)?);
    with(libc::SYS_prctl, each(0, PRCTL)?);
    with(libc::SYS_ioctl, IOCTL.iter().map(|request| all(&[(1, Dword, Eq, *request)])).collect::<Result<_, _>>()?);
    let options = OPTIONS.iter().flat_map(|(level, names)| names.iter().map(move |name| (*level, *name)));
    let options = options.map(|(level, name)| all(&[(1, Dword, Eq, word(level)), (2, Dword, Eq, word(name))]));
    with(libc::SYS_setsockopt, options.collect::<Result<_, _>>()?);
    if matches!(role, Role::Engine | Role::Node) && postern_engine::computes_on_gpus() {
        rules.insert(libc::SYS_ioctl, Vec::new());
        // The driver asks where memory lies, and pins it.
        rules.extend([libc::SYS_mbind, libc::SYS_set_mempolicy, libc::SYS_munlockall].map(|call| (call, Vec::new())));
    }
    Ok(rules)
}

/// One rule: what all of these say of the arguments, by number from 0.
fn all(conditions: &[(u8, SeccompCmpArgLen, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(argument, length, compare, value)| {
        SeccompCondition::new(*argument, length.clone(), compare.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// One rule for each value of an argument.
fn each(argument: u8, values: &[c_int]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.iter().map(|value| all(&[(argument, Dword, Eq, word(*value))])).collect()
}

/// As the filter sees an argument of 32 bits.
fn word(value: c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What leads outside, takes a descriptor from elsewhere, or lets another program act.
    #[rustfmt::skip]
    const NEVER: &[c_long] = &[
        libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_sendmsg, libc::SYS_sendmmsg,
        libc::SYS_recvmsg, libc::SYS_recvmmsg, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register, libc::SYS_pidfd_open, libc::SYS_pidfd_getfd, libc::SYS_pidfd_send_signal,
        libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_ptrace, libc::SYS_execve, libc::SYS_execveat,
        libc::SYS_sendfile, libc::SYS_splice, libc::SYS_unshare, libc::SYS_setns, libc::SYS_mount, libc::SYS_bpf,
        libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_kill, libc::SYS_tkill, libc::SYS_keyctl,
        libc::SYS_open_by_handle_at, libc::SYS_seccomp, libc::SYS_kcmp, libc::SYS_mq_open,
    ];

    #[test]
    fn what_leads_outside_is_in_no_list_and_only_those_who_listen_accept() {
        for role in [Role::Engine, Role::Node, Role::Gateway] {
            let rules = rules(role, 1).unwrap();
            for call in NEVER {
                assert!(
                    role == Role::Node && *call == libc::SYS_listen || !rules.contains_key(call),
                    "{call} is allowed to the {}",
                    role.as_str()
                );
            }
            assert_eq!(rules.contains_key(&libc::SYS_accept4), role != Role::Engine);
            assert!(!allowed(role, 1).unwrap().is_empty());
        }
        #[cfg(target_arch = "x86_64")]
        assert!(!rules(Role::Gateway, 1).unwrap().contains_key(&libc::SYS_fork));
    }

    #[test]
    fn what_is_allowed_in_part_has_its_conditions() {
        let rules = rules(Role::Gateway, 7).unwrap();
        for call in [libc::SYS_clone, libc::SYS_tgkill, libc::SYS_socketpair, libc::SYS_sendto, libc::SYS_prlimit64] {
            assert_eq!(rules[&call].len(), 1, "{call}");
        }
        for call in [libc::SYS_fcntl, libc::SYS_prctl, libc::SYS_ioctl, libc::SYS_setsockopt] {
            assert!(rules[&call].len() > 1, "{call}");
        }
        assert_eq!(SEND_FLAGS & libc::MSG_FASTOPEN, 0);
    }
}
