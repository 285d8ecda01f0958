//! The names of layers that have no title, but a media type whose users agreed on a name.
//!
//! | media type | name | source |
//! |---|---|---|
//! | `application/vnd.docker.ai.gguf.v3` | `model.gguf`; of several `model-00001-of-00002.gguf` | docker/model-runner, `pkg/distribution/internal/bundle/unpack.go` |
//! | `application/vnd.docker.ai.safetensors` | `model.safetensors`; of several the same way | the same |
//! | `application/vnd.docker.ai.mmproj` | `model.mmproj` | the same |
//! | `application/vnd.docker.ai.chat.template.jinja` | `template.jinja` | the same |
//! | `application/vnd.docker.ai.dduf` | `model.dduf` | the same, which keeps the name of its source |
//! | `application/vnd.docker.ai.license` | `LICENSE` | model-runner does not unpack it |
//! | `application/wasm` | `module.wasm` | CNCF TAG Runtime, "Wasm OCI Artifact layout" |

use std::collections::BTreeMap;

use super::{LayerDescriptor, LayerKind};
use crate::media_type::essence;

/// A media type, and the name of its file before and after the last point.
const KNOWN: [(&str, &str, &str); 7] = [
    ("application/vnd.docker.ai.gguf.v3", "model", ".gguf"),
    ("application/vnd.docker.ai.safetensors", "model", ".safetensors"),
    ("application/vnd.docker.ai.mmproj", "model", ".mmproj"),
    ("application/vnd.docker.ai.chat.template.jinja", "template", ".jinja"),
    ("application/vnd.docker.ai.dduf", "model", ".dduf"),
    ("application/vnd.docker.ai.license", "LICENSE", ""),
    ("application/wasm", "module", ".wasm"),
];

/// Reports whether layers of this type get a name without a title.
pub fn is_known(media_type: &str) -> bool {
    let found = essence(media_type);
    KNOWN.iter().any(|(known, ..)| *known == found)
}

/// Returns the names of the layers without a title, by their position in the manifest.
pub(super) fn names(layers: &[LayerDescriptor]) -> BTreeMap<usize, String> {
    let mut names = BTreeMap::new();
    for (media_type, stem, ending) in KNOWN {
        let is_one = |layer: &LayerDescriptor| {
            layer.kind() == LayerKind::NoFiles && essence(layer.descriptor().media_type()) == media_type
        };
        let positions: Vec<usize> = layers
            .iter()
            .enumerate()
            .filter(|(_, layer)| is_one(layer))
            .map(|(position, _)| position)
            .collect();
        for (number, position) in positions.iter().enumerate() {
            let name = match positions.len() {
                1 => format!("{stem}{ending}"),
                count => format!("{stem}-{:05}-of-{count:05}{ending}", number + 1),
            };
            names.insert(*position, name);
        }
    }
    names
}
