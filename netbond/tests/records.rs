//! What `netbond status` and the metrics make of maps that hold anything at all, as another version may have
//! left them: nothing of it is believed beyond what this build knows.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::sync::Arc;

use bytemuck::Pod;
use common::Kernel;
use netbond::{
    metrics::{Format, render},
    pins::Pins,
    status::{Status, collect},
    tables::{Raw, Values},
};
use netbond_common::abi::{BOND_SHARES, MAX_BOND_CLASSES, MAX_BOND_PATHS};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};

const BONDS: u32 = 4;
const ROUNDS: usize = 20;

/// Fills the first entries of a map.
fn fill<T: Pod>(values: &mut Values<T>, count: u32, bytes: &mut impl FnMut(usize) -> Vec<u8>) {
    for index in 0..count {
        let value: T = bytemuck::pod_read_unaligned(&bytes(size_of::<T>()));
        values.set(index, Raw(value), 0).unwrap();
    }
}

fn check(status: Status) {
    assert!(!status.bonds.is_empty());
    for bond in &status.bonds {
        // What is no text is three bytes instead of one.
        assert!(!bond.name.is_empty() && bond.name.len() <= 3 * 32);
        for path in &bond.paths {
            let shares = [path.due_share, path.tx_share, path.rx_share];
            assert!(
                shares
                    .into_iter()
                    .flatten()
                    .all(|share| (0.0..=1.0).contains(&share))
            );
            assert!(path.effective_weight.is_finite());
        }
    }
    let json = serde_json::to_string(&status).unwrap();
    let read: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(read["bonds"].as_array().unwrap().len(), status.bonds.len());
    let status = Arc::new(status);
    let text = render(status.clone(), Format::OpenMetrics).unwrap();
    assert!(text.ends_with("# EOF\n"));
    for format in [Format::OpenMetrics, Format::Prometheus] {
        let text = render(status.clone(), format).unwrap();
        // A name that could end its line or its quotes would make metrics of its own.
        let stray = |line: &&str| !line.starts_with("netbond_") && !line.starts_with("# ");
        assert_eq!(text.lines().find(stray), None);
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_status_of_anything() {
    let mut kernel = Kernel::with_bond(&[1, 1], None);
    let directory = tempfile::tempdir().unwrap();
    let pins = Pins::new(directory.path());
    let mut runner = TestRunner::default();
    for round in 0..ROUNDS {
        let mut bytes = |len: usize| -> Vec<u8> {
            // Small numbers and text are likelier to mean something.
            let any = proptest::collection::vec(proptest::num::u8::ANY, len);
            let small = proptest::collection::vec(0..20_u8, len);
            let quoted =
                proptest::collection::vec(proptest::sample::select(&b"\"\\\n a{}"[..]), len);
            match round % 3 {
                0 => any.new_tree(&mut runner).unwrap().current(),
                1 => small.new_tree(&mut runner).unwrap().current(),
                _ => quoted.new_tree(&mut runner).unwrap().current(),
            }
        };
        let (paths, tables) = (BONDS * MAX_BOND_PATHS, &mut kernel.tables);
        fill(&mut tables.meta, 1, &mut bytes);
        fill(&mut tables.bond_info, BONDS, &mut bytes);
        fill(&mut tables.path_info, paths, &mut bytes);
        fill(&mut tables.probe_info, paths, &mut bytes);
        fill(&mut tables.class_info, BONDS * MAX_BOND_CLASSES, &mut bytes);
        fill(&mut tables.bonds, BONDS, &mut bytes);
        fill(&mut tables.paths, paths, &mut bytes);
        fill(&mut tables.lanes, BONDS, &mut bytes);
        fill(&mut tables.live, paths, &mut bytes);
        fill(&mut tables.skews, BONDS, &mut bytes);
        fill(&mut tables.shares, BONDS * BOND_SHARES, &mut bytes);
        for index in 0..paths {
            let limit: u64 = bytemuck::pod_read_unaligned(&bytes(8));
            tables.limits.set(index, limit, 0).unwrap();
        }
        let status = collect(tables, &pins).unwrap();
        check(status);
    }
}
