//! What code is made for: a machine's own processor, any machine of one architecture, or Pulley, an interpreter that
//! runs everywhere.

use std::fmt;
use std::str::FromStr;

use crate::RUNTIME_VERSION;

/// Counts changes in what is made of a program, or in the settings that it is compiled with: code of another generation
/// is not used.
const GENERATION: u32 = 1;

/// What the code of a program is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Code {
    /// The machine's own processor.
    #[default]
    Native,
    /// Any processor: bytecode of Pulley, which is interpreted. It computes 4 to 11 times as long.
    Pulley,
}

impl Code {
    /// The settings of such code for this machine, as those are asked for it who compile elsewhere.
    pub fn settings(self) -> CodeSettings {
        let name = match self {
            Self::Native => std::env::consts::ARCH,
            Self::Pulley => pulley_here(),
        };
        CodeSettings { version: version(), target: name.to_owned() }
    }
}

/// The Pulley that this machine runs: bytecode knows how wide addresses are.
fn pulley_here() -> &'static str {
    if cfg!(target_pointer_width = "32") { PULLEY_32 } else { PULLEY_64 }
}

const PULLEY_64: &str = "pulley64";
const PULLEY_32: &str = "pulley32";

/// For whom one program is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This very machine, with all that its processor can do.
    Host,
    /// Any machine of this one's architecture.
    Architecture,
    /// Pulley, for addresses of so many bits.
    Pulley(u8),
}

impl Target {
    /// What this node runs itself.
    pub(crate) fn here(code: Code) -> Self {
        match code {
            Code::Native => Self::Host,
            Code::Pulley if pulley_here() == PULLEY_32 => Self::Pulley(32),
            Code::Pulley => Self::Pulley(64),
        }
    }

    #[cfg(feature = "compiler")]
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Host | Self::Architecture => Code::Native,
            Self::Pulley(_) => Code::Pulley,
        }
    }

    /// As the engine is told; nothing for this very machine.
    pub(crate) fn triple(&self) -> Option<String> {
        match self {
            Self::Host => None,
            Self::Architecture => Some(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)),
            Self::Pulley(_) => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Architecture => f.write_str(std::env::consts::ARCH),
            Self::Pulley(bits) => write!(f, "pulley{bits}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            std::env::consts::ARCH => Ok(Self::Architecture),
            PULLEY_64 => Ok(Self::Pulley(64)),
            PULLEY_32 => Ok(Self::Pulley(32)),
            _ => {
                let here = std::env::consts::ARCH;
                Err(format!("`{text}` is none of `host`, `{here}`, `{PULLEY_64}` and `{PULLEY_32}`"))
            }
        }
    }
}

/// What must agree between those who compile and those who run: the version of the engine and its settings, and the
/// target. As text `48.0.8-1-x86_64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeSettings {
    version: String,
    target: String,
}

fn version() -> String {
    format!("{RUNTIME_VERSION}-{GENERATION}")
}

impl CodeSettings {
    /// Whom this compiler has to compile for. Fails, in words for who asked, if it cannot.
    pub(crate) fn target(&self) -> Result<Target, String> {
        let own = version();
        if self.version != own {
            let wanted = &self.version;
            return Err(format!(
                "it is of the version `{own}`, and `{wanted}` is asked for: run one version of dhow on both"
            ));
        }
        match self.target.parse() {
            Ok(Target::Host) | Err(_) => {
                let (target, here) = (&self.target, std::env::consts::ARCH);
                Err(format!("it compiles for `{here}` and Pulley, not for `{target}`"))
            }
            Ok(target) => Ok(target),
        }
    }
}

impl fmt::Display for CodeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.version, self.target)
    }
}

impl FromStr for CodeSettings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        match text.rsplit_once('-') {
            Some((version, target)) if !version.is_empty() && !target.is_empty() && text.chars().all(plain) => {
                Ok(Self { version: version.to_owned(), target: target.to_owned() })
            }
            _ => Err(format!("`{text}` is not of the form VERSION-GENERATION-TARGET")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_text_and_say_who_can_make_them() {
        for code in [Code::Native, Code::Pulley] {
            let settings = code.settings();
            let target = settings.target().unwrap();
            assert_eq!((target.code(), settings.to_string().parse()), (code, Ok(settings)));
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        let own = version();
        for (text, part) in [
            ("1.2.3-1-pulley64".to_owned(), "`1.2.3-1` is asked for"),
            (format!("{own}-vax"), "not for `vax`"),
            (format!("{own}-host"), "not for `host`"),
        ] {
            let why = text.parse::<CodeSettings>().unwrap().target().unwrap_err();
            assert!(why.contains(part), "{why}");
        }
        for text in ["", "x", "-x", "x-", "../x-y", "a b-c"] {
            assert!(text.parse::<CodeSettings>().is_err(), "{text}");
        }
    }
}
