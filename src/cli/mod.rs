//! The commands. The only folder that names `clap` and prints.

/// Runs the command line; gives the exit code.
pub fn main() -> std::process::ExitCode {
    todo!()
}
