//! Which device computes.

use candle_core::Device;

use crate::options::DeviceChoice;

/// Was this program built to compute on GPUs? Then a driver may have to be reached.
#[must_use]
pub fn computes_on_gpus() -> bool {
    cfg!(feature = "cuda")
}

/// The device for a choice. Where the best one cannot be used, a line says why, and the CPU computes.
pub(crate) fn choose(choice: DeviceChoice) -> Device {
    if choice == DeviceChoice::Cpu {
        return Device::Cpu;
    }
    match gpu() {
        Ok(gpu) => gpu,
        Err(reason) => {
            tracing::info!("the model is computed on the CPU: {reason}");
            Device::Cpu
        }
    }
}

/// The first GPU; or why there is none.
pub(crate) fn gpu() -> Result<Device, String> {
    if !candle_core::utils::cuda_is_available() {
        return Err("this program was built without support for GPUs".to_owned());
    }
    Device::new_cuda(0).map_err(|error| {
        let error = error.to_string();
        // A backtrace may follow.
        format!("no GPU can be used ({})", error.lines().next().unwrap_or_default())
    })
}

/// A word for people.
pub(crate) fn describe(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_the_cpu_computes_and_the_reason_is_known() {
        assert!(choose(DeviceChoice::Cpu).is_cpu());
        match gpu() {
            Ok(_) => assert!(!choose(DeviceChoice::Auto).is_cpu()),
            Err(reason) => {
                eprintln!("the reason: {reason}");
                assert!(choose(DeviceChoice::Auto).is_cpu() && reason.lines().count() == 1, "{reason}");
                assert_eq!(reason.contains("without support"), !cfg!(feature = "cuda"), "{reason}");
            }
        }
    }
}
