//! Compiling for agents that have no compiler, or another one than they need.
//!
//! An agent asks for the code of a program by the program's digest and its own engine's settings. What has been compiled
//! before lies on this member's disk; else the agent is told so and sends the program. How a program is compiled is not
//! known here: the binary brings it along ([`Compile`]). What goes out is signed by the cluster's CA, so that an agent maps
//! nothing that only looks like code.
//!
//! ```text
//! compiled/<digest>~<settings>~<kind>~<digest of the code>
//! ```

use crate::answer::{self, Answer, BodyError};
use crate::app::App;
use crate::body::RequestBody;
use bytes::{Bytes, BytesMut};
use dhow_api::status::{ApiError, Reason};
use dhow_files::{Access, NewFile};
use dhow_gate::{Query, User};
use dhow_pki::CodeStatement;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{Method, Request};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;
use tokio::sync::{Mutex, Semaphore};
use tracing::{debug, info};

/// The largest program that is taken: what a compiler reads.
const PROGRAM_BYTES_MAX: u64 = 256 << 20;
/// How long a program may take to come; others wait behind it.
const UPLOAD_MAX: Duration = Duration::from_secs(120);
/// Programs that wait to be compiled. One is compiled at a time, for it uses all cores and hundreds of MiB; agents beyond
/// this are told to ask again.
const WAITING_MAX: usize = 256;
/// What the code of all programs may take on the disk. Beyond it goes what was asked for the longest ago: who needs that
/// again has it compiled again.
const CODE_BYTES_MAX: u64 = 4 << 30;
/// How much of a file is sent at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Settings and kinds are short words.
const WORD_BYTES_MAX: usize = 64;

/// What the code is, and for whom: the compiler's own word for it.
const KIND: HeaderName = HeaderName::from_static("dhow-code-kind");
/// The digest of the code.
const DIGEST: HeaderName = HeaderName::from_static("dhow-code-digest");
/// The signature under all of it, in hex.
const SIGNATURE: HeaderName = HeaderName::from_static("dhow-code-signature");

/// One program to be compiled.
#[derive(Clone, Debug)]
pub struct CompileJob {
    /// For which engine, with which settings, and for which target, in the compiler's own words.
    pub settings: String,
    /// The program's file.
    pub program: PathBuf,
    /// The file that the code is to be in.
    pub code: PathBuf,
}

/// Why a program was not compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileRefusal {
    /// This compiler does not make such code.
    Settings(String),
    /// The program cannot be compiled.
    Program(String),
    /// Something went wrong that is nobody's fault who asks.
    Failed(String),
}

/// Compiles a program, gives the kind of its code. Blocks for seconds.
type Compiler = dyn Fn(&CompileJob) -> Result<String, CompileRefusal> + Send + Sync;

/// How programs are compiled for agents.
#[derive(Clone)]
pub struct Compile(Arc<Compiler>);

impl Compile {
    /// By this function, which gives the kind of the code that it has made. It blocks, and is called once at a time.
    pub fn new(compile: impl Fn(&CompileJob) -> Result<String, CompileRefusal> + Send + Sync + 'static) -> Self {
        Self(Arc::new(compile))
    }
}

impl std::fmt::Debug for Compile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compile")
    }
}

/// The code that is here, and its compiler.
pub(crate) struct Compiled {
    dir: PathBuf,
    compile: Option<Compile>,
    turn: Arc<Mutex<()>>,
    waiting: Semaphore,
}

/// Which code is asked for.
#[derive(Clone, Debug)]
struct Wanted {
    /// `sha256:…` of the program.
    program: String,
    settings: String,
}

/// Code on this disk.
struct Found {
    path: PathBuf,
    kind: String,
    /// `sha256:…` of the code.
    digest: String,
}

