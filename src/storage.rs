//! How much a node keeps, and how often that is looked through: options of the driver.

use std::time::Duration;

use clap::Args;
use oras_csi_core::policy::ByteSize;
use oras_csi_store::Percent;
use oras_csi_store::Reserve;
use oras_csi_store::gc::Watermarks;
use oras_csi_store::scrub::Schedule;

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct StorageOptions {
    /// Take away what nobody uses once the file system of the store is fuller than this, in percent of its bytes or
    /// of its inodes.
    #[arg(long, value_name = "PERCENT", default_value = "85")]
    gc_high_threshold: Percent,
    /// And go on until it is no fuller than this.
    #[arg(long, value_name = "PERCENT", default_value = "80")]
    gc_low_threshold: Percent,
    /// Keep what was used within this time.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    gc_minimum_age: u64,
    /// Fetch and unpack nothing that would leave less of the file system free than this, once what nobody uses was
    /// taken away. Kubelet begins to evict pods below 10.
    #[arg(long, value_name = "PERCENT", default_value = "10")]
    keep_free: Percent,
    /// Begin also when the store holds more than this, as 50Gi [default: as much as the file system takes].
    #[arg(long, value_name = "BYTES")]
    store_max_bytes: Option<ByteSize>,
    /// Compare everything in the store with its digests this often; 0 is never.
    #[arg(long, value_name = "HOURS", default_value_t = 168, value_parser = clap::value_parser!(u64).range(..=87_600))]
    scrub_interval: u64,
    /// Read at most so much a second for it.
    #[arg(long, value_name = "BYTES", default_value = "20Mi")]
    scrub_rate: ByteSize,
}

impl StorageOptions {
    pub(crate) fn watermarks(&self) -> Result<Watermarks, Failure> {
        let (high, low) = (self.gc_high_threshold, self.gc_low_threshold);
        if low > high {
            return Err(Failure::bad_input(format!(
                "--gc-low-threshold {low} is above --gc-high-threshold {high}: collecting would end before it begins"
            )));
        }
        Ok(Watermarks::default()
            .with_marks(high, low)
            .with_minimum_age(Duration::from_secs(self.gc_minimum_age))
            .with_max_bytes(self.store_max_bytes.as_ref().map(ByteSize::bytes)))
    }

    pub(crate) fn reserve(&self) -> Reserve {
        Reserve::percent(self.keep_free)
    }

    pub(crate) fn scrubbing(&self) -> Result<Schedule, Failure> {
        if self.scrub_rate.bytes() == 0 {
            return Err(Failure::bad_input(
                "--scrub-rate 0 would never end: for no scrub give --scrub-interval 0",
            ));
        }
        Ok(Schedule::default()
            .with_interval(Duration::from_secs(self.scrub_interval * 3_600))
            .with_bytes_per_second(self.scrub_rate.bytes()))
    }
}
