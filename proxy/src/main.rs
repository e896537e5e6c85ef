//! The one executable. Everything is in the library, so that tests and benchmarks can reach it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    postern::cli::main()
}
