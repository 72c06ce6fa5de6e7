//! The project's own commands, as `cargo xtask COMMAND`.
//!
//! Progress and compiler output go to stderr, so that stdout holds results only.

mod apt;
mod bench;
mod build;
mod command;
mod ebpf;
mod files;
mod fuzz;
mod lab;
mod lint;
mod operations;
mod package;
mod prometheus;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;
mod vm_tests;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install what building and testing need (Debian 12)
    Setup,
    /// Build the eBPF object and the programs
    Build(build::Args),
    /// Run the demonstration, or netbond itself: `run -- -c FILE`
    Run(run::Args),
    /// Build, then run netbond-lab with the arguments given
    Lab(lab::Args),
    /// Run the tests: all layers, or those named
    Test(test::Args),
    /// Let the parsers read what nobody should write: all targets of `fuzz/`, or those named
    Fuzz(fuzz::Args),
    /// Run the benchmarks
    Bench(bench::Args),
    /// Let random faults happen in the lab under traffic, and check what must hold (root, half an hour)
    Soak {
        /// Arguments of `netbond-lab soak`: `-- --minutes 5 --seed 7`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make the Debian package, and archives with a static program for any Linux router
    Package(package::Args),
    /// Check formatting and lints
    Lint,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Verb::Setup => setup::run(),
        Verb::Build(args) => build::run(args),
        Verb::Run(args) => run::run(args),
        Verb::Lab(args) => lab::run(args),
        Verb::Test(args) => test::run(args),
        Verb::Fuzz(args) => fuzz::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Soak { args } => bench::in_lab("soak", &args),
        Verb::Package(args) => package::run(args),
        Verb::Lint => lint::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
