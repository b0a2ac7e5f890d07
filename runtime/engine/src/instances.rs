//! The instances of one HTTP container: made for a request, and used again if its Pod says so.
//!
//! A program of WASI 0.2 answers one request at a time in an instance, because its calls run to their end. One of 0.3 may
//! answer several; see [`crate::crowd`].

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhow_host::{Guest, OutOfMemory, StopNotice, Template};
use dhow_runtime_contract::HttpServing;
use http::uri::{Authority, Scheme};
use http::{Request, Response, header};
use hyper::body::Incoming;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until};
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme as SchemeP2;
use wasmtime_wasi_http::p3::Request as RequestP3;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{FieldMap, WasiBody, WasiHttpView};

use crate::command::{discard, new_store};
use crate::output::{Channel, Input, Sink, lock};
use crate::trap::describe;

/// Requests that one container works on at a time; more wait in their connections. A quarter of the node's pool of
/// instances, so that one container cannot take it all.
const REQUESTS_MAX: usize = 128;
/// How long an instance is kept for a next request. A client that pauses to think finds it still there; a container
/// that nobody asks any more is soon as small as one that never was.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(15);

/// What comes of a request.
pub(crate) type Answer = Result<Response<WasiBody>, Failure>;

/// Why there is no answer.
pub(crate) enum Failure {
    /// The guest said so itself, with this error code.
    Refused(String),
    /// It returned without an answer, or trapped.
    NoAnswer,
    /// There was no room for an instance.
    NoRoom,
    /// It took too long.
    Late,
    /// The instance ended before it was asked: another one is to be asked.
    Again(Box<Request<Incoming>>),
}

/// Where the answer to one request goes; the first one counts.
#[derive(Clone)]
pub(crate) struct Reply(Arc<Mutex<Option<oneshot::Sender<Answer>>>>);

impl Reply {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(sender)))), receiver)
    }

    pub(crate) fn send(&self, answer: Answer) {
        if let Some(sender) = lock(&self.0).take() {
            // The receiver is gone when the client is; then nobody wants the answer.
            sender.send(answer).ok();
        }
    }
}

/// One instance with all that it holds.
pub(crate) struct Instance {
    pub(crate) store: Store<Guest>,
    pub(crate) proxy: Proxy,
    /// How many requests it has been given.
    served: u32,
    /// Its place among the node's instances; given back after the rest is gone.
    _place: OwnedSemaphorePermit,
    /// Its place among those that may be kept, once it has been.
    warm: Option<OwnedSemaphorePermit>,
}

/// An instance that waits for a request.
struct Idle {
    instance: Instance,
    since: Instant,
}

/// The instances of one container.
pub(crate) struct Instances {
    pre: ProxyPre<Guest>,
    template: Template,
    sink: Sink,
    serving: HttpServing,
    slots: Semaphore,
    places: Places,
    /// The most memory that one instance has held: what the next one is expected to need.
    largest: AtomicU64,
    /// The youngest last: it is taken first, so that those which are not needed grow old.
    idle: Mutex<Vec<Idle>>,
    /// One more is idle: for who waits for room, and for who ends old ones.
    one_more: Notify,
    first: Notify,
}

/// The places for instances on the node.
#[derive(Clone)]
pub(crate) struct Places {
    /// For instances of all containers.
    all: Arc<Semaphore>,
    /// For those that are kept from one request to the next: half of them all, so that containers which keep none, or
    /// have not been asked yet, always find a place.
    warm: Arc<Semaphore>,
}

impl Places {
    pub(crate) fn new(instances_max: u32) -> Self {
        let max = instances_max as usize;
        Self { all: Arc::new(Semaphore::new(max)), warm: Arc::new(Semaphore::new(max / 2)) }
    }
}

