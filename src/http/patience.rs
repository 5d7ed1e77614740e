//! When a connection is given up: its client has left unread what is written to it for too long, or others need its
//! place. Trickling does not help: the time runs from the first write that had to wait until everything is written.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::limit::Eviction;

/// A stream whose writes fail when they have waited too long, and which is not read, nor waits to be written, once its
/// place is lost.
#[derive(Debug)]
pub(super) struct Patient<S> {
    stream: S,
    limit: Duration,
    /// Runs while something waits to be written.
    timer: Option<Pin<Box<Sleep>>>,
    /// `None` once the place is lost.
    eviction: Option<Eviction>,
}

// === impl Patient ===

impl<S: Unpin> Patient<S> {
    pub(super) fn new(stream: S, limit: Duration, eviction: Eviction) -> Self {
        Self { stream, limit, timer: None, eviction: Some(eviction) }
    }

    /// Fails once the place is lost.
    fn poll_place(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.eviction.as_mut().is_some_and(|eviction| Pin::new(eviction).poll(cx).is_ready()) {
            self.eviction = None;
        }
        match self.eviction {
            None => Err(ErrorKind::ConnectionAborted.into()),
            Some(_) => Ok(()),
        }
    }

    /// Passes on what became of a write, and fails one that waits for too long.
    fn wait<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(ErrorKind::TimedOut.into())),
            Poll::Pending => match self.poll_place(cx) {
                Ok(()) => Poll::Pending,
                Err(lost) => Poll::Ready(Err(lost)),
            },
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_place(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wait(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wait(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.timer = None;
        }
        self.wait(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.wait(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    fn on_a_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
    }

    #[test]
    fn whoever_reads_slowly_or_not_at_all_is_cut_in_time() {
        for gap in [Duration::from_secs(60), LIMIT / 10] {
            on_a_runtime(async {
                let (mut client, server) = duplex(16);
                let (_place, eviction) = oneshot::channel();
                let mut server = Patient::new(server, LIMIT, eviction);
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
    fn each_answer_has_its_own_time() {
        on_a_runtime(async {
            let (mut client, server) = duplex(16);
            let (_place, eviction) = oneshot::channel();
            let mut server = Patient::new(server, LIMIT, eviction);
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
    fn whoever_loses_the_place_is_cut_while_reading_and_while_writing() {
        on_a_runtime(async {
            for is_reading in [true, false] {
                let (_client, server) = duplex(16);
                let (place, eviction) = oneshot::channel();
                let mut server = Patient::new(server, LIMIT, eviction);
                let begin = Instant::now();
                let evict = async {
                    tokio::time::sleep(LIMIT / 10).await;
                    drop(place);
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