impl Compiled {
    pub(crate) fn open(dir: PathBuf, compile: Option<Compile>) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        dhow_files::remove_unfinished(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|name| parts(name).is_none()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir, compile, turn: Arc::default(), waiting: Semaphore::new(WAITING_MAX) })
    }

    fn find(&self, wanted: &Wanted) -> io::Result<Option<Found>> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some([program, settings, kind, code]) = name.to_str().and_then(parts) else { continue };
            if [program, settings] == [hex(&wanted.program), &wanted.settings] {
                let (kind, digest) = (kind.to_owned(), format!("sha256:{code}"));
                // What was asked for lately is kept the longest.
                File::open(entry.path())?.set_modified(SystemTime::now())?;
                return Ok(Some(Found { path: entry.path(), kind, digest }));
            }
        }
        Ok(None)
    }

    /// Compiles a program that lies there. Blocks.
    fn make(&self, compile: &Compile, wanted: &Wanted, program: PathBuf) -> Result<(), ApiError> {
        let code = program.with_extension("code");
        let job = CompileJob { settings: wanted.settings.clone(), program, code };
        let made = compile.0(&job).map_err(refusal).and_then(|kind| {
            if !is_word(&kind) {
                return Err(ApiError::internal(format!("the compiler made code of the kind `{kind}`")));
            }
            self.keep(wanted, &kind, &job.code).map_err(failed)
        });
        for left in [&job.program, &job.code] {
            match fs::remove_file(left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    debug!(path = %left.display(), %error, "what compiling has left cannot be removed");
                }
                _ => {}
            }
        }
        made
    }

    fn keep(&self, wanted: &Wanted, kind: &str, code: &Path) -> io::Result<()> {
        let digest = digest_of(&mut File::open(code)?)?;
        let name = format!("{}~{}~{kind}~{}", hex(&wanted.program), wanted.settings, hex(&digest));
        fs::rename(code, self.dir.join(&name))?;
        dhow_files::sync_directory(&self.dir)?;
        self.make_room(&name)
    }

    /// Removes what was asked for the longest ago, until the rest is not too much. What has just come stays.
    fn make_room(&self, newest: &str) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name() != newest && entry.file_name().to_str().is_some_and(|name| parts(name).is_some()) {
                let meta = entry.metadata()?;
                all.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        all.sort();
        let mut bytes: u64 =
            fs::metadata(self.dir.join(newest))?.len() + all.iter().map(|(_, len, _)| len).sum::<u64>();
        for (_, len, path) in all {
            if bytes <= CODE_BYTES_MAX {
                break;
            }
            fs::remove_file(path)?;
            bytes -= len;
        }
        Ok(())
    }
}

/// GET and POST `/dhow/v1/compiled/<digest>?settings=…`: the code of a program, if it is here; or of the program that is
/// the body.
pub(crate) async fn handle(
    app: &Arc<App>,
    user: &User,
    digest: &str,
    request: Request<RequestBody>,
) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let wanted = wanted(digest, query.non_empty("settings").unwrap_or_default())?;
    match head.method {
        Method::GET => match find(app, &wanted).await? {
            Some(found) => send(app, &wanted, found).await,
            None => Err(ApiError::new(404, Reason::NotFound, format!("`{digest}` has not been compiled here yet"))),
        },
        Method::POST => {
            let found = make(app, user, &wanted, body).await?;
            send(app, &wanted, found).await
        }
        _ => Err(ApiError::method_not_allowed_here()),
    }
}

fn wanted(digest: &str, settings: &str) -> Result<Wanted, ApiError> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ApiError::bad_request(format!("`{digest}` is no digest of the form sha256:<64 hex digits>")));
    }
    if !is_word(settings) {
        return Err(ApiError::bad_request(format!("`{settings}` are no settings: name them with `?settings=…`")));
    }
    Ok(Wanted { program: digest.to_owned(), settings: settings.to_owned() })
}

async fn find(app: &Arc<App>, wanted: &Wanted) -> Result<Option<Found>, ApiError> {
    let (app, wanted) = (app.clone(), wanted.clone());
    blocking(move || app.compiled.find(&wanted).map_err(failed)).await
}

