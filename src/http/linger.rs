//! Closes a connection. If a socket is closed before its client has read everything, the unread
//! bytes stay in the kernel, where no permit counts them. A connection therefore keeps its permit
//! until the client has also closed it, and is reset after a timeout.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::permits::{ConnectionPermit, Eviction};

/// Timeout for a client to close a connection that listenq has closed.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum bytes that a client may send during that time.
const MOST_DISCARDED: u64 = 256 << 10;

/// A stream that can be closed in the background.
pub(super) trait Linger: AsyncRead + AsyncWrite + Unpin {
    /// Closes the stream, and drops the permit once the kernel holds no data of the stream. Without
    /// an eviction the stream is reset.
    fn linger(self, permit: Arc<ConnectionPermit>, eviction: Option<Eviction>);
}

impl Linger for TcpStream {
    fn linger(self, permit: Arc<ConnectionPermit>, eviction: Option<Eviction>) {
        match (eviction, Handle::try_current()) {
            (Some(eviction), Ok(runtime)) => {
                runtime.spawn(close(self, permit, eviction));
            }
            _ => reset(self),
        }
    }
}

async fn close(mut stream: TcpStream, _permit: Arc<ConnectionPermit>, eviction: Eviction) {
    let is_closed = tokio::select! {
        closed = timeout(LINGER_TIMEOUT, discard(&mut stream)) => matches!(closed, Ok(Ok(true))),
        _ = eviction => false,
    };
    if !is_closed {
        reset(stream);
    }
}

/// Sends FIN and reads until the client has sent its FIN; returns whether the client did.
async fn discard(stream: &mut TcpStream) -> io::Result<bool> {
    stream.shutdown().await?;
    let (mut buffer, mut left) = ([0; 1024], MOST_DISCARDED);
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(true),
            read => left = left.saturating_sub(read as u64),
        }
        if left == 0 {
            return Ok(false);
        }
    }
}

fn reset(stream: TcpStream) {
    // If this fails, the connection is closed and not reset; the kernel's own timeout ends it.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
