//! Reused memory for row groups: a buffer goes back to the pool when the last view that borrows it is dropped.
//!
//! Taken once a row group, never once a sample: the lock is off the path of a sample.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Idle buffers, bounded in bytes.
#[derive(Debug)]
pub struct BufferPool {
    idle: Mutex<Idle>,
}

#[derive(Debug)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: u64,
    limit: u64,
}

impl Default for BufferPool {
    fn default() -> Self {
        Self {
            idle: Mutex::new(Idle {
                buffers: Vec::new(),
                bytes: 0,
                limit: 64 << 20,
            }),
        }
    }
}

impl BufferPool {
    /// Bytes of idle buffers that are kept.
    pub fn set_limit(&self, bytes: u64) {
        self.lock().limit = bytes;
    }

    /// A buffer of `len` bytes with arbitrary content: the smallest idle one that fits, else a new one.
    pub fn take(self: &Arc<Self>, len: usize) -> Pooled {
        let mut buffer = {
            let mut idle = self.lock();
            let fits = idle.buffers.iter().enumerate().filter(|(_, b)| b.len() >= len);
            match fits.min_by_key(|(_, b)| b.len()).map(|(i, _)| i) {
                Some(i) => {
                    let buffer = idle.buffers.swap_remove(i);
                    idle.bytes -= buffer.len() as u64;
                    buffer
                }
                None => Vec::new(),
            }
        };
        if buffer.len() < len {
            buffer = vec![0; len];
        }
        Pooled {
            buffer,
            len,
            pool: Arc::clone(self),
        }
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut idle = self.lock();
        idle.bytes += buffer.len() as u64;
        idle.buffers.push(buffer);
        // The oldest go first: sizes that no longer occur must not stay for ever.
        while idle.bytes > idle.limit && !idle.buffers.is_empty() {
            let dropped = idle.buffers.remove(0);
            idle.bytes -= dropped.len() as u64;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        // Plain bytes and counts: a thread that died while holding them left nothing torn.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer on loan from the pool.
pub struct Pooled {
    buffer: Vec<u8>,
    len: usize,
    pool: Arc<BufferPool>,
}

impl Pooled {
    /// The bytes, to be filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }

    /// Shared bytes; the buffer goes back when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}
