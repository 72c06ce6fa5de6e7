//! Records of the pinned maps, as whoever reads them finds them: of another version, or half-written.

#![no_main]

use bytemuck::{Pod, Zeroable};
use libfuzzer_sys::fuzz_target;
use netbond::journal::Entry;
use netbond::tables::{field, text};
use netbond_common::{
    abi::{BondInfo, ClassInfo, EventRecord, MAX_BOND_PATHS, PathInfo, Shares},
    names::{Encap, EventKind, FullSize, Mode, PathState, StateReason, Watch, Weights},
    order, turns,
};

fuzz_target!(|data: &[u8]| {
    let record: EventRecord = read(data);
    let entry = Entry::from(&record);
    assert_eq!(
        entry.kind.is_some(),
        EventKind::from_number(record.kind).is_some()
    );
    if let Some(change) = entry.change {
        assert_eq!(change.to as u32, record.to);
        assert!(!change.to_string().contains('\n'));
    }
    name(&record.bond, &entry.bond);
    name(&record.path, &entry.path);
    name(&record.text, &entry.text);

    let bond: BondInfo = read(data);
    name(&bond.name, &text(&bond.name));
    let class: ClassInfo = read(data);
    name(&class.text, &text(&class.text));
    let path: PathInfo = read(data);
    name(&path.neighbour_state, &text(&path.neighbour_state));

    // Numbers of another version name nothing, and never something else.
    let number = path.state;
    let known = [
        Encap::from_number(number).map(|one| one as u32),
        Mode::from_number(number).map(|one| one as u32),
        Weights::from_number(number).map(|one| one as u32),
        PathState::from_number(number).map(|one| one as u32),
        StateReason::from_number(number).map(|one| one as u32),
        Watch::from_number(number).map(|one| one as u32),
        FullSize::from_number(number).map(|one| one as u32),
    ];
    assert!(known.into_iter().flatten().all(|one| one == number));

    let shares: Shares = read(data);
    let weights: Vec<(u32, f64)> = turns::weights(&shares);
    assert!(weights.len() <= MAX_BOND_PATHS as usize);
    assert!(
        weights.iter().all(|(path, weight)| {
            *path < MAX_BOND_PATHS && weight.is_finite() && *weight > 0.0
        })
    );
    let first = order::first(shares.order);
    assert!(first < MAX_BOND_PATHS);

    // What the controller writes is read back, but for what does not fit.
    if let Ok(written) = std::str::from_utf8(data) {
        let written = written.split('\0').next().unwrap_or_default();
        let again = text(&field::<32>(written));
        if written.len() <= 32 {
            assert_eq!(again, written);
        }
        let whole = again.trim_end_matches(char::REPLACEMENT_CHARACTER);
        assert!(written.starts_with(whole));
    }
});

/// The start of the data, and zeros behind it.
fn read<T: Pod + Zeroable>(data: &[u8]) -> T {
    let mut record = T::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut record);
    let there = bytes.len().min(data.len());
    bytes[..there].copy_from_slice(&data[..there]);
    record
}

/// A text ends with the field, or with the first NUL; what is no UTF-8 is three bytes instead of one.
fn name(field: &[u8], text: &str) {
    assert!(!text.contains('\0') && text.len() <= 3 * field.len());
}
