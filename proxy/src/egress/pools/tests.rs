//! Against servers of HTTP/2 and HTTP/1.1 in this process, over TCP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::Reason;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::client::legacy::connect::{Connected, HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::super::{SendError, tcp};
use super::*;

/// What was agreed on without TLS.
#[derive(Debug, Clone)]
struct Agreed {
    connector: HttpConnector,
    is_http2: bool,
}

#[derive(Debug)]
struct Stream {
    inner: TokioIo<TcpStream>,
    is_http2: bool,
}

impl Service<Uri> for Agreed {
    type Response = Stream;
    type Error = ConnectError;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.connector.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, is_http2) = (self.connector.call(uri), self.is_http2);
        Box::pin(async move { Ok(Stream { inner: connecting.await?, is_http2 }) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        if self.is_http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

fn pools(is_http2: bool) -> Pools<Agreed> {
    Pools::new(Agreed { connector: tcp(), is_http2 }, None)
}

fn post(to: SocketAddr, body: &'static [u8]) -> Request<Bytes> {
    Request::post(format!("http://{to}/")).body(Bytes::from_static(body)).unwrap()
}

async fn text(response: Response<Received>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Says what it is told, over `per_connection` requests of HTTP/2 each time somebody connects; returns how many have, and how many
/// of those connections have ended.
async fn echoes(per_connection: usize) -> (SocketAddr, Arc<[AtomicUsize; 2]>) {
    let (listener, address) = listener().await;
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = counts.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted[0].fetch_add(1, Ordering::SeqCst);
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut left = per_connection;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    left -= 1;
                    if left == 0 {
                        connection.graceful_shutdown();
                    }
                    tokio::spawn(async move {
                        let told = request.headers().get("content-length").cloned();
                        let mut body = request.into_body();
                        let mut all = Vec::new();
                        while let Some(data) = body.data().await {
                            let data = data.unwrap();
                            body.flow_control().release_capacity(data.len()).unwrap();
                            all.extend_from_slice(&data);
                        }
                        assert_eq!(told.map(|told| told.to_str().unwrap().parse().unwrap()), Some(all.len()));
                        let mut sending = respond.send_response(Response::new(()), false).unwrap();
                        sending.send_data(all.into(), true).unwrap();
                    });
                }
                counted[1].fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, counts)
}

async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 10 s");
}

#[tokio::test]
async fn no_connection_has_more_under_way_than_its_window_has_room_for() {
    let pools = pools(true);
    let under_way = || -> Vec<usize> { lock(&pools.made[0]).pools.iter().map(Pool::under_way).collect() };
    let mut seats: Vec<Seat> = (0..150).map(|_| pools.take(0).1).collect();
    assert_eq!(under_way(), [64, 64, 22]);
    assert!(CONNECTION_WINDOW as usize >= REQUESTS_OF_A_POOL * http2::STREAM_WINDOW as usize);
    // Those of the first connection end; what comes next takes their seats.
    seats.drain(..60);
    seats.extend((0..40).map(|_| pools.take(0).1));
    assert_eq!(under_way(), [44, 64, 22]);
}

#[tokio::test]
async fn a_worker_opens_connections_of_its_own_when_those_of_others_are_in_use() {
    let pools = pools(true);
    let made = || -> Vec<usize> { pools.made.iter().map(|made| lock(made).pools.len()).collect() };
    drop(pools.take(0));
    // Nobody uses that one.
    drop(pools.take(1));
    assert_eq!(made()[..2], [1, 0]);
    let in_use = pools.take(0);
    drop(pools.take(1));
    assert_eq!(made()[..2], [1, 1]);
    // From now on it has its own.
    drop(in_use);
    let _own = pools.take(1);
    assert_eq!(lock(&pools.made[1]).pools[0].under_way(), 1);
}

#[tokio::test]
async fn many_requests_share_one_connection_that_is_opened_once_and_ends_when_nobody_can_use_it() {
    let (address, counts) = echoes(usize::MAX).await;
    let pools = Arc::new(pools(true));
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let pools = pools.clone();
            tokio::spawn(async move { text(pools.request(post(address, b"one of many")).await.unwrap()).await })
        })
        .collect();
    for answer in asking {
        assert_eq!(answer.await.unwrap(), "one of many");
    }
    // A body that does not fit into the window of the other side.
    let long: &'static [u8] = vec![b'x'; 1 << 20].leak();
    assert_eq!(text(pools.request(post(address, long)).await.unwrap()).await, long);
    assert_eq!(counts[0].load(Ordering::SeqCst), 1);
    assert_eq!(counts[1].load(Ordering::SeqCst), 0);
    drop(pools);
    until(|| counts[1].load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_connection_that_has_ended_is_replaced() {
    let (address, counts) = echoes(2).await;
    let pools = pools(true);
    for round in 0..6 {
        assert_eq!(text(pools.request(post(address, b"again")).await.unwrap()).await, "again", "{round}");
        // Time to hear that it ends.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(counts[0].load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_connection_that_nobody_used_for_long_ends() {
    let (address, counts) = echoes(usize::MAX).await;
    let pools = pools(true);
    let answer = pools.request(post(address, b"once")).await.unwrap();
    let (line, _) = pools.take(0);
    line.forget_if_idle();
    assert!(line.lock().way.is_some(), "it was used just now");
    line.lock().used = Instant::now().checked_sub(IDLE_FOR).unwrap();
    line.forget_if_idle();
    // What is under way goes on.
    assert_eq!(text(answer).await, "once");
    until(|| counts[1].load(Ordering::SeqCst) == 1).await;
    assert_eq!(text(pools.request(post(address, b"anew")).await.unwrap()).await, "anew");
    assert_eq!(counts[0].load(Ordering::SeqCst), 2);
}

/// Answers the first request after so long, and until then nothing else if it is `silent`, not even pings.
async fn answers_late(after: Duration, silent: bool) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        if silent {
            tokio::time::sleep(after).await;
        } else {
            let _going_on = tokio::time::timeout(after, connection.accept()).await;
        }
        respond.send_response(Response::new(()), true).unwrap();
        while connection.accept().await.is_some() {}
    });
    address
}

