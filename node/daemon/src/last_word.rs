//! What a container leaves to be read after its end: `terminationMessagePath` and `terminationMessagePolicy`.

use std::path::{Path, PathBuf};

use dhow_agent::files::{self, MESSAGE_LOG_BYTES_MAX, MESSAGE_LOG_LINES};
use dhow_runtime_contract::Exit;
use k8s_openapi::api::core::v1::Container;

use crate::logs;
use crate::view::{Located, View};

/// Where one attempt of a container may leave a message.
pub(crate) struct LastWord {
    file: Option<Located>,
    /// The log that stands in for a message.
    log: Option<PathBuf>,
    /// What was made for this attempt alone.
    private: PathBuf,
}

impl LastWord {
    pub(crate) fn of(container: &Container, view: &View, private: PathBuf, log: &Path) -> Self {
        let log = files::falls_back_to_log(container).then(|| log.to_owned());
        Self { file: view.locate(files::message_path(container)), log, private }
    }

    /// The message of the attempt, which has ended. What was made for it alone goes.
    pub(crate) async fn hear(self, exit: &Exit) -> String {
        let Self { file, log, private } = self;
        // Most never looked at their files: nothing was made.
        let left = match file.filter(Located::may_exist) {
            None => String::new(),
            Some(file) => tokio::task::spawn_blocking(move || file.read_end()).await.unwrap_or_default(),
        };
        let log = match log.filter(|_| left.is_empty() && exit.code != 0) {
            None => String::new(),
            Some(log) => logs::end_of(&log, MESSAGE_LOG_LINES, MESSAGE_LOG_BYTES_MAX).await.unwrap_or_default(),
        };
        remove_private(private).await;
        files::message(exit, left, log)
    }
}

/// Removes what was made for one attempt of a container alone, if anything was.
pub(crate) async fn remove_private(private: PathBuf) {
    if !private.exists() {
        return;
    }
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&private)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, "a container's own files could not be removed");
    }
}
