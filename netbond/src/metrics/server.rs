//! The HTTP endpoint. It runs beside the controller, and whatever its clients do, it costs that little:
//! so many connections at a time, each of which is one short request and soon over, and what is answered
//! is read in another thread, and not again for every request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::warn;

use super::exposition::{Format, render};
use crate::{
    config::{Config, Problem, Problems},
    pins::Pins,
    status,
    tables::Tables,
};

/// The one resource.
const PATH: &str = "/metrics";
/// Clients at a time. Others wait until one of these is done.
const CONNECTIONS: usize = 16;
/// Connections that wait.
const BACKLOG: u32 = 64;
/// What a connection may take from its first to its last byte.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes and lines of a request's head.
const HEAD: usize = 8 << 10;
const HEADERS: usize = 64;
/// For how long an answer is given again: reading all takes milliseconds where there are many paths.
const KEPT: Duration = Duration::from_millis(250);
/// How long to wait after a connection could not be taken: descriptors have run out.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves metrics where the configuration says, or nowhere.
pub struct Endpoint {
    source: Arc<Source>,
    current: Option<Server>,
}

/// A listener that is bound and answers nobody yet.
pub struct Prepared(Change);

enum Change {
    None,
    Off,
    Listen(SocketAddr, TcpListener),
}

/// A running server; it ends when this is dropped, with all its connections.
struct Server {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    /// Serves nothing yet; reads what is pinned here.
    #[must_use]
    pub fn new(pins: Pins) -> Self {
        Self {
            source: Arc::new(Source {
                pins,
                kept: Mutex::default(),
            }),
            current: None,
        }
    }

    /// Does what the system may refuse of a configuration, read from `file`: takes its port. What is
    /// served now goes on.
    ///
    /// # Errors
    ///
    /// Where the port cannot be had: a [`Problems`].
    pub fn prepare(&self, config: &Config, file: &Path) -> Result<Prepared> {
        let current = self.current.as_ref();
        let Some(metrics) = config.metrics else {
            let change = current.map_or(Change::None, |_| Change::Off);
            return Ok(Prepared(change));
        };
        let address = metrics.listen;
        if current.is_some_and(|server| server.address == address) {
            return Ok(Prepared(Change::None));
        }
        let listener = listen(address, current).map_err(|error| Problems {
            file: file.display().to_string(),
            list: vec![Problem {
                line: metrics.line,
                message: refusal(address, &error),
            }],
        })?;
        Ok(Prepared(Change::Listen(address, listener)))
    }

    /// Answers one client on a stream that it came by, as a listener does.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn converse(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        converse(stream, self.source.clone()).await;
    }

    /// Answers at what was prepared, and no longer where it did before. Returns what is to be told of it;
    /// nothing where nothing changed.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn switch(&mut self, prepared: Prepared) -> Option<String> {
        match prepared.0 {
            Change::None => None,
            Change::Off => {
                self.current = None;
                Some("metrics no longer served".to_owned())
            }
            Change::Listen(address, listener) => {
                let listener = Arc::new(listener);
                let task = tokio::spawn(serve(listener.clone(), self.source.clone()));
                self.current = Some(Server {
                    address,
                    listener,
                    task,
                });
                Some(format!("metrics served at http://{address}{PATH}"))
            }
        }
    }
}

fn refusal(address: SocketAddr, error: &io::Error) -> String {
    let advice = if error.kind() == io::ErrorKind::AddrInUse {
        "another program has the port: stop it, or choose another one"
    } else {
        "choose another address or port"
    };
    format!("metrics: cannot listen on {address} ({error}): {advice}")
}

/// A listener on an address, which this host need not have yet.
///
/// Beside one of ours on the same port, which goes on until the new one takes its place: on the loopback
/// address, say, where the new one is on all. To the kernel they are in each other's way unless both share
/// the port (SO_REUSEPORT), which they do until both listen.
fn listen(address: SocketAddr, beside: Option<&Server>) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections that ended a minute ago are in nobody's way.
    socket.set_reuseaddr(true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    let Some(beside) = beside.filter(|server| server.address.port() == address.port()) else {
        socket.bind(address)?;
        return socket.listen(BACKLOG);
    };
    setsockopt(&beside.listener, sockopt::ReusePort, &true)?;
    socket.set_reuseport(true)?;
    let listener = socket.bind(address).and_then(|()| socket.listen(BACKLOG));
    setsockopt(&beside.listener, sockopt::ReusePort, &false)?;
    let listener = listener?;
    setsockopt(&listener, sockopt::ReusePort, &false)?;
    Ok(listener)
}

async fn serve(listener: Arc<TcpListener>, source: Arc<Source>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(timeout(DEADLINE, converse(stream, source.clone())));
            }
            Err(error) => {
                warn!("metrics: cannot take a connection: {error}");
                sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One request, one answer. What a client does wrong ends its connection, and is nobody else's matter.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, source: Arc<Source>) {
    let answer = service_fn(|request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, source).await) }
    });
    let _ = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

async fn answer(request: &Request<Incoming>, source: Arc<Source>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, format!("metrics are at {PATH}\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, String::new());
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    let accept = request.headers().get_all(ACCEPT).iter();
    let accept: Vec<&str> = accept.filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    let read = spawn_blocking(move || source.read(format)).await;
    match read.context("reading failed").and_then(|text| text) {
        Ok(text) => response(StatusCode::OK, format.content_type(), text),
        Err(error) => {
            let text = format!("{error:#}\n");
            plain(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text.into())
}

fn response(status: StatusCode, content_type: &'static str, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Where answers come from.
struct Source {
    pins: Pins,
    /// The last one of each format. Held while the next is made: there is one reader at a time.
    kept: Mutex<BTreeMap<Format, (Instant, Bytes)>>,
}

impl Source {
    /// All metrics, by what `netbond status` would say now, or did a moment ago.
    fn read(&self, format: Format) -> Result<Bytes> {
        // A panic elsewhere does not make what is kept wrong.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = kept.get(&format)
            && at.elapsed() < KEPT
        {
            return Ok(text.clone());
        }
        let tables = Tables::open(&self.pins)?;
        let status = status::collect(&tables, &self.pins)?;
        let text = render(Arc::new(status), format).context("writing the metrics")?;
        let text = Bytes::from(text);
        kept.insert(format, (Instant::now(), text.clone()));
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
