//! What a machine is to be.

use hyperkit_boot::Image;
use hyperkit_hv::EngineKind;
use hyperkit_virtio::VirtioDevice;

/// How the engine is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// The host's hypervisor if it runs guests on hardware, our own CPU otherwise. Takes about 20 ms to find out.
    #[default]
    Auto,
    /// This one or none.
    Exactly(EngineKind),
}

/// Gets bytes that the guest sends, on a vCPU's thread.
pub type SerialSink = Box<dyn FnMut(&[u8]) + Send>;

/// A machine to build. [`MachineConfig::new`] has defaults; all fields may be changed.
pub struct MachineConfig {
    /// RAM in bytes: a multiple of 4096, at least 1 MiB. The host commits it as the guest touches it.
    pub memory_bytes: u64,
    /// Number of processors, at least 1.
    pub vcpus: u32,
    /// What runs them.
    pub engine: EngineChoice,
    /// An ELF with a PVH entry or a bzImage.
    pub kernel: Image,
    /// The initial RAM disk.
    pub initrd: Option<Image>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Gets what the guest sends to its serial port, mostly one byte a call, on a vCPU's thread.
    pub serial: SerialSink,
    /// The virtio devices, in the order in which the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
}

impl MachineConfig {
    /// 512 MiB, one processor, no devices, serial output thrown away.
    pub fn new(kernel: Image) -> MachineConfig {
        MachineConfig {
            memory_bytes: 512 << 20,
            vcpus: 1,
            engine: EngineChoice::default(),
            kernel,
            initrd: None,
            cmdline: String::new(),
            serial: Box::new(|_| {}),
            devices: Vec::new(),
        }
    }
}

impl std::fmt::Debug for MachineConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineConfig")
            .field("memory_bytes", &self.memory_bytes)
            .field("vcpus", &self.vcpus)
            .field("engine", &self.engine)
            .field("cmdline", &self.cmdline)
            .field("devices", &self.devices.len())
            .finish_non_exhaustive()
    }
}
