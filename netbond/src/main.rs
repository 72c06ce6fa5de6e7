//! The `netbond` command.

fn main() -> std::process::ExitCode {
    netbond::cli::main()
}
