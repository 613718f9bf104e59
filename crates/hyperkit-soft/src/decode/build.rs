//! Fetches and decodes blocks.
//!
//! A block ends with the first instruction that may go anywhere but to the next one, at the end of its page, or
//! after [`OPS_MAX`] ops. An instruction that crosses into the next page is a block of its own that knows both.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use crate::cpu::{CodeSize, Cpu, seg};
use crate::decode::blocks::{Block, Key, Parts, Span};
use crate::decode::{Context, lower_system};
use crate::interp::int::fuse::fuse;
use crate::mmu::CodePage;
use crate::op::Op;
use crate::trap::Trap;

/// Most ops of a block.
const OPS_MAX: usize = 64;

/// Longest instruction in bytes.
const INSTRUCTION_MAX: usize = 15;

/// Instructions decoded from bytes that are there, until one ends the block.
struct Run {
    ops: Vec<Op>,
    bytes: usize,
    chains: bool,
    varies: bool,
    alone: Option<u16>,
}

impl Cpu {
    /// The linear address of [`Cpu::rip`].
    #[inline(always)]
    pub fn rip_linear(&self) -> u64 {
        self.rip.wrapping_add(self.seg_base[seg::CS])
    }

    /// The block at [`Cpu::rip`], decoded if it is not cached, and whether the translations that it was found through
    /// are global; `None` if only one of two is. It is dead, to be executed once, while other processors may write to its
    /// page without a note.
    pub fn block_at_rip(&mut self) -> Result<(*const Block, Option<bool>), Trap> {
        let linear = self.checked_linear()?;
        let page = self.fetch_page(linear)?;
        let key = Key::new(page.phys | linear & 0xfff, self.code_size);
        if let Some(block) = self.blocks.find(key, linear) {
            match block.second_phys {
                None => return Ok((block, Some(page.global))),
                Some(phys) => {
                    let block = &raw const *block;
                    let next = self.fetch_page(self.page_after_code(linear))?;
                    if next.phys == phys {
                        return Ok((block, both(page, next)));
                    }
                }
            }
        }
        let (parts, keep) = self.decode(linear, page, OPS_MAX)?;
        let global = match parts.second_phys {
            None => Some(page.global),
            Some(_) => both(page, self.fetch_page(self.page_after_code(linear))?),
        };
        let block = Block::new(key, parts);
        Ok((if keep { self.blocks.insert(block) } else { self.blocks.lend(block) }, global))
    }

    /// A block of the one instruction at [`Cpu::rip`], not cached.
    pub fn single_at_rip(&mut self) -> Result<Block, Trap> {
        let linear = self.checked_linear()?;
        let page = self.fetch_page(linear)?;
        let (parts, _) = self.decode(linear, page, 1)?;
        Ok(Block::new(Key::new(page.phys | linear & 0xfff, self.code_size), parts))
    }

    /// The linear address of RIP; #GP beyond the code segment's limit or if it is not canonical.
    fn checked_linear(&mut self) -> Result<u64, Trap> {
        let linear = self.rip_linear();
        if self.code_size == CodeSize::Bits64 {
            return if is_canonical(linear) { Ok(linear) } else { Err(self.protection(0)) };
        }
        if self.rip > u64::from(self.segments[seg::CS].limit) {
            return Err(self.protection(0));
        }
        Ok(linear & 0xffff_ffff)
    }

    fn page_after_code(&self, linear: u64) -> u64 {
        let next = (linear & !0xfff).wrapping_add(4096);
        if self.code_size == CodeSize::Bits64 { next } else { next & 0xffff_ffff }
    }

