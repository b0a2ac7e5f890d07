//! What the end of an `exec` says.

use serde_json::Value as Tree;

/// Why a command did not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotRun(pub String);

/// The exit code of a command, of the `Status` at the end of its session.
pub fn exit_code(status: &Tree) -> Result<i32, NotRun> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code =
        causes.into_iter().find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str());
    match code.and_then(|code| code.parse().ok()).filter(|_| status["reason"] == "NonZeroExitCode") {
        Some(code) => Ok(code),
        None => Err(NotRun(status["message"].as_str().unwrap_or("the command could not be run").to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_end_says_the_code_or_why_there_is_none() {
        let ended = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "137"}]}});
        assert_eq!(exit_code(&ended), Ok(137));
        assert_eq!(exit_code(&json!({"status": "Success"})), Ok(0));
        let failed = json!({"status": "Failure", "reason": "InternalError", "message": "no such program"});
        assert_eq!(exit_code(&failed), Err(NotRun("no such program".to_owned())));
        assert!(exit_code(&json!({})).is_err());
    }
}
