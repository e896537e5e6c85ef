//! WASI 0.2 with nothing behind it. Guests of other toolchains import it whether they use it or not: what a runtime asks at its
//! start has a harmless answer (no arguments, no environment, no files, a closed input, an output that goes to the policy's
//! log), and everything else ends the call with its name. Nothing here reaches a file, a socket, the real clock or real chance.

use wasmtime::StoreContextMut;
use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, Linker, Resource, ResourceType, Type, Val};

use crate::call::{Call, Stream};
use crate::error::PluginError;
use crate::interface::{self, Import};

/// What every handle of WASI stands for here: nothing. That they are all of one type does no harm, since none is ever read.
struct Nothing;

/// The `rep` of a handle says what is written to it.
const OUTPUT: u32 = 1;
const ERRORS: u32 = 2;
const OTHER: u32 = 0;

/// Bytes that an output takes at once.
const WRITE_BYTES: u64 = 4096;
/// Random bytes that may be had at once.
const MAX_RANDOM_BYTES: u64 = 64 << 10;
/// Handles that a guest may hold at once, of WASI and of its own.
pub(crate) const MAX_HANDLES: usize = 1_000;

/// A call of something that has no harmless answer.
#[derive(Debug, thiserror::Error)]
#[error("it called `{0}`, and behind that there is nothing here")]
pub(crate) struct NotHere(String);

type Store<'a> = StoreContextMut<'a, Call>;

/// Gives a linker everything of WASI that a component imports.
///
/// # Errors
/// It imports something else than functions and resources.
pub(crate) fn define(linker: &mut Linker<Call>, component: &Component) -> Result<(), PluginError> {
    let engine = linker.engine().clone();
    let wrong = |error: wasmtime::Error| PluginError::Mismatch(format!("{error:#}"));
    for (import, item) in component.component_type().imports(&engine) {
        if interface::import(import, &interface::OFFERED)? != Import::Wasi {
            continue;
        }
        let ComponentItem::ComponentInstance(instance) = item.ty else {
            return Err(PluginError::UnknownImport(import.to_owned()));
        };
        let mut into = linker.instance(import).map_err(wrong)?;
        for (name, item) in instance.exports(&engine) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => {
                    let stub = Stub::of(import, name);
                    into.func_new(name, move |store, ty, given, answer| stub.call(store, &ty, given, answer))
                }
                ComponentItem::Resource(_) => into.resource(name, ResourceType::host::<Nothing>(), |mut store, _| {
                    let call = store.data_mut();
                    call.handles = call.handles.saturating_sub(1);
                    Ok(())
                }),
                ComponentItem::Type(_) => Ok(()),
                _ => return Err(PluginError::UnknownImport(import.to_owned())),
            }
            .map_err(wrong)?;
        }
    }
    Ok(())
}

/// One function of WASI.
struct Stub {
    name: String,
    answer: Option<Answer>,
}

