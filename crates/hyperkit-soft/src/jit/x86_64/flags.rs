//! Where the guest's arithmetic flags are while a block is translated, and the code that moves them.
//!
//! They live in the host's RFLAGS. What overwrites those (a TLB check, the budget) first has them saved to the frame,
//! unless the instruction that made them can be repeated: then nothing is done, and whoever needs them, which is
//! mostly only the rare way out, repeats it.

use super::asm::{Asm, host};
use super::frame::FLAGS;
use crate::flags::bit;

/// The six arithmetic flags, as `iced_x86` has them.
pub const ALL: u32 = 0x3f;
/// OF, as `iced_x86` has it.
pub const OF: u32 = 0x01;
/// CF, as `iced_x86` has it.
pub const CF: u32 = 0x10;

/// Code that makes the flags again that an instruction made: at most this long.
const CODE_MAX: usize = 24;

/// How to make the flags again.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    code: [u8; CODE_MAX],
    len: u8,
    /// General registers of the guest that must not have changed, as a mask.
    pub reads: u16,
}

impl Recipe {
    /// A recipe of this code; `None` if it is too long.
    pub fn new(code: &[u8], reads: u16) -> Option<Recipe> {
        let mut recipe = Recipe { code: [0; CODE_MAX], len: code.len() as u8, reads };
        recipe.code.get_mut(..code.len())?.copy_from_slice(code);
        Some(recipe)
    }

    fn emit(&self, asm: &mut Asm) {
        asm.bytes(&self.code[..usize::from(self.len)]);
    }
}

/// Where the flags are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In RFLAGS.
    Host,
    /// In RFLAGS and in the frame.
    Both,
    /// In the frame.
    Frame,
    /// Nowhere: [`Tracker::recipe`] makes them.
    Recipe,
}

/// Follows the flags through a block.
#[derive(Debug, Clone, Copy)]
pub struct Tracker {
    /// Where they are.
    pub place: Place,
    /// How to make them again, if that is known.
    pub recipe: Option<Recipe>,
}

impl Tracker {
    /// They are in one place, and no recipe is known.
    pub fn at(place: Place) -> Tracker {
        Tracker { place, recipe: None }
    }

    /// Sees to it that they are in the frame. May overwrite R15.
    pub fn need_frame(&mut self, asm: &mut Asm) {
        self.need_frame_through(asm, host::R15);
    }

    /// The same. May overwrite `free`.
    pub fn need_frame_through(&mut self, asm: &mut Asm, free: u8) {
        match self.place {
            Place::Both | Place::Frame => return,
            Place::Recipe => self.remake(asm),
            Place::Host => {}
        }
        save_through(asm, free);
        self.place = Place::Both;
    }

    /// Prepares for code that overwrites RFLAGS. May overwrite R15.
    pub fn before_clobber(&mut self, asm: &mut Asm) {
        self.before_clobber_through(asm, host::R15);
    }

    /// The same. May overwrite `free`.
    pub fn before_clobber_through(&mut self, asm: &mut Asm, free: u8) {
        match self.place {
            Place::Host if self.recipe.is_some() => self.place = Place::Recipe,
            Place::Host => {
                save_through(asm, free);
                self.place = Place::Frame;
            }
            Place::Both => self.place = Place::Frame,
            Place::Frame | Place::Recipe => {}
        }
    }

    /// Sees to it that the flags of `mask` are in RFLAGS. Overwrites R14 if [`Tracker::needs_scratch`] says so.
    pub fn need_host(&mut self, asm: &mut Asm, mask: u32) {
        match self.place {
            Place::Host | Place::Both => {}
            Place::Recipe => {
                self.remake(asm);
                self.place = Place::Host;
            }
            Place::Frame => {
                restore(asm, mask);
                if mask == ALL {
                    self.place = Place::Both;
                }
            }
        }
    }

    /// Whether [`Tracker::need_host`] would overwrite R14.
    pub fn needs_scratch(&self, mask: u32) -> bool {
        self.place == Place::Frame && mask & !CF != 0
    }

    /// Whether writing registers of `mask` would have the flags be saved, now or later.
    pub fn needs(&self, mask: u16) -> bool {
        matches!(self.place, Place::Host | Place::Recipe)
            && self.recipe.is_some_and(|recipe| recipe.reads & mask != 0)
    }

    /// Registers of `mask` are about to be written by an instruction that does not overwrite all flags. May overwrite R15.
    pub fn before_write(&mut self, asm: &mut Asm, mask: u16) {
        if self.recipe.is_none_or(|recipe| recipe.reads & mask == 0) {
            return;
        }
        if self.place == Place::Recipe {
            self.need_frame(asm);
        }
        self.recipe = None;
    }

    /// All flags were overwritten by an instruction of the guest.
    pub fn overwritten(&mut self, recipe: Option<Recipe>) {
        *self = Tracker { place: Place::Host, recipe };
    }

    /// Emits the recipe.
    pub fn remake(&self, asm: &mut Asm) {
        if let Some(recipe) = &self.recipe {
            recipe.emit(asm);
        }
    }
}

/// OF in what the frame holds: LAHF and SETO are less work for the host than PUSHFQ.
pub const SAVED_OF: u32 = 1;

/// How far up the other flags are in what the frame holds, from where RFLAGS has them.
pub const SAVED_SHIFT: u8 = 8;

/// RFLAGS to what the frame holds of it.
pub fn pack(rflags: u64) -> u64 {
    let of = if rflags & bit::OF != 0 { u64::from(SAVED_OF) } else { 0 };
    ((rflags & bit::ARITHMETIC & 0xff) << SAVED_SHIFT) | of
}

/// The arithmetic flags of RFLAGS from what the frame holds.
pub fn unpack(saved: u64) -> u64 {
    let of = if saved & u64::from(SAVED_OF) != 0 { bit::OF } else { 0 };
    ((saved >> SAVED_SHIFT) & bit::ARITHMETIC & 0xff) | of
}

/// RFLAGS to the frame; overwrites R15. Above its 16 bits the place gets what RAX has there.
pub fn save(asm: &mut Asm) {
    save_through(asm, host::R15);
}

fn save_through(asm: &mut Asm, free: u8) {
    asm.mov(free, host::RAX);
    asm.out.push(0x9f); // lahf
    asm.bytes(&[0x0f, 0x90, 0xc0]); // seto al
    asm.store(FLAGS, host::RAX);
    asm.mov(host::RAX, free);
}

/// Bytes of what [`save`] emits.
pub const SAVE_BYTES: u8 = 14;

/// The flags of `mask`, at least, from the frame to RFLAGS; overwrites R14 unless it is only CF.
pub fn restore(asm: &mut Asm, mask: u32) {
    if mask & !CF == 0 {
        asm.reg_mem(false, &[0x0f, 0xba], 4, FLAGS); // bt dword [flags], 8
        asm.out.push(SAVED_SHIFT);
        return;
    }
    asm.mov(host::R14, host::RAX);
    asm.reg_mem(false, &[0x0f, 0xb7], host::RAX, FLAGS); // movzx eax, word [flags]
    if mask & OF != 0 {
        asm.bytes(&[0x04, 0x7f]); // add al, 0x7f: overflows if it was set
    }
    asm.out.push(0x9e); // sahf
    asm.mov(host::RAX, host::R14);
}
