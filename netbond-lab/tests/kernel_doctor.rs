//! What `netbond check` says of a kernel: its own WireGuard, and what its verifier makes of the programs.

mod common;

use common::doctor::{allow, assert_healthy, check, wait_healthy};
use common::wait_proven;
use netbond_lab::{Lab, Topology, WireGuard};

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn allowed_ips_of_the_kernels_wireguard() {
    let lab = Lab::up("doctor", &Topology::reference()).unwrap();
    assert_eq!(lab.wireguard(), WireGuard::Kernel);
    let a = lab.router("A");
    wait_proven(a);
    assert_healthy(a);
    allow(a, "wg-a-m1", "10.65.0.0/30,224.0.0.0/8");
    let report = check(a);
    let left_out = report.find("allowed-ips", Some("via-m1"));
    let left_out = left_out.unwrap_or_else(|| panic!("{report:#?}"));
    assert!(left_out.what.contains("10.65.0.6 ("), "{left_out:#?}");
    assert!(!left_out.what.contains("10.65.0.1 "), "{left_out:#?}");
    // More than one message holds.
    let many: Vec<String> = (0..3000_u32)
        .map(|number| format!("10.{}.{}.0/24", 100 + number / 250, number % 250))
        .collect();
    allow(a, "wg-a-m1", &format!("{},10.65.0.4/30", many.join(",")));
    let report = check(a);
    let left_out = report.find("allowed-ips", Some("via-m1"));
    let left_out = left_out.unwrap_or_else(|| panic!("{report:#?}"));
    assert!(!left_out.what.contains("10.65.0.6 ("), "{left_out:#?}");
    assert!(left_out.what.contains("10.65.0.1 "), "{left_out:#?}");
    allow(a, "wg-a-m1", "0.0.0.0/0,::/0");
    wait_healthy(a);
}

/// With room to spare: the next kernel's verifier may walk further.
#[test]
#[ignore = "of Debian's kernels: cargo xtask test vm"]
fn the_verifier_takes_the_programs_of_all_modes() {
    const MOST: [(&str, u32); 2] = [("round-robin", 400_000), ("adaptive", 800_000)];
    let lab = Lab::up("verifier", &Topology::reference()).unwrap();
    let a = lab.router("A");
    let plain = a.default_config().unwrap();
    for (mode, most) in MOST {
        let mut file = plain.replacen("round-robin", mode, 1);
        // The program for drivers, too.
        file = file.replacen("[[bond.path]]", "[[bond.path]]\nxdp = \"auto\"", 1);
        assert!(file.contains("xdp"), "{file}");
        if mode == "adaptive" {
            let both = "mode = \"adaptive\"\nmss_clamp = true";
            file = file.replacen("mode = \"adaptive\"", both, 1);
            assert!(file.contains(both), "{file}");
            // And of paths over IPv6.
            for (address, in_place) in [("10.65.0.14", "fd65::14"), ("10.65.0.10", "fd65::10")] {
                assert!(file.contains(address), "{address} in\n{file}");
                file = file.replace(address, in_place);
            }
            for (at, mode) in ["weighted", "flow", "flowlet", "active-backup", "duplicate"]
                .iter()
                .enumerate()
            {
                file += &format!(
                    "[[bond.class]]\nname = \"c{at}\"\nmode = \"{mode}\"\nmark = {}\n",
                    at + 1
                );
            }
        }
        a.write_config(&file).unwrap();
        let report = check(a);
        let programs = report
            .host
            .iter()
            .find(|ability| ability.kind == "programs");
        let mut words = programs
            .iter()
            .flat_map(|programs| programs.what.split(' '));
        let walked: u32 = words
            .find_map(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("{report:#?}"));
        println!("{mode}: {walked} instructions");
        assert!(walked < most, "{mode}: {walked} instructions");
    }
}
