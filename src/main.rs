//! The `envelopefs` binary: hands over to `cli`.

fn main() -> std::process::ExitCode {
    envelopefs::cli::main()
}