impl Instances {
    pub(crate) fn new(
        pre: &ProxyPre<Guest>,
        template: Template,
        sink: Sink,
        serving: HttpServing,
        places: Places,
    ) -> Arc<Self> {
        Arc::new(Self {
            pre: match pre {
                ProxyPre::P2(pre) => ProxyPre::P2(pre.clone()),
                ProxyPre::P3(pre) => ProxyPre::P3(pre.clone()),
            },
            template,
            sink,
            serving,
            slots: Semaphore::new(REQUESTS_MAX),
            places,
            largest: AtomicU64::new(0),
            idle: Mutex::default(),
            one_more: Notify::new(),
            first: Notify::new(),
        })
    }

    pub(crate) fn serving(&self) -> HttpServing {
        self.serving
    }

    /// What tells the guests that they are to stop.
    pub(crate) fn stop_notice(&self) -> &Arc<StopNotice> {
        self.template.stop_notice()
    }

    /// Whether one instance answers several requests at a time.
    pub(crate) fn are_shared(&self) -> bool {
        self.serving.concurrency > 1 && self.serving.reuse > 1 && matches!(self.pre, ProxyPre::P3(_))
    }

    /// Waits until the container may work on one more request.
    pub(crate) async fn slot(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.slots.acquire().await.ok()
    }

    /// Works on one request, from before its instance is there until that is given back.
    pub(crate) async fn work(self: Arc<Self>, request: Request<Incoming>, reply: Reply) {
        let _slot = self.slot().await;
        let mut instance = match self.obtain().await {
            Ok(instance) => instance,
            Err(error) => return self.note_no_start(&error, &reply),
        };
        instance.served += 1;
        let result = instance.call(request, &reply).await;
        let held = instance.store.data().memory.held();
        self.largest.fetch_max(held, Ordering::Relaxed);
        match result {
            Ok(()) => {
                reply.send(Err(Failure::NoAnswer));
                if let Some(instance) = self.keep(instance) {
                    discard(instance, held).await;
                }
            }
            Err(error) => {
                self.note_failure(&error);
                reply.send(Err(Failure::NoAnswer));
                discard(instance, held).await;
            }
        }
    }

    pub(crate) fn note_no_start(&self, error: &wasmtime::Error, reply: &Reply) {
        self.sink.note(&format!("starting an instance failed: {}", describe(error)));
        reply.send(Err(Failure::NoRoom));
    }

    pub(crate) fn note_failure(&self, error: &wasmtime::Error) {
        let what = if error.is::<OutOfMemory>() { "ran out of memory" } else { "failed" };
        self.sink.note(&format!("a request {what}: {}", describe(error)));
    }

    /// An instance: one that waits, or a new one as soon as there is room.
    async fn obtain(&self) -> wasmtime::Result<Instance> {
        if self.serving.reuse <= 1 {
            return self.make().await;
        }
        if let Some(idle) = lock(&self.idle).pop() {
            return Ok(idle.instance);
        }
        loop {
            let mut one_more = pin!(self.one_more.notified());
            one_more.as_mut().enable();
            if let Some(idle) = lock(&self.idle).pop() {
                return Ok(idle.instance);
            }
            // Who waits for memory or a place also waits for others of this container that hold theirs.
            tokio::select! {
                biased;
                room = self.room() => return self.make_in(room).await,
                () = one_more => {}
            }
        }
    }

    /// A new instance, as soon as there is room.
    pub(crate) async fn make(&self) -> wasmtime::Result<Instance> {
        self.make_in(self.room().await).await
    }

    async fn room(&self) -> (dhow_host::MemoryMeter, Option<OwnedSemaphorePermit>) {
        let memory = self.template.memory().meter(self.largest.load(Ordering::Relaxed)).await;
        (memory, self.places.all.clone().acquire_owned().await.ok())
    }

