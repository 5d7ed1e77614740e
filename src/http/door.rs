//! How a connection comes in: it takes a place, TLS is spoken if the web configuration asks for it, and whoever does
//! not read, or loses the place, is not waited for.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower_http::add_extension::AddExtension;

use crate::web_config::Guarded;

use super::limit::{Place, Places};
use super::patience::Patient;
use super::{HEADER_TIMEOUT, READ_TIMEOUT};

/// Lets connections in.
#[derive(Clone, Debug)]
pub(super) struct Door {
    places: Places,
    guarded: Option<Guarded>,
}

/// A connection, with TLS or without.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

// === impl Door ===

impl Door {
    pub(super) fn new(places: Places, guarded: Option<Guarded>) -> Self {
        Self { places, guarded }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Door {
    type Stream = Patient<Stream>;
    type Service = AddExtension<S, Arc<Place>>;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let placed = self.places.take();
        let tls = self.guarded.as_ref().and_then(Guarded::tls);
        Box::pin(async move {
            // The place is in the service: given back also when the handshake comes to nothing.
            let (place, mut eviction) = placed?;
            let service = AddExtension::new(service, Arc::new(place));
            // What is still in the kernel's buffer when a connection is closed is not kept for ever either.
            set_tcp_user_timeout(&stream, READ_TIMEOUT.as_millis() as u32)?;
            let stream = match tls {
                None => Stream::Plain(stream),
                Some(tls) => {
                    let handshake = TlsAcceptor::from(tls).accept(stream);
                    tokio::select! {
                        shaken = timeout(HEADER_TIMEOUT, handshake) => Stream::Tls(Box::new(shaken??)),
                        _ = &mut eviction => return Err(ErrorKind::ConnectionAborted.into()),
                    }
                }
            };
            Ok((Patient::new(stream, READ_TIMEOUT, eviction), service))
        })
    }
}

// === impl Stream ===

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
