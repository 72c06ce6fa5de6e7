//! Says which eBPF object goes into the binary: the committed one, unless NETBOND_OBJECT names
//! another.

fn main() {
    println!("cargo::rerun-if-env-changed=NETBOND_OBJECT");
    let object = std::env::var("NETBOND_OBJECT").unwrap_or_else(|_| {
        format!(
            "{}/bpf/netbond.bpf.o",
            std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default()
        )
    });
    println!("cargo::rerun-if-changed={object}");
    println!("cargo::rustc-env=NETBOND_OBJECT={object}");
}
