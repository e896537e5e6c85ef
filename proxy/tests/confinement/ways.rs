//! The ways out.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::net::{self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType};
use rustix::process::Pid;

/// Connects with the first bytes: `MSG_FASTOPEN` of linux/socket.h.
const FASTOPEN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);

type Way = Result<(), std::io::Error>;

/// What is out there.
pub(crate) struct Addresses {
    pub(crate) tcp: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) unix: PathBuf,
    pid: Pid,
    fd: i32,
    byte: usize,
}

impl Addresses {
    pub(crate) fn from_environment() -> Self {
        let named = |name: &str| std::env::var(name).unwrap();
        Self {
            tcp: named("OUT_TCP").parse().unwrap(),
            udp: named("OUT_UDP").parse().unwrap(),
            unix: named("OUT_UNIX").into(),
            pid: Pid::from_raw(named("OUT_PID").parse().unwrap()).unwrap(),
            fd: named("OUT_FD").parse().unwrap(),
            byte: named("OUT_BYTE").parse().unwrap(),
        }
    }
}

pub(crate) struct Ways {
    pub(crate) is_free: bool,
    pub(crate) listener: TcpListener,
    /// Made before, and connected to nobody.
    pub(crate) older: OwnedFd,
    pub(crate) outside: Addresses,
}

/// As the line says that tells it.
pub(crate) fn shown(way: Way) -> String {
    match way {
        Ok(()) => "out".to_owned(),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => format!("refused: {error}"),
        Err(error) => format!("failed: {error}"),
    }
}

impl Ways {
    /// Tries all of them; those of a connection that came in only if it `accepts`.
    pub(crate) fn all(&self, accepts: bool) {
        let tell = |name: &str, way: Way| super::tell(&format!("way {name}"), &shown(way));
        tell("tcp", self.tcp());
        tell("udp", self.udp());
        tell("udp6", udp6());
        tell("dns", dns());
        tell("unix", self.unix());
        tell("listen", listen());
        for (name, family, kind) in [
            ("raw", AddressFamily::INET, SocketType::RAW),
            ("packet", AddressFamily::PACKET, SocketType::RAW),
            ("netlink", AddressFamily::NETLINK, SocketType::RAW),
            ("vsock", AddressFamily::VSOCK, SocketType::STREAM),
            ("unix_socket", AddressFamily::UNIX, SocketType::STREAM),
        ] {
            // A raw socket is for one protocol.
            let protocol = (name == "raw").then_some(net::ipproto::ICMP);
            tell(name, opened(family, kind, protocol));
        }
        tell("upper_bits", upper_bits());
        tell("io_uring", io_uring().map(drop));
        tell("received", received());
        tell("pidfd_getfd", self.pidfd());
        tell("process_vm_writev", self.write_elsewhere());
        tell("signal", rustix::process::test_kill_process(self.outside.pid).map_err(Into::into));
        tell(
            "proc_mem",
            std::fs::File::options().write(true).open(format!("/proc/{}/mem", self.outside.pid)).map(drop),
        );
        tell("proc_sys", std::fs::read("/proc/sys/net/ipv4/ip_forward").map(drop));
        tell("proc_others", std::fs::read_dir(format!("/proc/{}/fd", self.outside.pid)).map(drop));
        tell("file_passwd", std::fs::read("/etc/passwd").map(drop));
        tell("file_tmp", std::fs::write(std::env::temp_dir().join(format!("out-{}", std::process::id())), ""));
        tell("exec", Command::new("true").stdin(Stdio::null()).status().map(drop));
        tell("unshare", self.unshared());
        tell("older_fastopen_option", self.option());
        tell("fastopen_sendto", self.fastopen_sendto());
        tell("fastopen_sendmsg", self.fastopen_sendmsg());
        tell("older_connect", self.older_connect());
        match accepts {
            true => {
                let (mut stream, _) = self.heard();
                tell("unspec", self.turned_around(&mut stream));
            }
            // This role does not even accept.
            false => {
                super::tell("listens", &self.listener.local_addr().unwrap().to_string());
                tell("unspec", self.listener.accept().map(drop));
            }
        }
        if !self.is_free {
            // What would come in place of this program.
            let error = Command::new("curl").arg(format!("http://{}", self.outside.tcp)).exec();
            tell("exec_here", Err(error));
            // SAFETY: asks to be traced by the parent, and takes no pointer.
            tell("ptrace", checked(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).map(drop));
        }
    }

    fn tcp(&self) -> Way {
        TcpStream::connect(self.outside.tcp).map(drop)
    }

    fn udp(&self) -> Way {
        UdpSocket::bind("127.0.0.1:0")?.send_to(b"out", self.outside.udp).map(drop)
    }

    fn unix(&self) -> Way {
        UnixStream::connect(&self.outside.unix).map(drop)
    }

    fn older_connect(&self) -> Way {
        Ok(net::connect(&self.older_or_new()?, &self.outside.tcp)?)
    }

