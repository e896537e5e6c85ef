//! What is open when a process is confined. The filter of system calls lets no new way out be opened; one that was open before
//! would stay. So each descriptor is looked at, and one that could lead outside ends the process. A TCP socket that has no other
//! end leads nowhere: it could only get one by a call that is not in the list.

use std::fs::Metadata;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileTypeExt as _;

use rustix::fs::FileType;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::ConfineError;

/// Devices that lead nowhere.
const DEVICES: &[&str] =
    &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console"];
/// Terminals, by how their path begins.
const TERMINALS: &[&str] = &["/dev/pts/", "/dev/tty", "/dev/ttyS"];
/// What the kernel makes without a file, and leads nowhere either.
const ANONYMOUS: &[&str] =
    &["anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]", "anon_inode:[signalfd]"];

/// Sockets that a confined process keeps, by their inode.
#[derive(Debug)]
pub(super) struct Kept(Vec<u64>);

impl Kept {
    /// Looks at each: it must be a listener, be about to listen, or be a UNIX socket. What is on the standard streams is looked at as well.
    pub(super) fn of(sockets: &[BorrowedFd<'_>]) -> Result<Self, ConfineError> {
        let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let standard = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let standard = standard.into_iter().filter(|fd| is_socket(*fd));
        let kept: Result<Vec<_>, _> = standard.chain(sockets.iter().copied()).map(inode_if_good).collect();
        kept.map(Self)
    }
}

fn is_socket(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

fn inode_if_good(fd: BorrowedFd<'_>) -> Result<u64, ConfineError> {
    let refused = |what: String| ConfineError::Descriptor { number: format!("{fd:?}"), what };
    let asked = |error: rustix::io::Errno| refused(format!("a socket that cannot be asked what it is ({error})"));
    let domain = sockopt::socket_domain(fd).map_err(asked)?;
    let is_alone = rustix::net::getpeername(fd) == Err(rustix::io::Errno::NOTCONN);
    let kind = sockopt::socket_type(fd).map_err(asked)?;
    match domain {
        AddressFamily::UNIX => {}
        AddressFamily::INET | AddressFamily::INET6 if is_alone && kind == SocketType::STREAM => {}
        AddressFamily::INET | AddressFamily::INET6 => {
            return Err(refused("a network socket that does not listen".to_owned()));
        }
        other => return Err(refused(format!("a socket of another kind (address family {})", other.as_raw()))),
    }
    Ok(rustix::fs::fstat(fd).map_err(asked)?.st_ino)
}

/// Looks at everything that is open.
pub(super) fn audit(kept: &Kept) -> Result<(), ConfineError> {
    for entry in std::fs::read_dir("/proc/self/fd").map_err(ConfineError::Proc)? {
        let entry = entry.map_err(ConfineError::Proc)?;
        // The folder that is being read is one of them, and gone when it is looked at.
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        let link = link.to_string_lossy();
        let metadata = std::fs::metadata(entry.path());
        if let Err(what) = look(&link, metadata.ok().as_ref(), &kept.0) {
            let number = entry.file_name().to_string_lossy().into_owned();
            return Err(ConfineError::Descriptor { number, what });
        }
    }
    Ok(())
}

/// What one descriptor is, if it may not be there.
fn look(link: &str, metadata: Option<&Metadata>, kept: &[u64]) -> Result<(), String> {
    if let Some(inode) = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
        let is_kept = inode.parse().is_ok_and(|inode: u64| kept.contains(&inode));
        return if is_kept { Ok(()) } else { Err("a socket that this process was not given to keep".to_owned()) };
    }
    if link.starts_with("pipe:[") || ANONYMOUS.contains(&link) {
        return Ok(());
    }
    let Some(kind) = metadata.map(Metadata::file_type).filter(|_| link.starts_with('/')) else {
        return Err(format!("of a kind that is not known to lead nowhere ({link})"));
    };
    let is_terminal = || TERMINALS.iter().any(|begin| link.starts_with(begin));
    match kind {
        kind if kind.is_file() || kind.is_dir() || kind.is_fifo() => Ok(()),
        kind if kind.is_char_device() && (DEVICES.contains(&link) || is_terminal()) => Ok(()),
        _ => Err(format!("a device or socket ({link})")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn listeners_and_lines_on_this_machine_are_kept_and_nothing_that_is_connected() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let kept = Kept::of(&[listener.as_fd(), ours.as_fd()]).unwrap();
        let link = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().display().to_string();
        for fd in [listener.as_raw_fd(), ours.as_raw_fd()] {
            assert_eq!(look(&link(fd), None, &kept.0), Ok(()));
        }
        #[expect(clippy::disallowed_methods, reason = "what must not be open")]
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "what must not be open")]
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        for fd in [connected.as_fd(), datagrams.as_fd()] {
            let said = Kept::of(&[fd]).unwrap_err().to_string();
            assert!(said.contains("a network socket that does not listen"), "{said}");
            assert!(look(&link(fd.as_raw_fd()), None, &kept.0).unwrap_err().contains("not given"));
        }
    }

    #[test]
    fn files_pipes_and_terminals_lead_nowhere_and_what_is_not_known_may() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = |path: &str| std::fs::metadata(path).ok();
        let of_file = file.path().metadata().unwrap();
        assert_eq!(look(&file.path().display().to_string(), Some(&of_file), &[]), Ok(()));
        for (link, metadata) in [
            ("pipe:[7]", None),
            ("anon_inode:[eventpoll]", None),
            ("/dev/null", metadata("/dev/null")),
            ("/dev/urandom", metadata("/dev/urandom")),
            ("/dev/pts/3", metadata("/dev/null")),
        ] {
            assert_eq!(look(link, metadata.as_ref(), &[]), Ok(()), "{link}");
        }
        for (link, metadata) in [
            ("socket:[7]", None),
            ("anon_inode:[io_uring]", None),
            ("anon_inode:[pidfd]", None),
            ("anon_inode:bpf-prog", None),
            ("/dev/net/tun", metadata("/dev/null")),
            ("net:[4026531840]", None),
        ] {
            assert!(look(link, metadata.as_ref(), &[]).is_err(), "{link}");
        }
    }
}
