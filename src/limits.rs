//! The limits that an administrator sets: one set of flags for `driver` and `pull`.

use clap::Args;
use oras_csi_core::policy::ByteSize;
use oras_csi_store::Limits;

/// What a registry may make this machine do. Each has a message of its own when it is passed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
#[expect(clippy::struct_field_names, reason = "they are the names of the flags")]
pub(crate) struct LimitOptions {
    /// The most layers of a manifest [default: 4096, which is also the most possible].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_layers: Option<u16>,
    /// The most files, directories and links of a volume, all its layers together [default: 1000000].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    max_entries: Option<u64>,
    /// The most bytes that the layers of a volume unpack to, together, as 100Gi [default: 100Gi].
    #[arg(long, value_name = "SIZE")]
    max_unpacked: Option<ByteSize>,
    /// The longest path of a file in a volume, in bytes [default: 4096].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_path: Option<u16>,
    /// How many directories a file of a volume may lie within [default: 256].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_depth: Option<u16>,
    /// The largest window of a zstd layer, as a power of two: that much memory each of them takes while it is unpacked
    /// [default: 27, 128 MiB].
    #[arg(long, value_name = "LOG2", value_parser = clap::value_parser!(u32).range(20..=31))]
    max_zstd_window: Option<u32>,
}

impl LimitOptions {
    /// The defaults, and what was set.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        if let Some(layers) = self.max_layers {
            limits = limits.with_layers(layers.into());
        }
        if let Some(entries) = self.max_entries {
            limits = limits.with_entries(entries);
        }
        if let Some(size) = &self.max_unpacked {
            limits = limits.with_unpacked(size.bytes());
        }
        if let Some(bytes) = self.max_path {
            limits = limits.with_path(bytes.into());
        }
        if let Some(depth) = self.max_depth {
            limits = limits.with_depth(depth.into());
        }
        if let Some(log) = self.max_zstd_window {
            limits = limits.with_zstd_window_log(log);
        }
        limits
    }
}
