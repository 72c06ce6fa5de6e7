//! What decoders of what others write must survive.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Bytes of which a few are others, and whose end may be missing.
pub(crate) fn bytes(whole: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let edits = vec((any::<Index>(), any::<u8>()), 0..8);
    (edits, any::<Index>()).prop_map(move |(edits, cut)| {
        let mut bytes = whole.clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        bytes
    })
}

/// The same of a text.
pub(crate) fn text(whole: &str) -> impl Strategy<Value = String> + use<> {
    bytes(whole.as_bytes().to_vec()).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
