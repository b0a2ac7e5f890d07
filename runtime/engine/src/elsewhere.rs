//! Code that somebody else compiles: what an engine asks for, and what it takes.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use crate::target::CodeSettings;

/// A program whose code is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The program's file.
    pub wasm: PathBuf,
    /// The digest of what is in it.
    pub digest: String,
    /// Code of which settings can be used, the best first.
    pub settings: Vec<CodeSettings>,
    /// The file that the code is to be in, in a directory of the engine's own.
    pub to: PathBuf,
}

/// Code that has come.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// What the compiler calls it: for which entry point and for whom it was made.
    pub kind: String,
}

/// Why no code has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDelivered {
    /// The program cannot be compiled; in words for the Pod's owner.
    Refused(String),
    /// Nobody could be asked, or what came cannot be believed.
    Failed(String),
}

/// How code comes.
type Delivery = Pin<Box<dyn Future<Output = Result<Delivered, NotDelivered>> + Send>>;

/// Somebody else who compiles.
#[derive(Clone)]
pub struct Elsewhere {
    fetch: Arc<dyn Fn(Wanted) -> Delivery + Send + Sync>,
}

impl Elsewhere {
    /// `fetch` puts the code of a program into the file [`Wanted::to`], whole.
    ///
    /// # Safety
    ///
    /// The code is mapped and run in this process. When `fetch` succeeds, the file must be what
    /// [`Compiler::compile_for`](crate::Compiler::compile_for) made, which takes a proof that it came from somebody who
    /// may decide what runs here: code that was only found somewhere could do anything that this process may.
    pub unsafe fn new<F>(fetch: impl Fn(Wanted) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Delivered, NotDelivered>> + Send + 'static,
    {
        Self { fetch: Arc::new(move |wanted| Box::pin(fetch(wanted))) }
    }

    pub(crate) async fn fetch(&self, wanted: Wanted) -> Result<Delivered, NotDelivered> {
        (self.fetch)(wanted).await
    }
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Elsewhere")
    }
}
