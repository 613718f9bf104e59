//! What a machine says about its memory and its queues.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::SealFlags;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::rings::{FEATURES, QUEUES, Rings};

/// The number of the descriptor that says "look again"; those before it are the queues' kicks.
const WAKE: u64 = QUEUES as u64;

/// Where a piece of the machine's memory is in its own address space, in which it names its queues.
#[derive(Debug, Clone, Copy)]
struct Region {
    user: u64,
    guest: u64,
    bytes: u64,
}

/// The settings of one machine, and the queues that they make.
#[derive(Debug)]
pub struct Backend {
    pub rings: Rings,
    regions: Vec<Region>,
    kicks: [Option<File>; QUEUES],
    events: OwnedFd,
    wake: OwnedFd,
    closed: bool,
}

impl Backend {
    /// A backend without memory and queues, whose kicks come to the epoll descriptor `events`.
    pub fn new(events: OwnedFd) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&events, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let rings = Rings::new(wake.try_clone()?);
        Ok(Self { rings, regions: Vec::new(), kicks: Default::default(), events, wake, closed: false })
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The machine is gone.
    pub fn close(&mut self) {
        self.closed = true;
        self.rings.stop_all();
        self.look_again();
    }

    fn look_again(&self) {
        // The counter cannot overflow, and the descriptor is open.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Empties the counter of an event.
    pub fn clear(&self, number: u64) {
        let mut count = [0; 8];
        let _ = match self.kicks.get(number as usize) {
            Some(Some(kick)) => rustix::io::read(kick, &mut count),
            Some(None) => Ok(0),
            None => rustix::io::read(&self.wake, &mut count),
        };
    }

    /// The address in the machine's memory of one in its own address space.
    fn guest_address(&self, user: u64) -> Result<GuestAddress> {
        let region = self
            .regions
            .iter()
            .find(|region| user.checked_sub(region.user).is_some_and(|offset| offset < region.bytes));
        let region = region.ok_or(Error::InvalidParam)?;
        Ok(GuestAddress(region.guest + (user - region.user)))
    }

    fn forget_kick(&mut self, index: usize) {
        if let Some(kick) = self.kicks.get_mut(index).and_then(Option::take) {
            // It can only fail for a descriptor that is not in the set.
            let _ = epoll::delete(&self.events, &kick);
        }
    }
}

/// Maps a piece of the machine's memory.
fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap> {
    // Nobody is to cut it off under us: where the file allows seals. What does not is the machine's own business.
    let _ = rustix::fs::fcntl_add_seals(file.as_fd(), SealFlags::SHRINK);
    let bytes = usize::try_from(region.memory_size).map_err(|_| Error::InvalidParam)?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, region.mmap_offset), bytes)
        .map_err(|error| Error::ReqHandlerError(io::Error::other(error)))?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr)).ok_or(Error::InvalidParam)
}

fn checked(index: u32) -> Result<usize> {
    let index = index as usize;
    if index < QUEUES { Ok(index) } else { Err(Error::InvalidParam) }
}

const UNSUPPORTED: Error = Error::InvalidOperation("it was not offered");

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.rings.stop_all();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.rings.set_features(features).map_err(|_| Error::InvalidParam)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut regions = Vec::new();
        let mut mappings = Vec::new();
        for (region, file) in table.iter().zip(files) {
            let end = |start: u64| start.checked_add(region.memory_size).ok_or(Error::InvalidParam);
            end(region.user_addr)?;
            end(region.guest_phys_addr)?;
            mappings.push(map(region, file)?);
            regions.push(Region {
                user: region.user_addr,
                guest: region.guest_phys_addr,
                bytes: region.memory_size,
            });
        }
        mappings.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
        let memory = GuestMemoryMmap::from_regions(mappings).map_err(|_| Error::InvalidParam)?;
        self.rings.set_memory(memory);
        self.regions = regions;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.rings.set_size(checked(index)?, size).map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = [descriptor, available, used].map(|address| self.guest_address(address));
        let [descriptor, available, used] = addresses;
        self.rings
            .set_addresses(checked(index)?, descriptor?, available?, used?)
            .map_err(|_| Error::InvalidParam)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.rings.set_base(checked(index)?, base as u16);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let queue = checked(index)?;
        let base = self.rings.stop(queue);
        self.forget_kick(queue);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = checked(u32::from(index))?;
        self.forget_kick(queue);
        if let Some(kick) = fd {
            rustix::io::ioctl_fionbio(&kick, true).map_err(|error| Error::ReqHandlerError(error.into()))?;
            epoll::add(&self.events, &kick, EventData::new_u64(u64::from(index)), EventFlags::IN)
                .map_err(|error| Error::ReqHandlerError(error.into()))?;
            self.kicks[queue] = Some(kick);
        }
        // "The ring is started": what was made available before counts too.
        self.rings.start(queue).map_err(|_| Error::InvalidParam)?;
        self.look_again();
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        if let Some(call) = &fd {
            // A counter that is full must not stop us.
            rustix::io::ioctl_fionbio(call, true).map_err(|error| Error::ReqHandlerError(error.into()))?;
        }
        self.rings.set_call(checked(u32::from(index))?, fd);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        checked(u32::from(index)).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.rings.enable(checked(index)?, enable);
        self.look_again();
        Ok(())
    }

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(UNSUPPORTED)
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(UNSUPPORTED)
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(UNSUPPORTED)
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(UNSUPPORTED)
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(UNSUPPORTED)
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(UNSUPPORTED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(UNSUPPORTED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(UNSUPPORTED)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(UNSUPPORTED)
    }
}
