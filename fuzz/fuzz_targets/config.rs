//! The configuration file.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use netbond::config::Config;
use netbond_common::abi::{MAX_BOND_CLASSES, MAX_BOND_PATHS, MAX_BONDS, NAME_LEN};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::parse(text, "netbond.toml") {
        Ok(config) => check(&config, text),
        Err(problems) => {
            assert!(!problems.list.is_empty());
            assert!(problems.list.is_sorted_by_key(|problem| problem.line));
            let lines = text.lines().count().max(1) + 1;
            for problem in &problems.list {
                assert!((1..=lines).contains(&problem.line), "{problem:?}");
                assert!(!problem.message.contains(['\n', '\r']), "{problem:?}");
            }
            let shown = problems.to_string();
            assert_eq!(shown.lines().count(), problems.list.len());
        }
    }
});

/// What the documentation of [`Config`] promises.
fn check(config: &Config, text: &str) {
    assert!(config.bonds.len() <= MAX_BONDS as usize);
    assert!(
        config
            .metrics
            .is_none_or(|metrics| metrics.listen.port() != 0)
    );
    assert!(
        config
            .bird
            .as_ref()
            .is_none_or(|bird| bird.socket.is_absolute())
    );
    assert!(config.frr.as_ref().is_none_or(|frr| !frr.vtysh.is_empty()));
    let lines = 1..=text.lines().count();
    let mut names = BTreeSet::new();
    for bond in &config.bonds {
        assert!(bond.peer_device().len() <= 15 && lines.contains(&bond.line));
        assert!((1..=MAX_BOND_PATHS as usize).contains(&bond.paths.len()));
        assert!(bond.classes.len() <= MAX_BOND_CLASSES as usize);
        assert!(bond.mtu.is_none_or(|mtu| (1280..=65535).contains(&mtu)));
        assert!(
            bond.copies
                .is_none_or(|copies| (2..=MAX_BOND_PATHS).contains(&copies))
        );
        assert!(bond.probing.is_none() || bond.bfd.is_none());
        assert!(bond.bfd.is_none_or(|bfd| bfd.misses != 0));
        for path in &bond.paths {
            assert!(names.insert(path.name.as_str()), "each name once");
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            assert!(path.name.len() < NAME_LEN && path.name.bytes().all(plain));
            assert_eq!(path.local.is_ipv4(), path.remote.is_ipv4());
            assert!((1..=64).contains(&path.weight) && lines.contains(&path.line));
        }
    }
}
