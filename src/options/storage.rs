//! Flags of the driver for its store: garbage collection, free space and the scrub.

use std::time::Duration;

use clap::Args;
use oras_csi_core::policy::ByteSize;
use oras_csi_store::Percent;
use oras_csi_store::Reserve;
use oras_csi_store::SelinuxLabel;
use oras_csi_store::gc::Watermarks;
use oras_csi_store::scrub::Schedule;

use crate::exit_status::Failure;

/// How much the store may hold, and how often it is verified.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StorageOptions {
    /// High watermark: start garbage collection when the file system of the store is fuller than this, in percent of
    /// its bytes or of its inodes.
    #[arg(long, value_name = "PERCENT", default_value = "85")]
    gc_high_threshold: Percent,
    /// Low watermark: garbage collection ends when the file system is no fuller than this.
    #[arg(long, value_name = "PERCENT", default_value = "80")]
    gc_low_threshold: Percent,
    /// Do not delete content that was used within this time.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    gc_minimum_age: u64,
    /// Refuse a pull or an unpack that would leave less of the file system free than this after garbage collection.
    /// Kubelet evicts pods below 10.
    #[arg(long, value_name = "PERCENT", default_value = "10")]
    keep_free: Percent,
    /// Refuse a pull or an unpack that would leave fewer inodes of the file system free than this after garbage
    /// collection. Kubelet evicts pods below 5. No effect on a file system without a limit on inodes.
    #[arg(long, value_name = "PERCENT", default_value = "5")]
    keep_free_inodes: Percent,
    /// Start garbage collection also when the store takes more of the disk than this, for example 50Gi
    /// [default: no limit].
    #[arg(long, value_name = "BYTES")]
    store_max_bytes: Option<ByteSize>,
    /// Scrub interval: verify the digest of everything in the store this often; 0 disables the scrub.
    #[arg(long, value_name = "HOURS", default_value_t = 168, value_parser = clap::value_parser!(u64).range(..=87_600))]
    scrub_interval: u64,
    /// Maximum bytes that the scrub reads per second, for example 20Mi.
    #[arg(long, value_name = "BYTES", default_value = "20Mi")]
    scrub_rate: ByteSize,
    /// SELinux label of the store and of every file in it, for example system_u:object_r:container_file_t:s0. By default
    /// the folders of the store get this label where the files of the node have labels, and the kernel passes it on.
    #[arg(long, value_name = "LABEL")]
    selinux_label: Option<SelinuxLabel>,
}

impl StorageOptions {
    /// Returns the watermarks of garbage collection.
    pub(crate) fn watermarks(&self) -> Result<Watermarks, Failure> {
        let (high, low) = (self.gc_high_threshold, self.gc_low_threshold);
        if low > high {
            return Err(Failure::bad_input(format!(
                "--gc-low-threshold {low} is above --gc-high-threshold {high}. The low threshold must not be above \
                 the high one."
            )));
        }
        Ok(Watermarks::default()
            .with_marks(high, low)
            .with_minimum_age(Duration::from_secs(self.gc_minimum_age))
            .with_max_bytes(self.store_max_bytes.as_ref().map(ByteSize::bytes)))
    }

    /// Returns the SELinux label of the store.
    pub(crate) fn selinux_label(&self) -> Option<SelinuxLabel> {
        self.selinux_label.clone()
    }

    /// Returns the space that must stay free.
    pub(crate) fn reserve(&self) -> Reserve {
        Reserve::percent(self.keep_free)
    }

    /// Returns the inodes that must stay free.
    pub(crate) fn inode_reserve(&self) -> Reserve {
        Reserve::percent(self.keep_free_inodes)
    }

    /// Returns when the scrub runs, and how fast.
    pub(crate) fn scrub_schedule(&self) -> Result<Schedule, Failure> {
        if self.scrub_rate.bytes() == 0 {
            return Err(Failure::bad_input(
                "--scrub-rate 0 is not possible: a scrub would never end. To disable the scrub, set --scrub-interval 0.",
            ));
        }
        Ok(Schedule::default()
            .with_interval(Duration::from_secs(self.scrub_interval * 3_600))
            .with_bytes_per_second(self.scrub_rate.bytes()))
    }
}