#[tokio::test]
async fn who_answers_no_pings_is_not_waited_for_and_who_does_is() {
    let often = Some(Duration::from_millis(100));
    let pools = || Pools::new(Agreed { connector: tcp(), is_http2: true }, often);
    let late = answers_late(Duration::from_secs(1), false).await;
    assert!(pools().request(post(late, b"slow")).await.is_ok());
    let dead = answers_late(Duration::from_secs(60), true).await;
    let (pools, asked) = (pools(), tokio::time::Instant::now());
    let answered = tokio::time::timeout(Duration::from_secs(30), pools.request(post(dead, b"gone"))).await;
    assert_eq!(answered.unwrap().map(drop).map_err(SendError::from), Err(SendError::Broken), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn what_is_dropped_before_its_end_is_cancelled() {
    let (listener, address) = listener().await;
    let (sender, cancelled) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut sending = respond.send_response(Response::new(()), false).unwrap();
        tokio::spawn(async move { connection.accept().await.map(drop) });
        let reason = std::future::poll_fn(|context| sending.poll_reset(context)).await;
        let _heard = sender.send(reason.unwrap());
    });
    let pools = pools(true);
    drop(pools.request(post(address, b"never mind")).await.unwrap());
    assert_eq!(cancelled.await.unwrap(), Reason::CANCEL);
}

#[tokio::test]
async fn a_request_that_was_not_looked_at_is_told_apart() {
    for (reason, expected) in
        [(Reason::REFUSED_STREAM, SendError::NotTaken), (Reason::INTERNAL_ERROR, SendError::Broken)]
    {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(reason);
            }
        });
        let error = pools(true).request(post(address, b"")).await.unwrap_err();
        assert_eq!(SendError::from(error), expected);
    }
}

#[tokio::test]
async fn what_the_other_side_says_when_it_ends_a_connection_is_in_no_log() {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let said = b"you asked about herons";
        // SETTINGS, and GOAWAY before any stream, with INTERNAL_ERROR and words of its own (RFC 9113, 6.5 and 6.8).
        let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
        frames.extend([0, 0, 8 + said.len() as u8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        frames.extend(said);
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(&frames).await.unwrap();
        let _until_the_end = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = pools(true).request(post(address, b"herons?")).await.unwrap_err();
    let words = super::super::in_words(&error);
    assert!(words.contains("HTTP/2: ") && !words.contains("herons"), "{words}");
}

/// An answer that breaks off is none, whatever reason the other side gives for it.
#[tokio::test]
async fn an_answer_that_breaks_off_is_not_whole() {
    for (reason, is_whole) in [(Reason::CANCEL, false), (Reason::INTERNAL_ERROR, false), (Reason::NO_ERROR, true)] {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut sending = respond.send_response(Response::new(()), false).unwrap();
                sending.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    sending.send_reset(reason);
                });
            }
        });
        let response = pools(true).request(post(address, b"tell")).await.unwrap();
        assert_eq!(response.into_body().collect().await.is_ok(), is_whole, "{reason}");
    }
}

#[tokio::test]
async fn over_http1_the_connection_that_told_so_is_used() {
    let (listener, address) = listener().await;
    let counts = Arc::new(AtomicUsize::new(0));
    let counted = counts.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let echo = service_fn(|request: Request<Incoming>| async {
                Ok::<_, hyper::Error>(Response::new(Full::new(request.into_body().collect().await?.to_bytes())))
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .http1_only()
                    .serve_connection(TokioIo::new(stream), echo)
                    .into_owned(),
            );
        }
    });
    let pools = pools(false);
    for _ in 0..3 {
        assert_eq!(text(pools.request(post(address, b"as ever")).await.unwrap()).await, "as ever");
    }
    assert_eq!(counts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn all_who_wait_for_a_connection_learn_why_there_is_none() {
    let (listener, address) = listener().await;
    drop(listener);
    let pools = Arc::new(pools(true));
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let pools = pools.clone();
            tokio::spawn(async move { pools.request(post(address, b"anybody?")).await.unwrap_err() })
        })
        .collect();
    for error in asking {
        let error = error.await.unwrap();
        assert!(error.is_connect());
        assert!(super::super::in_words(&error).contains("Connection refused"), "{error}");
        assert_eq!(SendError::from(error), SendError::Connect);
    }
}
