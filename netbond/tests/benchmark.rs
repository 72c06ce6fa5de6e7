//! `cargo xtask bench datapath` runs to its end.

#[path = "../examples/bench_datapath.rs"]
mod bench_datapath;

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn the_benchmark_runs() {
    bench_datapath::main().unwrap();
}

/// With live frames, a few of them.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn live_frames_arrive() {
    bench_datapath::live::measure("few", true).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn live_frames_are_forwarded() {
    bench_datapath::forward::measure("few", true).unwrap();
}
