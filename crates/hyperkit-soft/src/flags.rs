//! RFLAGS, with the arithmetic flags computed only when somebody looks.
//!
//! An arithmetic op stores its result and its carries; each flag is a function of those that does not depend on
//! which op it was (the scheme of Mihocka and Shwartsman, "Virtualization Without Direct Execution or Jitting").

use crate::interp::int::width::Int;

/// Bits of RFLAGS (SDM vol. 1 §3.4.3).
#[expect(missing_docs, reason = "the names are the SDM's")]
pub mod bit {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// RFLAGS in pieces.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Flags {
    /// ZF is `zero == 0`.
    pub zero: u64,
    /// SF is its bit 63; PF is the parity of its low byte. A result is sign-extended to 64 bits to be stored here.
    pub sign: u64,
    /// CF is bit 63, OF is bit 63 xor bit 62, AF is bit 3: the vector of carries out of each bit, moved up so
    /// that the carry out of the operand's top bit is bit 63 (and AF put back at bit 3).
    pub carries: u64,
    /// All other bits of RFLAGS, where RFLAGS has them; the arithmetic ones are 0 here. Bit 1 is set on reading.
    pub rest: u64,
}

impl Flags {
    /// CF.
    #[inline]
    pub fn cf(&self) -> bool {
        (self.carries as i64) < 0
    }

    /// OF.
    #[inline]
    pub fn of(&self) -> bool {
        ((self.carries ^ (self.carries << 1)) as i64) < 0
    }

    /// ZF.
    #[inline]
    pub fn zf(&self) -> bool {
        self.zero == 0
    }

    /// SF.
    #[inline]
    pub fn sf(&self) -> bool {
        (self.sign as i64) < 0
    }

    /// PF.
    #[inline]
    pub fn pf(&self) -> bool {
        (self.sign as u8).count_ones().is_multiple_of(2)
    }

    /// AF.
    #[inline]
    pub fn af(&self) -> bool {
        self.carries & 8 != 0
    }

    /// Sets CF, keeps OF and the others.
    #[inline]
    pub fn set_cf(&mut self, cf: bool) {
        self.set_cf_of(cf, self.of());
    }

    /// Sets CF and OF, keeps the others.
    #[inline]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.carries = (self.carries & 8) | (u64::from(cf) << 63) | (u64::from(cf ^ of) << 62);
    }

    /// Sets ZF, SF and PF by a result; returns it.
    #[inline(always)]
    pub fn result<T: Int>(&mut self, result: T) -> T {
        self.zero = result.sx();
        self.sign = result.sx();
        result
    }

    /// Sets all flags as AND, OR, XOR and TEST do; returns the result. AF, undefined, is cleared.
    #[inline(always)]
    pub fn logic<T: Int>(&mut self, result: T) -> T {
        self.carries = 0;
        self.result(result)
    }

    /// Sets all flags for `result = a + b`, with or without a carry in; returns the result.
    #[inline(always)]
    pub fn add<T: Int>(&mut self, a: u64, b: u64, result: T) -> T {
        self.carries = align::<T>((a & b) | ((a | b) & !result.zx()));
        self.result(result)
    }

    /// Sets all flags for `result = a - b`, with or without a borrow in; returns the result.
    #[inline(always)]
    pub fn sub<T: Int>(&mut self, a: u64, b: u64, result: T) -> T {
        self.carries = align::<T>((!a & b) | ((!a | b) & result.zx()));
        self.result(result)
    }

    /// Gives CF back the value it has in `carries`, as INC and DEC need; keeps OF and the others.
    #[inline(always)]
    pub fn put_back_cf(&mut self, carries: u64) {
        let differs = (self.carries ^ carries) & (1 << 63);
        self.carries ^= differs | (differs >> 1);
    }

    /// The arithmetic flags as RFLAGS has them.
    pub fn arithmetic(&self) -> u64 {
        let put = |set: bool, mask: u64| if set { mask } else { 0 };
        put(self.cf(), bit::CF)
            | put(self.pf(), bit::PF)
            | put(self.af(), bit::AF)
            | put(self.zf(), bit::ZF)
            | put(self.sf(), bit::SF)
            | put(self.of(), bit::OF)
    }

    /// Takes the arithmetic flags from an RFLAGS value, keeps the rest.
    pub fn set_arithmetic(&mut self, rflags: u64) {
        let is = |mask: u64| rflags & mask != 0;
        self.zero = u64::from(!is(bit::ZF));
        self.sign = (u64::from(is(bit::SF)) << 63) | u64::from(!is(bit::PF));
        self.carries = u64::from(is(bit::AF)) << 3;
        self.set_cf_of(is(bit::CF), is(bit::OF));
    }

    /// RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.arithmetic() | (self.rest & !bit::ARITHMETIC) | 2
    }

    /// Takes all of an RFLAGS value, without any check of privilege.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.set_arithmetic(rflags);
        self.rest = rflags & !bit::ARITHMETIC & !2;
    }
}