/// Answers with as many values as the function has results. It is given the `rep` of the first handle among the arguments.
type Answer = fn(&mut Store<'_>, &[Val], Option<u32>) -> wasmtime::Result<Option<Val>>;

impl Stub {
    fn of(import: &str, function: &str) -> Self {
        let interface = import.split_once('@').map_or(import, |(interface, _)| interface);
        Self { name: format!("{import}#{function}"), answer: answer(interface, function) }
    }

    fn call(
        &self,
        mut store: Store<'_>,
        ty: &types::ComponentFunc,
        given: &[Val],
        results: &mut [Val],
    ) -> wasmtime::Result<()> {
        let mut first = None;
        for value in given {
            let rep = give_back(&mut store, value)?;
            first = first.or(rep);
        }
        let answer = match self.answer {
            Some(answer) => answer(&mut store, given, first)?,
            None => Some(refusal(ty).ok_or_else(|| NotHere(self.name.clone()))?),
        };
        if let (Some(result), Some(answer)) = (results.first_mut(), answer) {
            *result = answer;
        }
        Ok(())
    }
}

/// Where a function can say that something is not permitted, it does; a guest may have another way.
fn refusal(ty: &types::ComponentFunc) -> Option<Val> {
    const REFUSALS: [&str; 3] = ["access-denied", "not-permitted", "access"];
    let Some(Type::Result(result)) = ty.results().next() else { return None };
    let Some(Type::Enum(errors)) = result.err() else { return None };
    let refusal = REFUSALS.into_iter().find(|refusal| errors.names().any(|name| name == *refusal))?;
    Some(Val::Result(Err(Some(Box::new(Val::Enum(refusal.to_owned()))))))
}

/// All that has an answer.
fn answer(interface: &str, function: &str) -> Option<Answer> {
    let answer: Answer = match (interface, function) {
        ("wasi:cli/environment", "get-environment" | "get-arguments") => none_of_a_list,
        ("wasi:cli/environment", "initial-cwd") => none,
        ("wasi:cli/stdin", "get-stdin") => handle,
        ("wasi:cli/stdout", "get-stdout") => |store, _, _| new_handle(store, OUTPUT).map(Some),
        ("wasi:cli/stderr", "get-stderr") => |store, _, _| new_handle(store, ERRORS).map(Some),
        ("wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr", _) => none,
        ("wasi:io/error", "[method]error.to-debug-string") => |_, _, _| Ok(Some(Val::String(String::new()))),
        ("wasi:io/poll", "[method]pollable.ready") => |_, _, _| Ok(Some(Val::Bool(true))),
        ("wasi:io/poll", "[method]pollable.block") => |_, _, _| Ok(None),
        ("wasi:io/poll", "poll") => all_ready,
        ("wasi:io/streams", function) => return stream_answer(function),
        ("wasi:clocks/monotonic-clock", "now") => {
            |store, _, _| Ok(Some(Val::U64(store.data().time_ms.saturating_mul(1_000_000))))
        }
        ("wasi:clocks/monotonic-clock", "resolution") => |_, _, _| Ok(Some(Val::U64(1_000_000))),
        ("wasi:clocks/monotonic-clock", "subscribe-instant" | "subscribe-duration") => handle,
        ("wasi:clocks/wall-clock", "now") => |store, _, _| Ok(Some(wall_time(store.data().time_ms))),
        ("wasi:clocks/wall-clock", "resolution") => |_, _, _| Ok(Some(wall_time(1))),
        ("wasi:random/random", "get-random-bytes") => random_bytes,
        ("wasi:random/random", "get-random-u64") => random_u64,
        ("wasi:random/insecure", "get-insecure-random-bytes") => random_bytes,
        ("wasi:random/insecure", "get-insecure-random-u64") => random_u64,
        ("wasi:random/insecure-seed", "insecure-seed") => |store, _, _| {
            let call = store.data_mut();
            Ok(Some(Val::Tuple(vec![Val::U64(call.next_random()), Val::U64(call.next_random())])))
        },
        ("wasi:filesystem/preopens", "get-directories") => none_of_a_list,
        ("wasi:filesystem/types", "filesystem-error-code") => none,
        ("wasi:sockets/instance-network", "instance-network") => handle,
        _ => return None,
    };
    Some(answer)
}

fn stream_answer(function: &str) -> Option<Answer> {
    let (stream, function) = function.strip_prefix("[method]")?.split_once('.')?;
    let answer: Answer = match (stream, function) {
        (_, "subscribe") => handle,
        ("input-stream", "read" | "blocking-read" | "skip" | "blocking-skip") => closed,
        ("output-stream", "check-write") => |_, _, _| Ok(Some(done(Some(Val::U64(WRITE_BYTES))))),
        ("output-stream", "write" | "blocking-write-and-flush") => write,
        ("output-stream", "write-zeroes" | "blocking-write-zeroes-and-flush" | "flush" | "blocking-flush") => {
            |_, _, _| Ok(Some(done(None)))
        }
        ("output-stream", "splice" | "blocking-splice") => closed,
        _ => return None,
    };
    Some(answer)
}

fn done(value: Option<Val>) -> Val {
    Val::Result(Ok(value.map(Box::new)))
}

fn closed(_: &mut Store<'_>, _: &[Val], _: Option<u32>) -> wasmtime::Result<Option<Val>> {
    Ok(Some(Val::Result(Err(Some(Box::new(Val::Variant("closed".to_owned(), None)))))))
}

fn none(_: &mut Store<'_>, _: &[Val], _: Option<u32>) -> wasmtime::Result<Option<Val>> {
    Ok(Some(Val::Option(None)))
}

fn none_of_a_list(_: &mut Store<'_>, _: &[Val], _: Option<u32>) -> wasmtime::Result<Option<Val>> {
    Ok(Some(Val::List(Vec::new())))
}

fn handle(store: &mut Store<'_>, _: &[Val], _: Option<u32>) -> wasmtime::Result<Option<Val>> {
    new_handle(store, OTHER).map(Some)
}

/// Ends what the host holds of the handles among the arguments, and gives the `rep` of the first.
fn give_back(store: &mut Store<'_>, value: &Val) -> wasmtime::Result<Option<u32>> {
    let mut first = None;
    let mut all = |values: &mut dyn Iterator<Item = &Val>| {
        for value in values {
            let rep = give_back(store, value)?;
            first = first.or(rep);
        }
        Ok::<_, wasmtime::Error>(())
    };
    match value {
        Val::Resource(handle) => {
            let handle = Resource::<Nothing>::try_from_resource_any(*handle, &mut *store)?;
            if handle.owned() {
                let call = store.data_mut();
                call.handles = call.handles.saturating_sub(1);
            }
            return Ok(Some(handle.rep()));
        }
        Val::List(values) | Val::Tuple(values) => all(&mut values.iter())?,
        Val::Record(fields) => all(&mut fields.iter().map(|(_, value)| value))?,
        Val::Variant(_, Some(value)) | Val::Option(Some(value)) => all(&mut std::iter::once(&**value))?,
        Val::Result(Ok(Some(value)) | Err(Some(value))) => all(&mut std::iter::once(&**value))?,
        _ => {}
    }
    Ok(first)
}

fn new_handle(store: &mut Store<'_>, rep: u32) -> wasmtime::Result<Val> {
    let call = store.data_mut();
    call.handles = call.handles.saturating_add(1);
    Ok(Val::Resource(Resource::<Nothing>::new_own(rep).try_into_resource_any(&mut *store)?))
}

fn all_ready(_: &mut Store<'_>, given: &[Val], _: Option<u32>) -> wasmtime::Result<Option<Val>> {
    let Some(Val::List(polled)) = given.first() else { return Ok(Some(Val::List(Vec::new()))) };
    let count = u32::try_from(polled.len()).unwrap_or(u32::MAX);
    Ok(Some(Val::List((0..count).map(Val::U32).collect())))
}

/// To the log of the policy, by lines.
fn write(store: &mut Store<'_>, given: &[Val], stream: Option<u32>) -> wasmtime::Result<Option<Val>> {
    if let Some(Val::List(bytes)) = given.get(1) {
        let bytes = bytes.iter().filter_map(|byte| if let Val::U8(byte) = byte { Some(*byte) } else { None });
        match stream {
            Some(OUTPUT) => store.data_mut().print(Stream::Output, bytes),
            Some(ERRORS) => store.data_mut().print(Stream::Errors, bytes),
            _ => {}
        }
    }
    Ok(Some(done(None)))
}

fn wall_time(time_ms: u64) -> Val {
    let nanoseconds = u32::try_from(time_ms % 1_000).unwrap_or(0).saturating_mul(1_000_000);
    let field = |name: &str, value| (name.to_owned(), value);
    Val::Record(vec![field("seconds", Val::U64(time_ms / 1_000)), field("nanoseconds", Val::U32(nanoseconds))])
}

fn random_u64(store: &mut Store<'_>, _: &[Val], _: Option<u32>) -> wasmtime::Result<Option<Val>> {
    Ok(Some(Val::U64(store.data_mut().next_random())))
}

fn random_bytes(store: &mut Store<'_>, given: &[Val], _: Option<u32>) -> wasmtime::Result<Option<Val>> {
    let wanted = if let Some(Val::U64(wanted)) = given.first() { *wanted } else { 0 };
    if wanted > MAX_RANDOM_BYTES {
        return Err(NotHere(format!("more than {MAX_RANDOM_BYTES} random bytes")).into());
    }
    let call = store.data_mut();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < wanted {
        bytes.extend(call.next_random().to_le_bytes().map(Val::U8));
    }
    bytes.truncate(usize::try_from(wanted).unwrap_or(0));
    Ok(Some(Val::List(bytes)))
}
