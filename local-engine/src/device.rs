//! Which device computes.

use candle_core::Device;

use crate::options::DeviceChoice;

/// The device for a choice. A build without GPU support always answers the CPU.
pub(crate) fn choose(choice: DeviceChoice) -> candle_core::Result<Device> {
    match choice {
        DeviceChoice::Auto => Device::cuda_if_available(0),
        DeviceChoice::Cpu => Ok(Device::Cpu),
    }
}

/// A word for people.
pub(crate) fn describe(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}