/// Moves a vector of carries of width `T` to where `Flags::carries` has them.
#[inline(always)]
fn align<T: Int>(carries: u64) -> u64 {
    if T::BITS == 64 { carries } else { (carries << (64 - T::BITS)) | (carries & 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_arithmetic_flags_survives() {
        for n in 0..64u64 {
            let spread = [bit::CF, bit::PF, bit::AF, bit::ZF, bit::SF, bit::OF];
            let rflags =
                spread.iter().enumerate().map(|(i, mask)| if n >> i & 1 == 1 { *mask } else { 0 }).sum();
            let mut flags = Flags { rest: bit::IF, ..Flags::default() };
            flags.set_arithmetic(rflags);
            assert_eq!(flags.arithmetic(), rflags);
            assert_eq!(flags.rflags(), rflags | bit::IF | 2);
        }
    }

    /// The arithmetic flags of `a + b + carry` or `a - b - carry`, each computed by its definition.
    fn expected<T: Int>(a: T, b: T, carry: u64, subtract: bool) -> u64 {
        let (wide_a, wide_b) = (i128::from(a.zx()), i128::from(b.zx()));
        let (signed_a, signed_b) = (i128::from(a.sx() as i64), i128::from(b.sx() as i64));
        let carry = i128::from(carry);
        let sign = if subtract { -1 } else { 1 };
        let exact = wide_a + sign * (wide_b + carry);
        let signed = signed_a + sign * (signed_b + carry);
        let low = (wide_a & 15) + sign * ((wide_b & 15) + carry);
        let result = T::cut(exact as u64);
        let put = |set: bool, mask: u64| if set { mask } else { 0 };
        put(exact < 0 || exact >> T::BITS != 0, bit::CF)
            | put((result.zx() as u8).count_ones().is_multiple_of(2), bit::PF)
            | put(!(0..16).contains(&low), bit::AF)
            | put(result.zx() == 0, bit::ZF)
            | put((result.sx() as i64) < 0, bit::SF)
            | put(i128::from(result.sx() as i64) != signed, bit::OF)
    }

    fn check<T: Int>(a: u64, b: u64, carry: u64) {
        let (a, b) = (T::cut(a), T::cut(b));
        let mut flags = Flags::default();
        flags.add::<T>(a.zx(), b.zx(), T::cut(a.zx().wrapping_add(b.zx()).wrapping_add(carry)));
        assert_eq!(flags.arithmetic(), expected(a, b, carry, false), "{a:?} + {b:?} + {carry}");
        flags.sub::<T>(a.zx(), b.zx(), T::cut(a.zx().wrapping_sub(b.zx()).wrapping_sub(carry)));
        assert_eq!(flags.arithmetic(), expected(a, b, carry, true), "{a:?} - {b:?} - {carry}");
        let before = Flags { carries: carry << 63, ..Flags::default() }.carries;
        flags.put_back_cf(before);
        let all_but_cf = expected(a, b, carry, true) & !bit::CF;
        assert_eq!(flags.arithmetic(), all_but_cf | carry, "{a:?} - {b:?}, CF kept");
    }

    proptest::proptest! {
        #[test]
        fn lazy_flags_are_those_of_the_definition(a: u64, b: u64, carry in 0u64..2, small in 0u64..20) {
            for (a, b) in [(a, b), (a, small), (small, b), (a, a), (a, a.wrapping_neg()), (1 << 63, b | 1 << 63)] {
                check::<u8>(a, b, carry);
                check::<u16>(a, b, carry);
                check::<u32>(a, b, carry);
                check::<u64>(a, b, carry);
            }
        }
    }
}