    /// Each way needs one that is connected to nobody.
    fn older_or_new(&self) -> Result<OwnedFd, std::io::Error> {
        if self.is_free {
            Ok(net::socket(AddressFamily::INET, SocketType::STREAM, None)?)
        } else {
            self.older.try_clone()
        }
    }

    fn fastopen_sendto(&self) -> Way {
        Ok(net::sendto(&self.older_or_new()?, b"out", FASTOPEN, &self.outside.tcp).map(drop)?)
    }

    fn fastopen_sendmsg(&self) -> Way {
        let (socket, mut nothing) = (self.older_or_new()?, net::SendAncillaryBuffer::default());
        let sent = net::sendmsg_addr(&socket, &self.outside.tcp, &[IoSlice::new(b"out")], &mut nothing, FASTOPEN);
        Ok(sent.map(drop)?)
    }

    fn option(&self) -> Way {
        let one: libc::c_int = 1;
        let socket = self.older_or_new()?;
        // SAFETY: the pointer is to an integer of the length that is given.
        let set = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                libc::IPPROTO_TCP,
                libc::TCP_FASTOPEN_CONNECT,
                (&raw const one).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        checked(set.into()).map(drop)
    }

    /// Somebody calls, and is answered.
    fn heard(&self) -> (TcpStream, SocketAddr) {
        super::tell("listens", &self.listener.local_addr().unwrap().to_string());
        let (mut stream, from) = self.listener.accept().unwrap();
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(b"hello yourself").unwrap();
        (stream, from)
    }

    /// A connection that came in, aimed at somebody else.
    fn turned_around(&self, stream: &mut TcpStream) -> Way {
        net::connect_unspec(stream.as_fd())?;
        Ok(net::connect(stream.as_fd(), &self.outside.tcp)?)
    }

    fn pidfd(&self) -> Way {
        let process = rustix::process::pidfd_open(self.outside.pid, rustix::process::PidfdFlags::empty())?;
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let socket = rustix::process::pidfd_getfd(&process, self.outside.fd, flags)?;
        Ok(net::sendto(&socket, b"out", SendFlags::empty(), &self.outside.udp).map(drop)?)
    }

    fn write_elsewhere(&self) -> Way {
        let byte = 1_u8;
        let ours = libc::iovec { iov_base: (&raw const byte).cast_mut().cast(), iov_len: 1 };
        let theirs = libc::iovec { iov_base: self.outside.byte as *mut libc::c_void, iov_len: 1 };
        // SAFETY: both describe one byte; the kernel checks the one of the other process.
        let written = unsafe {
            libc::process_vm_writev(self.outside.pid.as_raw_pid(), &raw const ours, 1, &raw const theirs, 1, 0)
        };
        checked(written as libc::c_long).map(drop)
    }

    fn unshared(&self) -> Way {
        // SAFETY: concerns this process alone, which has one thread.
        checked(unsafe { libc::unshare(libc::CLONE_NEWUTS) }.into()).map(drop)
    }
}

fn udp6() -> Way {
    let socket = UdpSocket::bind("[::1]:0")?;
    socket.send_to(b"out", socket.local_addr()?).map(drop)
}

fn dns() -> Way {
    match ("localhost", 80).to_socket_addrs() {
        Ok(_) => Ok(()),
        // The resolver has no number for what kept it from its files.
        Err(error) => Err(std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EACCES))),
    }
}

fn listen() -> Way {
    TcpListener::bind("127.0.0.1:0").map(drop)
}

fn opened(family: AddressFamily, kind: SocketType, protocol: Option<net::Protocol>) -> Way {
    Ok(net::socket(family, kind, protocol).map(drop)?)
}

/// `AF_INET` with a bit that the kernel does not look at, and a filter that compares 64 bits does.
fn upper_bits() -> Way {
    let family = libc::c_long::from(libc::AF_INET) | (1 << 32);
    // SAFETY: takes three numbers, and gives a descriptor that is ours.
    let fd = checked(unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_STREAM, 0) })?;
    // SAFETY: nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

/// A ring, by which sockets are opened and used without their system calls.
pub(crate) fn io_uring() -> Result<OwnedFd, std::io::Error> {
    // `struct io_uring_params` has 120 bytes.
    let mut parameters = [0_u64; 15];
    // SAFETY: the pointer is to as many bytes as the kernel writes.
    let fd = checked(unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, parameters.as_mut_ptr()) })?;
    // SAFETY: nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A socket of another process, which waits on the line.
fn received() -> Way {
    let (mut byte, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    net::recvmsg(std::io::stdin(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::DONTWAIT)?;
    let came = control.drain().any(|message| matches!(message, RecvAncillaryMessage::ScmRights(_)));
    if came { Ok(()) } else { Err(std::io::Error::other("no descriptor came")) }
}

fn checked(result: libc::c_long) -> Result<libc::c_long, std::io::Error> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
