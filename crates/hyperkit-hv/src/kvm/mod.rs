//! The engine on Linux KVM, with the kernel's own local APICs and I/O APIC.
//!
//! Not every KVM is worth using: one without VT-x or SVM behind it emulates instructions and gives up on some.
//! [`speed`] tells. Spec: Linux `Documentation/virt/kvm/api.rst`.

mod kick;
mod probe;
mod registers;
mod vcpu;

use std::sync::{Arc, Mutex, PoisonError};

use hyperkit_bus::{InterruptLine, RestoreError};
use hyperkit_mem::GuestRam;
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_MAX_CPUID_ENTRIES, kvm_clock_data, kvm_irqchip,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use self::kick::Kicker;
pub use self::probe::{Speed, speed};
use self::vcpu::KvmVcpu;
use crate::{CpuModel, EngineKind, Kick, Vcpu, Vm, VmError};

/// Where KVM puts its three TSS pages on Intel processors: in the device window, used by nothing else.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A machine on KVM.
pub struct KvmVm {
    fd: Arc<VmFd>,
    slots: Vec<Slot>,
    // Held so that the memory outlives the machine; the kernel does not know our allocation.
    ram: Arc<GuestRam>,
}

struct Slot {
    fd: Mutex<Option<VcpuFd>>,
    kicker: Arc<Kicker>,
}

impl std::fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmVm").field("ram", &self.ram).finish_non_exhaustive()
    }
}

impl KvmVm {
    /// Makes a machine with `model.vcpus` processors on `ram`.
    ///
    /// # Errors
    /// [`VmError::Unavailable`] without a usable `/dev/kvm`, [`VmError::Host`] when the kernel refuses.
    pub fn new(ram: Arc<GuestRam>, model: &CpuModel) -> Result<Arc<KvmVm>, VmError> {
        let kvm = open()?;
        let host = |what| move |error: kvm_ioctls::Error| VmError::Host { what, source: error.into() };
        let max = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        if model.vcpus > max {
            return Err(VmError::TooManyVcpus { engine: EngineKind::Kvm, asked: model.vcpus, max });
        }
        let fd = kvm.create_vm().map_err(host("a KVM machine"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(host("the TSS address"))?;
        fd.create_irq_chip().map_err(host("KVM's interrupt controllers"))?;
        map_ram(&fd, &ram)?;
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("the list of CPU features"))?;
        let mut slots = Vec::new();
        for id in 0..model.vcpus {
            let vcpu = fd.create_vcpu(u64::from(id)).map_err(host("a KVM vCPU"))?;
            vcpu.set_cpuid2(&cpuid_of(&cpuid, id, model.vcpus)).map_err(host("the CPU features"))?;
            slots.push(Slot { fd: Mutex::new(Some(vcpu)), kicker: Arc::new(Kicker::default()) });
        }
        kick::install_signal().map_err(|source| VmError::Host { what: "a signal handler", source })?;
        Ok(Arc::new(KvmVm { fd: Arc::new(fd), slots, ram }))
    }
}

/// Opens `/dev/kvm`, with a reason that tells a person what to do.
fn open() -> Result<Kvm, VmError> {
    let unavailable = |why: String| VmError::Unavailable { engine: EngineKind::Kvm, why };
    let kvm = Kvm::new().map_err(|error| {
        let error = std::io::Error::from(error);
        unavailable(match error.kind() {
            std::io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "/dev/kvm may not be opened; add yourself to the group kvm".to_owned()
            }
            _ => format!("/dev/kvm: {error}"),
        })
    })?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        other => Err(unavailable(format!("its interface has version {other}, not 12"))),
    }
}

