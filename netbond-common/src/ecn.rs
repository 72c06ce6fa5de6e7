//! Explicit Congestion Notification across a tunnel (RFC 6040).

/// The two ECN bits of a TOS byte or traffic class (RFC 3168, 5).
pub const MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const CE: u8 = 0b11;

/// What decapsulation makes of the inner packet's ECN field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decapsulated {
    Keep,
    /// Set to this codepoint.
    Set(u8),
    /// Congestion was marked, and the inner transport would not see it.
    Drop,
}

/// The inner ECN field after decapsulation (RFC 6040, figure 4), from two TOS bytes.
#[inline(always)]
#[must_use]
pub const fn decapsulate(inner_tos: u8, outer_tos: u8) -> Decapsulated {
    let (inner, outer) = (inner_tos & MASK, outer_tos & MASK);
    match (inner, outer) {
        (NOT_ECT, CE) => Decapsulated::Drop,
        (CE, _) | (NOT_ECT, _) => Decapsulated::Keep,
        (_, CE) => Decapsulated::Set(CE),
        (_, ECT_1) if inner != ECT_1 => Decapsulated::Set(ECT_1),
        (_, _) => Decapsulated::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figure 4 of RFC 6040, row by row: inner, then the result for outer Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn follows_figure_4_of_rfc_6040() {
        const ECT_0: u8 = 0b10;
        const DROP: u8 = 0xff;
        let figure = [
            (NOT_ECT, [NOT_ECT, NOT_ECT, NOT_ECT, DROP]),
            (ECT_0, [ECT_0, ECT_0, ECT_1, CE]),
            (ECT_1, [ECT_1, ECT_1, ECT_1, CE]),
            (CE, [CE, CE, CE, CE]),
        ];
        for (inner, row) in figure {
            for (outer, want) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                let got = match decapsulate(0xb8 | inner, 0x10 | outer) {
                    Decapsulated::Keep => inner,
                    Decapsulated::Set(ecn) => ecn,
                    Decapsulated::Drop => DROP,
                };
                assert_eq!(got, want, "inner {inner:02b} outer {outer:02b}");
            }
        }
    }
}
