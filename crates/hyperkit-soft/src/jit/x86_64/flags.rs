//! Where the guest's arithmetic flags are while a block is translated, and the code that moves them.
//!
//! They live in the host's RFLAGS. What overwrites those (a TLB check, the budget) first has them saved to the frame,
//! unless the instruction that made them can be repeated: then nothing is done, and whoever needs them, which is
//! mostly only the rare way out, repeats it.

use super::asm::{Asm, host};
use super::frame::FLAGS;

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

    /// Sees to it that they are in the frame.
    pub fn need_frame(&mut self, asm: &mut Asm) {
        match self.place {
            Place::Both | Place::Frame => return,
            Place::Recipe => self.remake(asm),
            Place::Host => {}
        }
        save(asm);
        self.place = Place::Both;
    }

    /// Prepares for code that overwrites RFLAGS.
    pub fn before_clobber(&mut self, asm: &mut Asm) {
        match self.place {
            Place::Host if self.recipe.is_some() => self.place = Place::Recipe,
            Place::Host => {
                save(asm);
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

    /// Registers of `mask` are about to be written by an instruction that does not overwrite all flags.
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

/// RFLAGS to the frame. The place is 8 bytes below RSP for a moment, where no signal handler writes.
pub fn save(asm: &mut Asm) {
    asm.bytes(&[0x48, 0x8d, 0x64, 0x24, 0x08]); // lea rsp, [rsp + 8]
    asm.out.push(0x9c); // pushfq
}

/// Bytes of what [`save`] emits.
pub const SAVE_BYTES: u8 = 6;

/// The flags of `mask`, at least, from the frame to RFLAGS; overwrites R14 unless it is only CF.
pub fn restore(asm: &mut Asm, mask: u32) {
    if mask & !CF == 0 {
        asm.reg_mem(false, &[0x0f, 0xba], 4, FLAGS); // bt dword [flags], 0
        asm.out.push(0);
        return;
    }
    asm.mov(host::R14, host::RAX);
    if mask & OF != 0 {
        asm.load32(host::RAX, FLAGS);
        asm.bytes(&[0x80, 0xe4, 0x08]); // and ah, 8: OF
        asm.bytes(&[0x80, 0xc4, 0x78]); // add ah, 0x78: overflows if it was set
        asm.bytes(&[0x88, 0xc4]); // mov ah, al
    } else {
        asm.bytes(&[0x8a, 0x24, 0x24]); // mov ah, [flags]
    }
    asm.out.push(0x9e); // sahf
    asm.mov(host::RAX, host::R14);
}

const _: () = assert!(FLAGS.disp == 0);
