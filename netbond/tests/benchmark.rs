//! `cargo xtask bench datapath` runs to its end.

#[path = "../examples/bench_datapath.rs"]
mod bench_datapath;

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn the_benchmark_runs() {
    bench_datapath::main().unwrap();
}
