//! The client of the control API: one request, one answer, over the Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use crate::api::{Envelope, Failed, Refusal};

/// Time for an answer; an import of many keys is what takes longest.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Why there is no answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no daemon answers on {}: {source}; start it with `enforcer run`, or name its socket with --socket", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The error of the call.
        source: io::Error,
    },
    /// The socket's file does not let this user in.
    #[error("the control socket {} is not open to this user: run as root, or join the group `enforcer` to read", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
    /// The daemon refused.
    #[error("{}", refused(refusal))]
    Refused {
        /// How.
        status: StatusCode,
        /// Why.
        refusal: Refusal,
    },
    /// The daemon did not answer as its API says.
    #[error("the daemon on {} did not answer as expected: {reason}", socket.display())]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What was unexpected.
        reason: String,
    },
}

fn refused(refusal: &Refusal) -> String {
    let Refusal { message, field, accepted } = refusal;
    match (field, accepted) {
        (Some(field), Some(accepted)) => format!("{message} (field {field}; accepted: {accepted})"),
        (Some(field), None) => format!("{message} (field {field})"),
        (None, _) => message.clone(),
    }
}

impl Error {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 4,
            Self::Permission { .. } => 5,
            Self::Refused { status, .. } => match *status {
                StatusCode::FORBIDDEN => 5,
                StatusCode::NOT_FOUND => 6,
                status if status.is_client_error() => 2,
                _ => 1,
            },
            Self::Protocol { .. } => 1,
        }
    }
}

/// A daemon's socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon that listens on `socket`; nothing is connected yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for what lies at `path`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Envelope<T>, Error> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Sends `body` to `path`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Envelope<T>, Error> {
        let body = serde_json::to_vec(body).map_err(|error| self.protocol(&error))?;
        // The buffer is zeroed when hyper drops it: it may hold keys.
        self.request(method, path, Bytes::from_owner(Zeroizing::new(body))).await
    }

    /// Does what `method` and `path` say, without a body.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn act<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<Envelope<T>, Error> {
        self.request(method, path, Bytes::new()).await
    }

    fn protocol(&self, reason: &dyn ToString) -> Error {
        Error::Protocol { socket: self.socket.clone(), reason: reason.to_string() }
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Error> {
        match tokio::time::timeout(TIMEOUT, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.protocol(&format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Error> {
        let socket = &self.socket;
        let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => Error::Permission { socket: socket.clone() },
            _ => Error::Unreachable { socket: socket.clone(), source },
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.protocol(&error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "enforcer")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.protocol(&error))?;
        let response = sender.send_request(request).await.map_err(|error| self.protocol(&error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.protocol(&error))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.protocol(&error));
        }
        let Failed { error: refusal } =
            serde_json::from_slice(&body).map_err(|_| self.protocol(&format!("{status} without a reason")))?;
        Err(Error::Refused { status, refusal })
    }
}