/// Has a program compiled, unless somebody else's turn has just done that.
async fn make(app: &Arc<App>, user: &User, wanted: &Wanted, body: RequestBody) -> Result<Found, ApiError> {
    let Some(compile) = app.compiled.compile.clone() else {
        let message =
            "this control node was built without a compiler: start one with it, or agents that have their own";
        return Err(ApiError::new(501, Reason::Unknown, message));
    };
    let Ok(_waiting) = app.compiled.waiting.try_acquire() else {
        return Err(ApiError::unavailable(format!("{WAITING_MAX} programs wait to be compiled here already")));
    };
    let turn = app.compiled.turn.clone().lock_owned().await;
    if let Some(found) = find(app, wanted).await? {
        return Ok(found);
    }
    let program = receive(app, wanted, body).await?;
    let Wanted { program: digest, settings } = wanted;
    info!(user = %user.name, digest, settings, "compiling a program for an agent");
    let (doing, wanted) = (app.clone(), wanted.clone());
    // It goes on when its client has gone: the next one finds the code. So its turn ends with it and not with the client.
    blocking(move || {
        let _turn = turn;
        doing.compiled.make(&compile, &wanted, program)?;
        let found = doing.compiled.find(&wanted).map_err(failed)?;
        found.ok_or_else(|| ApiError::internal("the code of a program went as soon as it was there"))
    })
    .await
}

/// Takes a program in and sees whether it is the one.
async fn receive(app: &App, wanted: &Wanted, mut body: RequestBody) -> Result<PathBuf, ApiError> {
    let path = app.compiled.dir.join(format!("{}.program", hex(&wanted.program)));
    let mut file = NewFile::create(&path, Access::Private).map_err(failed)?;
    let receiving = async {
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::bad_request(format!("the program broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            bytes += data.len() as u64;
            if bytes > PROGRAM_BYTES_MAX {
                let message = format!("a program has at most {PROGRAM_BYTES_MAX} bytes");
                return Err(ApiError::new(413, Reason::RequestEntityTooLarge, message));
            }
            hash.update(&data);
            // To the page cache, in pieces of a frame's size.
            file.write_all(&data).map_err(failed)?;
        }
        Ok(in_hex(hash))
    };
    let Ok(received) = tokio::time::timeout(UPLOAD_MAX, receiving).await else {
        return Err(ApiError::timeout("the program did not come in time", 1));
    };
    let digest = received?;
    if digest != wanted.program {
        return Err(ApiError::bad_request(format!("the program's digest is `{digest}` and not `{}`", wanted.program)));
    }
    blocking(move || file.commit().map_err(failed)).await?;
    Ok(path)
}

/// Sends code, with what the cluster says of it.
async fn send(app: &App, wanted: &Wanted, found: Found) -> Result<Answer, ApiError> {
    let Found { path, kind, digest } = found;
    let statement = CodeStatement { program: &wanted.program, settings: &wanted.settings, kind: &kind, code: &digest };
    let signature = app.certs.ca.sign_code(&statement).map_err(|error| {
        ApiError::internal(format!("compiled code cannot be signed: {}", dhow_types::Chain(&error)))
    })?;
    let file = tokio::fs::File::open(&path).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let read = file.read_buf(&mut piece).await?;
        Ok::<_, BodyError>((read > 0).then(|| (Bytes::from(piece), file)))
    });
    let mut answer = answer::answer(200, "application/octet-stream", answer::streamed(pieces));
    for (name, value) in [(KIND, kind), (DIGEST, digest), (SIGNATURE, signature), (CONTENT_LENGTH, length.to_string())]
    {
        if let Ok(value) = HeaderValue::from_str(&value) {
            answer.headers_mut().insert(name, value);
        }
    }
    Ok(answer)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::internal(format!("the compiler gave up: {error}"))))
}

fn failed(error: io::Error) -> ApiError {
    ApiError::internal(format!("the directory of compiled code: {error}"))
}

fn refusal(refusal: CompileRefusal) -> ApiError {
    match refusal {
        CompileRefusal::Settings(why) => ApiError::new(406, Reason::NotAcceptable, why),
        CompileRefusal::Program(why) => ApiError::new(422, Reason::Invalid, why),
        CompileRefusal::Failed(why) => ApiError::unavailable(why),
    }
}

/// The parts of a file's name: program, settings, kind, code.
fn parts(name: &str) -> Option<[&str; 4]> {
    name.split('~').collect::<Vec<_>>().try_into().ok()
}

/// Whether a text may be a part of a file's name.
fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=WORD_BYTES_MAX).contains(&text.len()) && text.chars().all(plain)
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn in_hex(hash: Sha256) -> String {
    hash.finalize().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn digest_of(from: &mut impl Read) -> io::Result<String> {
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES]);
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(in_hex(hash)),
            read => hash.update(&piece[..read]),
        }
    }
}
