//! The engine on Linux KVM.
