//! SipHash-2-4 (Aumasson, Bernstein, 2012) of a few words: numbers that nobody without the key can
//! guess, however many others he has seen. The kernel's own random numbers for programs
//! (`bpf_get_prandom_u32`) are not of that kind.

/// A key: secret, and random.
pub type Key = [u64; 2];

/// The hash of three words.
#[inline(always)]
#[must_use]
pub const fn hash(key: Key, words: [u64; 3]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    compress(&mut v, words[0]);
    compress(&mut v, words[1]);
    compress(&mut v, words[2]);
    // The last word of a message has its length in bytes, mod 256, at the top.
    compress(&mut v, 24 << 56);
    v[2] ^= 0xff;
    round(&mut v);
    round(&mut v);
    round(&mut v);
    round(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn compress(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

#[inline(always)]
const fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The standard library's deprecated hasher is the same function.
    #[test]
    #[expect(deprecated, reason = "it is the only one with a key")]
    fn as_the_standard_library() {
        use std::hash::{Hasher as _, SipHasher};
        for seed in 0..100_u64 {
            let key = [seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), !seed];
            let words = [
                seed << 32 | 7,
                seed.wrapping_mul(0xdead_beef_1234_5677),
                seed,
            ];
            let mut hasher = SipHasher::new_with_keys(key[0], key[1]);
            for word in words {
                hasher.write(&word.to_le_bytes());
            }
            assert_eq!(hash(key, words), hasher.finish());
        }
    }
}
