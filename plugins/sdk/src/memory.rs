//! Memory for an instance that lives for one call: one piece after the other. Only the last piece can grow, shrink or be taken
//! back; what others leave behind goes with the instance. A general allocator takes half of the time of a short call.
//!
//! A policy that works with much text and gives most of it back in between may want another: without the feature `memory`
//! the one of Rust's library is used.

#![allow(unsafe_code, reason = "an allocator is unsafe by its nature; each use says why it is sound")]

use std::alloc::{GlobalAlloc, Layout};
use std::arch::wasm32::{memory_grow, memory_size};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const PAGE_BYTES: usize = 65_536;

#[global_allocator]
static MEMORY: OneCall = OneCall { free: AtomicUsize::new(0), limit: AtomicUsize::new(0) };

/// A guest has one thread, so the atomics are plain numbers.
struct OneCall {
    /// Where the next piece may begin; 0: none was asked for yet.
    free: AtomicUsize,
    /// Where what belongs to us ends.
    limit: AtomicUsize,
}

unsafe extern "C" {
    /// The linker puts it behind the stack and all statics.
    safe static __heap_base: u8;
}

// SAFETY: pieces begin behind `__heap_base` or in pages that were just added, end before `limit`, and never overlap, since `free`
// only goes back to the start of the piece that ended there.
unsafe impl GlobalAlloc for OneCall {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.free.load(Relaxed) == 0 {
            self.free.store((&raw const __heap_base).addr(), Relaxed);
            self.limit.store(memory_size(0) * PAGE_BYTES, Relaxed);
        }
        self.place(layout).map_or(std::ptr::null_mut(), |start| std::ptr::with_exposed_provenance_mut(start))
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if piece.addr() + layout.size() == self.free.load(Relaxed) {
            self.free.store(piece.addr(), Relaxed);
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let (start, end) = (piece.addr(), piece.addr() + layout.size());
        let is_last = end == self.free.load(Relaxed);
        if is_last {
            self.free.store(start, Relaxed);
        } else if bytes <= layout.size() {
            return piece;
        }
        // SAFETY: as the caller promises, `bytes` rounded up to the alignment is a size.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        let Some(place) = self.place(wanted) else {
            if is_last {
                self.free.store(end, Relaxed);
            }
            return std::ptr::null_mut();
        };
        if place == start {
            return piece;
        }
        let moved = std::ptr::with_exposed_provenance_mut(place);
        // SAFETY: a last piece that has to move goes to pages that are new, any other behind the last; so they do not overlap.
        unsafe { piece.copy_to_nonoverlapping(moved, layout.size().min(bytes)) };
        moved
    }
}

impl OneCall {
    /// Where a piece begins, if there is room for it or room can be made.
    fn place(&self, layout: Layout) -> Option<usize> {
        let in_front = self.free.load(Relaxed).checked_next_multiple_of(layout.align())?;
        let start = match in_front.checked_add(layout.size()) {
            Some(end) if end <= self.limit.load(Relaxed) => in_front,
            _ => self.grow(in_front, layout)?,
        };
        self.free.store(start + layout.size(), Relaxed);
        Some(start)
    }

    /// Adds pages. Somebody else may have added some in between: then what is left before those is given up.
    fn grow(&self, in_front: usize, layout: Layout) -> Option<usize> {
        let limit = self.limit.load(Relaxed);
        let continues = memory_size(0) * PAGE_BYTES == limit;
        let missing = if continues { in_front.checked_add(layout.size())? - limit } else { layout.size() };
        let pages = missing.div_ceil(PAGE_BYTES);
        let before = memory_grow(0, pages);
        if before == usize::MAX {
            return None;
        }
        self.limit.store((before + pages) * PAGE_BYTES, Relaxed);
        Some(if continues { in_front } else { before * PAGE_BYTES })
    }
}
