//! Ends a connection whose client does not read, or whose permit is revoked. Other connections are
//! closed so that the kernel keeps none of their data. A client cannot extend the time by reading a
//! little: the time runs from the first write that blocks until everything is written.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::linger::Linger;
use super::permits::{ConnectionPermit, Eviction};

/// A stream whose writes fail after they have waited for the limit, and whose reads and writes fail
/// once the permit is revoked.
#[derive(Debug)]
pub(super) struct WriteTimeout<S: Linger> {
    /// `None` once it is dropped.
    stream: Option<S>,
    limit: Duration,
    /// Runs while a write waits.
    timer: Option<Pin<Box<Sleep>>>,
    permit: Arc<ConnectionPermit>,
    /// `None` once the connection is to be reset.
    eviction: Option<Eviction>,
}

// === impl WriteTimeout ===

impl<S: Linger> WriteTimeout<S> {
    pub(super) fn new(
        stream: S,
        limit: Duration,
        permit: Arc<ConnectionPermit>,
        eviction: Eviction,
    ) -> Self {
        Self { stream: Some(stream), limit, timer: None, permit, eviction: Some(eviction) }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| ErrorKind::NotConnected.into())
    }

    /// Fails once the permit is revoked.
    fn poll_permit(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.eviction.as_mut().is_some_and(|eviction| Pin::new(eviction).poll(cx).is_ready()) {
            self.eviction = None;
        }
        match self.eviction {
            None => Err(ErrorKind::ConnectionAborted.into()),
            Some(_) => Ok(()),
        }
    }

    /// Returns the result of a write; fails once the write has waited for the limit.
    fn wait<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        self.permit.write_blocked();
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.eviction = None;
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
            Poll::Pending => match self.poll_permit(cx) {
                Ok(()) => Poll::Pending,
                Err(revoked) => Poll::Ready(Err(revoked)),
            },
        }
    }
}

impl<S: Linger> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_permit(cx)?;
        self.stream()?.poll_read(cx, buf)
    }
}

impl<S: Linger> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write(cx, buf);
        self.wait(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write_vectored(cx, bufs);
        self.wait(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream()?.poll_flush(cx);
        if flushed.is_ready() {
            self.timer = None;
            self.permit.write_flushed();
        }
        self.wait(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.stream()?.poll_shutdown(cx);
        self.wait(cx, shut)
    }
}

impl<S: Linger> Drop for WriteTimeout<S> {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.linger(Arc::clone(&self.permit), self.eviction.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::super::permits::ConnectionPermits;
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    impl Linger for DuplexStream {
        fn linger(self, _: Arc<ConnectionPermit>, _: Option<Eviction>) {}
    }

    /// A stream under test, its other end, and a function that revokes its permit.
    fn connection() -> (DuplexStream, WriteTimeout<DuplexStream>, impl FnOnce()) {
        let (client, server) = duplex(16);
        let permits = ConnectionPermits::new(1);
        let (permit, eviction) = permits.take(Default::default()).unwrap();
        let revoke = move || drop(permits.take(Default::default()).unwrap());
        (client, WriteTimeout::new(server, LIMIT, permit.into(), eviction), revoke)
    }

    fn on_a_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
    }

    #[test]
    fn a_client_that_reads_slowly_or_not_at_all_is_disconnected_in_time() {
        for gap in [Duration::from_secs(60), LIMIT / 10] {
            on_a_runtime(async {
                let (mut client, mut server, _) = connection();
                let trickle = async {
                    loop {
                        tokio::time::sleep(gap).await;
                        client.read_u8().await.unwrap();
                    }
                };
                let begin = Instant::now();
                let written = tokio::select! {
                    written = server.write_all(&[0; 4096]) => written,
                    () = trickle => unreachable!(),
                };
                assert_eq!(written.unwrap_err().kind(), ErrorKind::TimedOut);
                assert!((LIMIT..4 * LIMIT).contains(&begin.elapsed()), "{:?}", begin.elapsed());
            });
        }
    }

    #[test]
    fn each_answer_has_a_time_limit_of_its_own() {
        on_a_runtime(async {
            let (mut client, mut server, _) = connection();
            let write = async {
                for _ in 0..5 {
                    server.write_all(&[0; 32]).await?;
                    server.flush().await?;
                }
                io::Result::Ok(())
            };
            let read = async {
                for _ in 0..10 {
                    tokio::time::sleep(LIMIT / 4).await;
                    client.read_exact(&mut [0; 16]).await.unwrap();
                }
            };
            let (written, ()) = tokio::join!(write, read);
            written.unwrap();
        });
    }

    #[test]
    fn a_connection_ends_while_it_reads_or_writes_when_its_permit_is_revoked() {
        on_a_runtime(async {
            for is_reading in [true, false] {
                let (_client, mut server, revoke) = connection();
                let begin = Instant::now();
                let evict = async {
                    tokio::time::sleep(LIMIT / 10).await;
                    revoke();
                };
                let work = async {
                    match is_reading {
                        true => server.read_u8().await.map(drop),
                        false => server.write_all(&[0; 32]).await,
                    }
                };
                let (done, ()) = tokio::join!(work, evict);
                assert_eq!(done.unwrap_err().kind(), ErrorKind::ConnectionAborted);
                assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
                assert_eq!(
                    server.read_u8().await.unwrap_err().kind(),
                    ErrorKind::ConnectionAborted
                );
            }
        });
    }
}
