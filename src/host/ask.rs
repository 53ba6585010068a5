//! Requests about runs, what they left, and certificates.

use crate::{
    Client, ClientError, Effect,
    proto::{Answer, CertificateInfo, DriftReport, Request, RunEnd, RunMark, Undone},
};

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
}