fn map_ram(fd: &VmFd, ram: &Arc<GuestRam>) -> Result<(), VmError> {
    for (slot, region) in ram.regions().iter().enumerate() {
        let host = ram.span(region.start, region.bytes).expect("a region lies in its own RAM");
        let memory = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start.0,
            memory_size: region.bytes,
            userspace_addr: host.as_ptr() as u64,
        };
        // SAFETY: the memory stays mapped as long as `KvmVm` holds `ram`, and every access to it elsewhere is made
        // through raw pointers.
        let mapped = unsafe { fd.set_user_memory_region(memory) };
        mapped.map_err(|error| VmError::Host { what: "the guest's memory", source: error.into() })?;
    }
    Ok(())
}

/// The kernel's list of features with the APIC id and the number of processors filled in.
fn cpuid_of(supported: &CpuId, id: u32, vcpus: u32) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0xffff) | (vcpus.min(255) << 16) | (id << 24);
                entry.ecx |= 1 << 31; // a hypervisor is present
            }
            0xb | 0x1f => entry.edx = id,
            _ => {}
        }
    }
    cpuid
}

impl Vm for KvmVm {
    fn engine(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn take_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, VmError> {
        let missing =
            || VmError::TooManyVcpus { engine: EngineKind::Kvm, asked: id, max: self.slots.len() as u32 };
        let slot = self.slots.get(id as usize).ok_or_else(missing)?;
        let fd = slot.fd.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(missing)?;
        Ok(Box::new(KvmVcpu::new(fd, slot.kicker.clone(), self.ram.clone(), self.fd.clone())))
    }

    fn kick(&self, id: u32) -> Arc<dyn Kick> {
        match self.slots.get(id as usize) {
            Some(slot) => slot.kicker.clone(),
            None => Arc::new(Kicker::default()),
        }
    }

    fn interrupt_line(&self, gsi: u32) -> Arc<dyn InterruptLine> {
        Arc::new(Line { fd: self.fd.clone(), gsi })
    }

    fn save(&self) -> Vec<u8> {
        let mut ioapic = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        let chip = self.fd.get_irqchip(&mut ioapic).is_ok();
        let clock = self.fd.get_clock().map_or(0, |clock| clock.clock);
        let mut bytes = vec![1, u8::from(chip)];
        bytes.extend(clock.to_le_bytes());
        // SAFETY: the kernel filled the I/O APIC's part of the union, which is plain integers.
        let state = unsafe { ioapic.chip.ioapic };
        bytes.extend(state.base_address.to_le_bytes());
        for pin in &state.redirtbl {
            // SAFETY: both views of an entry are plain integers.
            bytes.extend(unsafe { pin.bits }.to_le_bytes());
        }
        bytes
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), RestoreError> {
        let refused = |why: &str| RestoreError { device: "KVM", why: why.to_owned() };
        let (head, pins) = bytes.split_at_checked(18).ok_or_else(|| refused("it is cut short"))?;
        if head[0] != 1 || pins.len() != 24 * 8 {
            return Err(refused("it is of another version or cut short"));
        }
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken"));
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        self.fd.get_irqchip(&mut chip).map_err(|error| refused(&error.to_string()))?;
        // SAFETY: `get_irqchip` filled the I/O APIC's part of the union.
        let state = unsafe { &mut chip.chip.ioapic };
        state.base_address = word(&head[10..]);
        for (entry, bytes) in state.redirtbl.iter_mut().zip(pins.chunks_exact(8)) {
            entry.bits = word(bytes);
        }
        self.fd.set_irqchip(&chip).map_err(|error| refused(&error.to_string()))?;
        let clock = kvm_clock_data { clock: word(&head[2..10]), ..Default::default() };
        self.fd.set_clock(&clock).map_err(|error| refused(&error.to_string()))
    }
}

/// An input of the kernel's I/O APIC.
struct Line {
    fd: Arc<VmFd>,
    gsi: u32,
}

impl InterruptLine for Line {
    fn set(&self, high: bool) {
        // The kernel refuses only inputs that do not exist; a device wired to one has no interrupt.
        let _ = self.fd.set_irq_line(self.gsi, high);
    }
}
