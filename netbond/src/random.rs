//! Numbers that nobody can guess.

use std::fs::File;
use std::io::{self, Read as _};

/// As many random bytes as asked for, from the kernel.
///
/// # Errors
///
/// Where there is no /dev/urandom, or it cannot be read.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
