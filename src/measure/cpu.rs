//! What this process has used: CPU time by thread, peak of the resident memory. Linux tells; elsewhere the answer is `None`.

use std::fs;

/// CPU seconds of the threads alive, by what they do.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTimes {
    /// Threads that decode and augment.
    pub workers: f64,
    /// The reader.
    pub reader: f64,
    /// All other threads.
    pub others: f64,
}

impl CpuTimes {
    /// From the kernel's count of nanoseconds, `/proc/self/task/*/schedstat`.
    pub fn now() -> Option<Self> {
        let mut times = Self::default();
        for task in fs::read_dir("/proc/self/task").ok()? {
            let task = task.ok()?.path();
            // A thread may end between the listing and the reading.
            let (Ok(name), Ok(stat)) = (
                fs::read_to_string(task.join("comm")),
                fs::read_to_string(task.join("schedstat")),
            ) else {
                continue;
            };
            let nanoseconds: f64 = stat.split(' ').next()?.parse().ok()?;
            let sum = match name.trim() {
                name if name.starts_with("feed-worker") => &mut times.workers,
                "feed-reader" => &mut times.reader,
                _ => &mut times.others,
            };
            *sum += nanoseconds / 1e9;
        }
        Some(times)
    }

    /// Used since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            workers: self.workers - before.workers,
            reader: self.reader - before.reader,
            others: self.others - before.others,
        }
    }

    /// All threads together, s.
    pub fn sum(self) -> f64 {
        self.workers + self.reader + self.others
    }
}

/// Largest resident set so far, MiB.
pub fn peak_rss_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Seconds of work of the calling thread.
    fn burn(seconds: f64) {
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed().as_secs_f64() < seconds {
            sum = (0..10_000).fold(sum, |a: u64, b| a.wrapping_mul(31).wrapping_add(b));
        }
        assert_ne!(sum, 1);
    }

    /// Threads go by their names; the times of one that has ended are gone, so it waits until they are read.
    #[test]
    fn work_counts_for_the_thread_that_did_it() {
        let done = std::sync::Arc::new(std::sync::Barrier::new(3));
        let (before, mut threads) = (CpuTimes::now().unwrap(), Vec::new());
        for (name, seconds) in [("feed-worker-7", 0.2), ("feed-reader", 0.1)] {
            let done = done.clone();
            let body = move || {
                burn(seconds);
                done.wait();
                done.wait();
            };
            threads.push(std::thread::Builder::new().name(name.into()).spawn(body).unwrap());
        }
        done.wait();
        let used = CpuTimes::now().unwrap().since(before);
        done.wait();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // On a busy machine a wall second is less than a CPU second; other tests' feeds may add to both.
        assert!(used.workers > 0.02 && used.reader > 0.01, "{used:?}");
        assert!((used.sum() - used.workers - used.reader - used.others).abs() < 1e-9);
        assert!(peak_rss_mb().unwrap() > 1.0);
    }
}
