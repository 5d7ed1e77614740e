//! Accepts a connection: takes a permit, sets small kernel buffers, and does the TLS handshake if
//! the web configuration requires TLS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;

use axum_server::accept::Accept;
use rustix::net::sockopt::set_tcp_user_timeout;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tower_http::add_extension::AddExtension;

use crate::web_config::LiveWebConfig;

use super::permits::{ConnectionPermit, ConnectionPermits};
use super::write_timeout::WriteTimeout;
use super::{HEADER_TIMEOUT, READ_TIMEOUT};

/// Size of a connection's kernel buffer; the kernel reserves twice as much memory. Buffers count
/// towards listenq's cgroup.
const RECEIVE_BUFFER: usize = 8 << 10;
const SEND_BUFFER: usize = 16 << 10;
/// Size of the large send buffer of a few connections, so that a scrape over a long distance is
/// fast.
const LARGE_SEND_BUFFER: usize = 192 << 10;
/// Bytes that TLS encrypts ahead.
const TLS_BUFFER: usize = 16 << 10;

/// Accepts connections.
#[derive(Clone, Debug)]
pub(super) struct Acceptor {
    permits: ConnectionPermits,
    config: Option<LiveWebConfig>,
}

/// A connection, plain or with TLS.
pub(super) type Stream = Either<Client, Box<TlsStream<Client>>>;
type Client = WriteTimeout<TcpStream>;

/// Sets small buffers for all connections of a listener, before any byte is received on them.
pub(super) fn limit_buffers(listener: &TcpListener) -> io::Result<()> {
    let listener = SockRef::from(listener);
    listener.set_recv_buffer_size(RECEIVE_BUFFER)?;
    listener.set_send_buffer_size(SEND_BUFFER)
}

// === impl Acceptor ===

impl Acceptor {
    pub(super) fn new(permits: ConnectionPermits, config: Option<LiveWebConfig>) -> Self {
        Self { permits, config }
    }

    /// Takes a permit and prepares the socket.
    fn admit(&self, stream: TcpStream) -> io::Result<(Client, Arc<ConnectionPermit>)> {
        let unknown = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let address = stream.peer_addr().as_ref().map_or(unknown, SocketAddr::ip);
        let (permit, eviction) = self.permits.take(address.into())?;
        // Limits how long the kernel keeps unacknowledged data of a closed connection.
        set_tcp_user_timeout(&stream, READ_TIMEOUT.as_millis() as u32)?;
        if permit.has_large_buffer() {
            SockRef::from(&stream).set_send_buffer_size(LARGE_SEND_BUFFER)?;
        }
        let permit = Arc::new(permit);
        Ok((WriteTimeout::new(stream, READ_TIMEOUT, Arc::clone(&permit), eviction), permit))
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Acceptor {
    type Stream = Stream;
    type Service = AddExtension<S, Arc<ConnectionPermit>>;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let admitted = self.admit(stream);
        let tls = self.config.as_ref().and_then(LiveWebConfig::tls);
        Box::pin(async move {
            let (client, permit) = admitted?;
            let service = AddExtension::new(service, permit);
            let Some(tls) = tls else { return Ok((Either::Left(client), service)) };
            let limit = |tls: &mut rustls::ServerConnection| tls.set_buffer_limit(Some(TLS_BUFFER));
            let handshake = TlsAcceptor::from(tls).accept_with(client, limit);
            let stream = timeout(HEADER_TIMEOUT, handshake).await??;
            Ok((Either::Right(Box::new(stream)), service))
        })
    }
}
