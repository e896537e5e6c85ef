//! Those who only open connections keep nobody else out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use postern_tests::{BusyCloud, Postern};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::{SOON, config};

/// As in the gateway: handshakes at a time from one address, and connections to the admin address.
const HANDSHAKES_PER_ADDRESS: usize = 128;
const ADMIN_PER_ADDRESS: usize = 64;

/// Another machine of this network, as far as the gateway can see.
const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

async fn silent(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    Ok(socket.connect(to).await?)
}

/// True if the other side closes the connection at once.
async fn is_turned_away(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut [0; 1])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn handshakes_that_do_not_come_to_an_end_keep_out_their_own_address_only() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    let mut connected = client.connection().await?;
    let mut held = Vec::new();
    for _ in 0..HANDSHAKES_PER_ADDRESS {
        held.push(silent(NEIGHBOUR, postern.gateway).await?);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_turned_away(&mut silent(NEIGHBOUR, postern.gateway).await?).await {
        assert!(Instant::now() < deadline, "one address may begin any number of handshakes");
    }
    assert!(postern.metrics().await?.sum("postern_handshakes_failed_total", &[("reason", "too_many")]) >= 1.0);
    // Who is in stays in, and others come in.
    assert_eq!(connected.chat("Am I still connected?").await?.status, 200);
    assert_eq!(client.chat("May I come in?").await?.status, 200);
    // The places are given back when nobody has said anything for as long as a handshake may take.
    let deadline = Instant::now() + SOON;
    while is_turned_away(&mut silent(NEIGHBOUR, postern.gateway).await?).await {
        assert!(Instant::now() < deadline, "the places are not given back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(held);
    Ok(())
}

#[tokio::test]
async fn operators_are_not_kept_out_by_one_that_only_opens_connections() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let mut held = Vec::new();
    for _ in 0..ADMIN_PER_ADDRESS {
        held.push(silent(NEIGHBOUR, postern.admin).await?);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_turned_away(&mut silent(NEIGHBOUR, postern.admin).await?).await {
        assert!(Instant::now() < deadline, "one address may take any number of places");
    }
    assert_eq!(postern.admin("/livez").await?.status, 200);
    assert_eq!(postern.client("clerk/amy")?.chat("Does it concern me?").await?.status, 200);
    drop(held);
    let deadline = Instant::now() + SOON;
    while is_turned_away(&mut silent(NEIGHBOUR, postern.admin).await?).await {
        assert!(Instant::now() < deadline, "the places are not given back");
    }
    Ok(())
}

#[tokio::test]
async fn who_is_silent_on_the_admin_address_is_let_go() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let mut slow = silent(NEIGHBOUR, postern.admin).await?;
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: loc").await?;
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(SOON, slow.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "it may hold its place for ever");
    assert!(!String::from_utf8_lossy(&answer).contains("200"), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn the_version_of_http_is_the_one_of_the_handshake() -> Result<()> {
    let cloud = BusyCloud::start().await?;
    let postern = Postern::start(&config(&cloud)).await?;
    let client = postern.client("clerk/amy")?;
    // HTTP/1.1 was agreed on; what begins like HTTP/2 (RFC 9113, section 3.4) is no request of it.
    let mut raw = client.raw().await?;
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await?;
    let answer = raw.read_to_end(SOON).await?;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(client.chat("And now?").await?.version, http::Version::HTTP_11);
    assert_eq!(client.http2().chat("And then?").await?.version, http::Version::HTTP_2);
    Ok(())
}
