//! The one executable. Everything is in the library, so that tests and benchmarks can reach it.
#![forbid(unsafe_code)]

/// Requests are made of many small pieces of memory, which the system's own allocator takes longest over.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    postern::cli::main()
}
