//! The numbers of tensors that lie in this process's memory.

use candle_core::{CpuStorage, Result, Storage, Tensor};

/// Calls `read` with the numbers of an f32 tensor on the CPU, in row-major order.
pub(crate) fn with_numbers<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(all)) = &*storage else { candle_core::bail!("f32 on the CPU was expected") };
    let begin = layout.start_offset();
    match all.get(begin..begin + layout.shape().elem_count()) {
        Some(numbers) => read(numbers),
        None => candle_core::bail!("a tensor is shorter than its shape"),
    }
}