    /// Decodes a block of at most `ops_max` instructions, and says whether it may be kept: more than one, and every
    /// write to them is noted from before they were read.
    fn decode(&mut self, linear: u64, page: CodePage, ops_max: usize) -> Result<(Parts, bool), Trap> {
        let within = (linear & 0xfff) as usize;
        let mut bytes = [0; OPS_MAX * INSTRUCTION_MAX];
        let mut keep = ops_max > 1 && self.protect_code(page.page);
        let len = bytes.len().min(ops_max * INSTRUCTION_MAX).min(4096 - within);
        copy_code(&page, within, &mut bytes[..len]);
        let context = Context { block_rip: self.rip, code_size: self.code_size };
        let run = decode_run(&bytes[..len], &context, ops_max);
        let first = within as u64;
        if !run.ops.is_empty() {
            let span = Span { page: page.page, first, last: first + run.bytes as u64 - 1 };
            return Ok((parts(run, vec![span], None), keep));
        }
        let next = self.fetch_page(self.page_after_code(linear))?;
        keep = ops_max > 1 && self.protect_code(next.page) && keep;
        let mut bytes = [0; 2 * INSTRUCTION_MAX];
        let (here, there) = bytes[..len + INSTRUCTION_MAX].split_at_mut(len);
        copy_code(&page, within, here);
        copy_code(&next, 0, there);
        let run = decode_run(&bytes[..len + INSTRUCTION_MAX], &context, 1);
        if run.ops.is_empty() {
            return Err(self.undefined());
        }
        let over = (run.bytes as u64).saturating_sub(len as u64).max(1);
        let spans = vec![
            Span { page: page.page, first, last: 4095 },
            Span { page: next.page, first: 0, last: over - 1 },
        ];
        Ok((parts(run, spans, Some(next.phys)), keep))
    }
}

/// Whether what depends on the translations of two pages is global, if they are of one kind.
fn both(page: CodePage, next: CodePage) -> Option<bool> {
    (page.global == next.global).then_some(page.global)
}

fn parts(run: Run, spans: Vec<Span>, second_phys: Option<u64>) -> Parts {
    Parts {
        ops: run.ops,
        bytes: run.bytes as u32,
        chains: run.chains,
        varies: run.varies,
        alone: run.alone,
        spans,
        second_phys,
    }
}

/// Whether bits 63 to 47 of an address are equal.
#[inline(always)]
pub fn is_canonical(linear: u64) -> bool {
    ((linear << 16) as i64 >> 16) as u64 == linear
}

fn copy_code(page: &CodePage, within: usize, bytes: &mut [u8]) {
    debug_assert!(within + bytes.len() <= 4096);
    // SAFETY: `host` is the first byte of a page of RAM, and the copy stays inside it; nobody has a reference
    // to guest memory.
    unsafe { std::ptr::copy_nonoverlapping(page.host.add(within), bytes.as_mut_ptr(), bytes.len()) };
}

/// Decodes until an instruction ends the block, is not whole, or there are `ops_max`. Empty only if the first
/// instruction is not whole.
fn decode_run(bytes: &[u8], context: &Context, ops_max: usize) -> Run {
    let bits = match context.code_size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let mut decoder = Decoder::with_ip(bits, bytes, context.block_rip, DecoderOptions::NONE);
    let mut run = Run { ops: Vec::with_capacity(8), bytes: 0, chains: true, varies: false, alone: None };
    let mut instruction = Instruction::default();
    let mut before: Option<Instruction> = None;
    while run.ops.len() < ops_max && decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let known = crate::interp::lower(&instruction, context);
        let ours = known.is_some();
        crate::system::limits::checks(&instruction, context, ours, &mut run.ops);
        let op = known.unwrap_or_else(|| lower_system(&instruction, context));
        run.bytes = decoder.position();
        let fused = match (before, run.ops.last_mut()) {
            (Some(before), Some(last)) if ops_max > 1 => fuse(last, &before, &op, &instruction, context),
            _ => false,
        };
        if run.alone.is_none() && happens_once(&instruction, ours) {
            run.alone = Some(run.ops.len() as u16);
        }
        if !fused {
            run.ops.push(op);
        }
        before = Some(instruction);
        let flow = instruction.flow_control();
        if !ours || flow != FlowControl::Next || ends_block(&instruction) {
            run.chains = ours && !ends_block(&instruction);
            run.varies =
                matches!(flow, FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall);
            break;
        }
    }
    run
}

/// Whether what an instruction does is seen outside the registers and RAM, or comes from outside, or depends on when it
/// is done, as how far a repeated string instruction gets does.
fn happens_once(instruction: &Instruction, ours: bool) -> bool {
    use iced_x86::Mnemonic::{Cli, Sti, Xsetbv};
    let repeated = instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
    repeated
        || instruction.mnemonic() == Xsetbv
        || (!ours && !instruction.is_invalid() && !matches!(instruction.mnemonic(), Cli | Sti))
}

/// Instructions of the unprivileged families after which the run loop looks around: POPF changes TF and IF.
fn ends_block(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic::{Popf, Popfd, Popfq};
    matches!(instruction.mnemonic(), Popf | Popfd | Popfq)
}
