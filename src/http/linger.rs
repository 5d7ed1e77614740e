//! Closes a connection. A socket that is closed while its client has not read everything keeps the unread bytes in the
//! kernel, where no permit counts them: a connection keeps its permit until the client has closed it too, and is reset when
//! that takes too long.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::permits::{ConnectionPermit, Eviction};

/// How long a client may take to close a connection that was closed here.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that a client may send meanwhile.
const MOST_DISCARDED: u64 = 256 << 10;

/// A stream that is closed in the background.
pub(super) trait Linger: AsyncRead + AsyncWrite + Unpin {
    /// Closes the stream, and drops the permit when the kernel holds nothing of it. Without an eviction it is reset.
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

/// Sends the end of the stream and reads until the client has sent its own; whether it did.
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
    // Where this fails the connection is closed and not reset, which the kernel's own timeout ends.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
