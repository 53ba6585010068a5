//! Requests about runs, what they left, certificates, and the ways between hosts.

use bytes::Bytes;

use crate::{
    Client, ClientError, Effect,
    frame::{Frame, Kind},
    link::{Call, Link},
    proto::{
        Answer, CertificateInfo, DriftReport, GiveProgram, KnockAt, Knocked, Listen, Request, RunEnd, RunMark, Undone,
    },
};
use std::sync::Arc;

type Result<T, E = ClientError> = std::result::Result<T, E>;

impl Client {
    /// Whether nothing of ours was on the host before. See [`Request::BeginRun`].
    ///
    /// # Errors
    /// All methods: [`ClientError`].
    pub async fn begin_run(&self, mark: RunMark, revertible: bool) -> Result<bool> {
        match self.ask(&Request::BeginRun { mark, revertible }).await? {
            Answer::Begun { fresh } => Ok(fresh),
            _ => Err(ClientError::Unexpected("beginRun")),
        }
    }

    /// See [`Request::EndRun`].
    pub async fn end_run(&self, how: RunEnd) -> Result<()> {
        self.ask(&Request::EndRun { how }).await.map(drop)
    }

    /// See [`Request::UndoRun`].
    pub async fn undo_run(&self) -> Result<Undone> {
        match self.ask(&Request::UndoRun).await? {
            Answer::Undone(undone) => Ok(undone),
            _ => Err(ClientError::Unexpected("undoRun")),
        }
    }

    /// See [`Request::Drift`].
    pub async fn drift(&self) -> Result<DriftReport> {
        match self.ask(&Request::Drift).await? {
            Answer::Drift(report) => Ok(report),
            _ => Err(ClientError::Unexpected("drift")),
        }
    }

    /// See [`Request::Applied`].
    pub async fn applied(&self) -> Result<Vec<Effect>> {
        match self.ask(&Request::Applied).await? {
            Answer::Applied(effects) => Ok(effects),
            _ => Err(ClientError::Unexpected("applied")),
        }
    }

    /// See [`Request::Certificates`].
    pub async fn certificates(&self) -> Result<Vec<CertificateInfo>> {
        match self.ask(&Request::Certificates).await? {
            Answer::Certificates(certificates) => Ok(certificates),
            _ => Err(ClientError::Unexpected("certificates")),
        }
    }

    /// Listens until the result is [ended](Ears::end) or dropped. Not asked again when the connection is lost. See [`Request::Listen`].
    pub async fn listen(&self, wish: Listen) -> Result<Ears> {
        self.ears(&Request::Listen(wish)).await
    }

    /// The host gives its own `clusterd` once, at the one port of the result, until that is [ended](Ears::end) or dropped. Not asked again when the
    /// connection is lost. See [`Request::GiveProgram`].
    pub async fn give_program(&self, wish: GiveProgram) -> Result<Ears> {
        self.ears(&Request::GiveProgram(wish)).await
    }

    async fn ears(&self, request: &Request) -> Result<Ears> {
        let link = self.link().await?;
        let mut call = link.begin(request).await?;
        match call.head().await? {
            Answer::Listening(ports) => Ok(Ears {
                ports,
                call,
                _link: link,
            }),
            _ => Err(ClientError::Unexpected(request.name())),
        }
    }

    /// One result per door, in order. See [`Request::Knock`].
    pub async fn knock(&self, wish: KnockAt) -> Result<Vec<Knocked>> {
        match self.ask(&Request::Knock(wish)).await? {
            Answer::Knocked(results) => Ok(results),
            _ => Err(ClientError::Unexpected("knock")),
        }
    }
}

/// A host listens; it stops when this is dropped.
pub struct Ears {
    /// On these ports.
    pub ports: Vec<u16>,
    call: Call,
    _link: Arc<Link>,
}

impl Ears {
    /// Stops listening: the ports are free when this returns.
    ///
    /// # Errors
    /// When the connection is lost, which ends the listening too; or why giving failed.
    pub async fn end(mut self) -> Result<()> {
        let end = Frame::new(Kind::End, self.call.id, Bytes::new());
        self.call.send(end).await?;
        match self.call.head().await? {
            Answer::Done => Ok(()),
            _ => Err(ClientError::Unexpected(self.call.name)),
        }
    }
}