    async fn make_in(
        &self,
        (memory, place): (dhow_host::MemoryMeter, Option<OwnedSemaphorePermit>),
    ) -> wasmtime::Result<Instance> {
        let place = place.ok_or_else(|| wasmtime::Error::msg("the node takes no more instances"))?;
        let (stdout, stderr) = (self.sink.open(Channel::Stdout), self.sink.open(Channel::Stderr));
        let guest = self.template.guest(memory, Input::empty(), stdout, stderr);
        let engine = match &self.pre {
            ProxyPre::P2(pre) => pre.engine(),
            ProxyPre::P3(pre) => pre.engine(),
        };
        let mut store = new_store(engine, guest);
        let proxy = self.pre.instantiate_async(&mut store).await?;
        Ok(Instance { store, proxy, served: 0, _place: place, warm: None })
    }

    /// Keeps an instance for a next request; gives it back if it has served its time or there are enough.
    fn keep(&self, mut instance: Instance) -> Option<Instance> {
        if instance.served >= self.serving.reuse {
            return Some(instance);
        }
        if instance.warm.is_none() {
            instance.warm = self.places.warm.clone().try_acquire_owned().ok();
        }
        if instance.warm.is_none() {
            return Some(instance);
        }
        let mut idle = lock(&self.idle);
        idle.push(Idle { instance, since: Instant::now() });
        let is_first = idle.len() == 1;
        drop(idle);
        self.one_more.notify_one();
        if is_first {
            self.first.notify_one();
        }
        None
    }

    /// Ends instances that nobody has needed for long. Never returns.
    pub(crate) async fn end_idle(self: Arc<Self>) {
        loop {
            let oldest = lock(&self.idle).first().map(|idle| idle.since);
            let Some(oldest) = oldest else {
                self.first.notified().await;
                continue;
            };
            sleep_until(oldest + IDLE_MAX).await;
            let old: Vec<Idle> = {
                let mut idle = lock(&self.idle);
                let now = Instant::now();
                let old = idle.iter().take_while(|idle| now >= idle.since + IDLE_MAX).count();
                idle.drain(..old).collect()
            };
            for idle in old {
                let held = idle.instance.store.data().memory.held();
                discard(idle, held).await;
            }
        }
    }
}

impl Instance {
    /// Answers one request, and returns when the guest has nothing more to do for it.
    async fn call(&mut self, request: Request<Incoming>, reply: &Reply) -> wasmtime::Result<()> {
        match &self.proxy {
            Proxy::P2(proxy) => {
                let mut http = self.store.data_mut().http();
                let request = http.new_incoming_request(SchemeP2::Http, request)?;
                let for_guest = reply.clone();
                let out = http.new_response_outparam_from_callback(move |answer| {
                    for_guest.send(answer.map_err(|code| Failure::Refused(code.to_string())));
                })?;
                proxy.wasi_http_incoming_handler().call_handle(&mut self.store, request, out).await
            }
            Proxy::P3(service) => {
                self.store
                    .run_concurrent(async |accessor| {
                        respond(accessor, service, request, reply).await?;
                        done(accessor).await;
                        Ok(())
                    })
                    .await?
            }
        }
    }
}

/// Waits until the guest has finished what it goes on doing after its answers, such as sending their bodies.
pub(crate) async fn done(accessor: &Accessor<Guest>) {
    poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
}

/// Asks a guest of WASI 0.3 and passes its answer on, of which the body may still be on its way.
pub(crate) async fn respond(
    accessor: &Accessor<Guest>,
    service: &Service,
    request: Request<Incoming>,
    reply: &Reply,
) -> wasmtime::Result<()> {
    let (parts, body) = request.into_parts();
    let uri = parts.uri.into_parts();
    // A guest looks for the host that it is asked for in the address.
    let host = parts.headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = uri.authority.or(host);
    let headers = accessor.with(|mut access| FieldMap::new_immutable(access.data_mut().http().hooks, parts.headers));
    let scheme = Some(Scheme::HTTP);
    let (request, processed) = RequestP3::new(parts.method, scheme, authority, uri.path_and_query, headers, None, body);
    match service.handle(accessor, request).await? {
        Ok(response) => {
            let response = accessor.with(|access| response.into_http(access, processed))?;
            reply.send(Ok(response));
        }
        Err(code) => reply.send(Err(Failure::Refused(code.to_string()))),
    }
    Ok(())
}
