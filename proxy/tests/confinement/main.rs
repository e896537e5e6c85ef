//! Is there a way out of a confined process? This program starts itself again as one, with the same call that engine and gateway
//! make, and tries every way that is known. Each is tried unconfined as well: one that leads nowhere in any case would show
//! nothing.
//!
//! Has no harness: that would have started threads before anything could be confined.
#![allow(unsafe_code, reason = "some ways out have no safe function")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test says what it expects by failing, and what it could not show by printing it"
)]

mod ways;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use postern::confine::{Files, Role, confine, kernel};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// What makes this program one that is to be confined; its value says how.
const INSIDE: &str = "POSTERN_CONFINEMENT_INSIDE";
/// A byte of this process that another one may try to change.
static TOUCHED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

fn main() -> ExitCode {
    if let Ok(how) = std::env::var(INSIDE) {
        inside(&how);
        return ExitCode::SUCCESS;
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    type Test = (&'static str, fn());
    let tests: [Test; 4] = [
        ("every_way_out_is_open_without_confinement_and_shut_with_it", every_way_out),
        ("what_was_open_before_ends_the_process", what_was_open_before),
        ("threads_that_run_already_are_not_left_out", threads),
        ("what_a_confined_process_is_for_still_works", what_it_is_for),
    ];
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        println!("confinement: {name} ... ok");
    }
    ExitCode::SUCCESS
}

/// What is out there, for the process inside.
struct Outside {
    tcp: TcpListener,
    _udp: UdpSocket,
    _unix: UnixListener,
    line: UnixStream,
    _folder: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Outside {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let path = folder.path().join("proxy.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let (line, inner) = UnixStream::pair().unwrap();
        // Sent before the process is there, and waiting for it.
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [socket.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&line, &[std::io::IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        let environment = vec![
            ("OUT_TCP", tcp.local_addr().unwrap().to_string()),
            ("OUT_UDP", udp.local_addr().unwrap().to_string()),
            ("OUT_UNIX", path.display().to_string()),
            ("OUT_PID", std::process::id().to_string()),
            ("OUT_FD", udp.as_raw_fd().to_string()),
            ("OUT_BYTE", (TOUCHED.as_ptr() as usize).to_string()),
        ];
        // Both ends are kept: the inner one is copied for each process.
        Self { tcp, _udp: udp, _unix: unix, line: inner_with(line, inner), _folder: folder, environment }
    }
}

/// The inner end is what processes get; the outer one lives as long as this program.
fn inner_with(outer: UnixStream, inner: UnixStream) -> UnixStream {
    std::mem::forget(outer);
    inner
}

/// Starts this program again, and gives what it says, by name.
fn said(how: &str) -> BTreeMap<String, String> {
    let outside = Outside::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(INSIDE, how).envs(outside.environment.iter().cloned());
    command.stdin(Stdio::from(OwnedFd::from(outside.line.try_clone().unwrap()))).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut text, mut heard) = (String::new(), String::new());
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // Somebody calls, as a client does.
        if let Some(address) = line.strip_prefix("listens\t") {
            let client = TcpStream::connect(address);
            // One that may not even accept ends, and its listener with it.
            let Ok(mut client) = client else { continue };
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client.write_all(b"hello").unwrap();
            let mut bytes = [0; 14];
            if client.read_exact(&mut bytes).is_ok() {
                heard = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
        text += &format!("{line}\n");
    }
    assert!(child.wait().unwrap().success(), "{how}: {text}");
    drop(outside.tcp);
    let mut said: BTreeMap<_, _> =
        text.lines().filter_map(|line| line.split_once('\t')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    said.insert("heard".to_owned(), heard);
    said
}

/// Ways that not every machine has, whoever tries them: said, and not counted.
const MAY_BE_SHUT: &[&str] = &[
    "raw",
    "packet",
    "vsock",
    "io_uring",
    "pidfd_getfd",
    "process_vm_writev",
    "proc_mem",
    "unshare",
    "fastopen_sendmsg",
    "fastopen_sendto",
];

fn every_way_out() {
    let free = said("free");
    let ways: Vec<_> = free.iter().filter(|(name, _)| name.starts_with("way ")).collect();
    assert!(ways.len() >= 20, "{free:?}");
    for (name, result) in &ways {
        let name = name.trim_start_matches("way ");
        if *result != "out" {
            assert!(
                MAY_BE_SHUT.contains(&name),
                "{name} leads nowhere without confinement, so it shows nothing: {result}"
            );
            println!("confinement: {name} is shut on this machine anyway ({result})");
        }
    }
    let has_files = kernel::landlock().is_ok_and(|landlock| landlock.abi > 0);
    for role in ["engine", "node", "gateway"] {
        let confined = said(role);
        for (name, _) in &ways {
            let of_files = name.contains("proc_") || name.contains("file_") || name.contains("dns");
            if of_files && !has_files {
                println!("confinement: this kernel has no Landlock, so{} is not held", name.trim_start_matches("way"));
                continue;
            }
            let result = &confined[*name];
            assert!(result.starts_with("refused"), "the {role} got out by{}: {result}", name.trim_start_matches("way"));
        }
    }
}

fn what_was_open_before() {
    for (how, words) in [
        ("older udp", "a socket that this process was not given to keep"),
        ("older upstream", "a socket that this process was not given to keep"),
        ("named upstream", "a network socket that does not listen"),
        ("older io_uring", "io_uring"),
    ] {
        let said = said(how);
        let confined = &said["confined"];
        if confined == "unavailable" {
            println!("confinement: {how}: there is none on this machine");
            continue;
        }
        assert!(confined.contains(words) && confined.contains("must not be there"), "{how}: {confined}");
    }
    // Also if it went on all the same, it could name nobody.
    assert!(said("older udp")["sendto"].starts_with("refused"), "{:?}", said("older udp"));
}

fn threads() {
    assert!(said("threads")["confined"].contains("2 threads run already"));
}

fn what_it_is_for() {
    for role in ["node", "gateway"] {
        let said = said(role);
        assert_eq!(said["heard"], "hello yourself", "{role}: {said:?}");
    }
    for role in ["engine", "node", "gateway"] {
        let said = said(role);
        for what in ["thread", "read", "write", "line"] {
            assert_eq!(said[what], "good", "{role}: {what}");
        }
    }
}

fn tell(name: &str, result: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{name}\t{result}").unwrap();
    out.flush().unwrap();
}

fn inside(how: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "text").unwrap();
    let files = Files { read: Vec::new(), write: vec![folder.path().to_owned()], devices: Vec::new() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = std::io::stdin();
    let older = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    let sockets = [listener.as_fd(), line.as_fd(), older.as_fd()];
    if let Some(role) = role(how) {
        confine(role, &files, &sockets).unwrap();
    } else if how != "free" {
        return refused(how, &files, &sockets);
    }
    let way = ways::Ways { is_free: how == "free", listener, older, outside: ways::Addresses::from_environment() };
    tell("thread", if std::thread::spawn(|| 7).join().is_ok_and(|seven| seven == 7) { "good" } else { "bad" });
    let file = folder.path().join("file");
    tell("read", if std::fs::read(&file).is_ok() { "good" } else { "bad" });
    tell(
        "write",
        if std::fs::write(&file, "x").and_then(|()| std::fs::rename(&file, folder.path().join("new"))).is_ok() {
            "good"
        } else {
            "bad"
        },
    );
    tell("line", if UnixStream::pair().is_ok() { "good" } else { "bad" });
    way.all(how != "engine");
}

fn role(how: &str) -> Option<Role> {
    match how {
        "engine" => Some(Role::Engine),
        "node" => Some(Role::Node),
        "gateway" => Some(Role::Gateway),
        _ => None,
    }
}

/// Something is open that must not be.
fn refused(how: &str, files: &Files, sockets: &[std::os::fd::BorrowedFd<'_>]) {
    let outside = ways::Addresses::from_environment();
    tell("begun", how);
    let confined = |sockets: &[std::os::fd::BorrowedFd<'_>]| match confine(Role::Gateway, files, sockets) {
        Ok(_) => "it goes on".to_owned(),
        Err(error) => error.to_string(),
    };
    match how {
        "older udp" => {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            tell("confined", &confined(sockets));
            tell("sendto", &ways::shown(udp.send_to(b"out", outside.udp).map(drop)));
        }
        "older upstream" => {
            let _upstream = TcpStream::connect(outside.tcp).unwrap();
            tell("confined", &confined(sockets));
        }
        "named upstream" => {
            let upstream = TcpStream::connect(outside.tcp).unwrap();
            tell("confined", &confined(&[upstream.as_fd()]));
        }
        "older io_uring" => match ways::io_uring() {
            Ok(_ring) => tell("confined", &confined(sockets)),
            Err(_) => tell("confined", "unavailable"),
        },
        "threads" => {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || ended.recv());
            tell("confined", &confined(sockets));
            drop(end);
            let _ended = thread.join();
        }
        other => panic!("{other}"),
    }
    let _path: PathBuf = outside.unix;
}
