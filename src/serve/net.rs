//! Connections: taken while the server runs, and brought to an end when it stops.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::app::{App, router};
use crate::error::{Error, Result};

/// Connections at a time; more wait to be taken.
const CONNECTIONS: usize = 4096;
/// A request's head must have come within this time of the last answer; so slow clients and idle connections go. A little
/// more than the 60 s after which nginx closes connections that it keeps.
const HEAD_TIME: Duration = Duration::from_secs(65);
/// Bytes of a request's head at most.
const HEAD_BYTES: usize = 64 << 10;
/// What answers get to reach their clients once the model has stopped.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// And connections to be closed, after that.
const CLOSING: Duration = Duration::from_secs(1);
/// The wait after a connection could not be taken, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A server on its address.
pub struct Server {
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
}

impl Server {
    /// Listens where the app's options say. Connections wait until [`Server::run`].
    ///
    /// # Errors
    /// [`Error::Config`] if the address cannot be had.
    pub async fn bind(app: App) -> Result<Server> {
        let app = Arc::new(app);
        let (host, port) = (app.options.host.clone(), app.options.port);
        let listener = TcpListener::bind((host.as_str(), port)).await;
        let listener =
            listener.map_err(|e| Error::config("--host", format!("{host} port {port} cannot be listened on: {e}")))?;
        Ok(Server { router: router(app.clone())?, app, listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// [`Error::Config`] if the system does not tell.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|e| Error::config("--port", e.to_string()))
    }

    /// The names of all that is served, the base first.
    pub fn models(&self) -> Vec<String> {
        self.app.models()
    }

    /// Answers until `stop` is ready. Then what runs is finished, within the options' time, while `/health` goes on to
    /// answer and everything else is refused. True if all was finished.
    pub async fn run(self, stop: impl Future<Output = ()>) -> bool {
        let (closing, close) = watch::channel(false);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut stopped = pin!(async {
            stop.await;
            self.app.close();
            let (app, limit) = (self.app.clone(), self.app.options.shutdown_timeout);
            tokio::task::spawn_blocking(move || app.engine.stop(limit)).await.unwrap_or(false)
        });
        let finished = loop {
            let place = tokio::select! {
                finished = &mut stopped => break finished,
                Ok(place) = places.clone().acquire_owned() => place,
            };
            let taken = tokio::select! {
                finished = &mut stopped => break finished,
                taken = self.listener.accept() => taken,
            };
            match taken {
                Ok((stream, _)) => {
                    let (router, close) = (self.router.clone(), close.clone());
                    tokio::spawn(async move {
                        connection(stream, router, close).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    log::warn!("a connection could not be taken: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        drop((self.listener, close));
        closing.send_replace(true);
        // What is under way counts; a connection on which nobody asks for anything is not waited for as long.
        let answered = tokio::time::timeout(LAST_BYTES, self.app.live.closed()).await.is_ok();
        // Closed when the last connection has dropped its end.
        drop(tokio::time::timeout(CLOSING, closing.closed()).await);
        finished && answered
    }
}

/// Serves one connection until it ends, or after the answer under way once `close` says so.
async fn connection(stream: TcpStream, router: Router, mut close: watch::Receiver<bool>) {
    // Pieces of an answer are not to wait for the next ones.
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = async { drop(close.wait_for(|closing| *closing).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = done {
        log::debug!("a connection ended: {e}");
    }
}
