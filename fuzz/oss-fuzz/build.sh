#!/bin/bash -eu
# Builds the fuzz targets for OSS-Fuzz, with the sanitizer and the engine that it sets. `cargo fuzz` builds each target as
# tests/testbed/fuzz does with FUZZ_SANITIZER=address, and it instruments the dependencies, too.
cd "$SRC/oras-csi"
targets=(review new_pod reference recipe unpack)

options=(-O --features libfuzzer)
if [ "$SANITIZER" = coverage ]; then
  # Reports of coverage need neither a sanitizer nor its options for C.
  export RUSTFLAGS="${RUSTFLAGS:-} -C debug-assertions=no" CFLAGS=""
fi
cargo fuzz build "${options[@]}"

built=$(find . -type d -path '*/x86_64-unknown-linux-gnu/release' -print -quit)
for target in "${targets[@]}"; do
  cp "$built/$target" "$OUT/"
  zip --quiet --junk-paths --recurse-paths "$OUT/${target}_seed_corpus.zip" "fuzz/corpus/$target"
  dictionary=$target
  if [ "$target" = new_pod ]; then dictionary=review; fi
  cp "fuzz/dictionaries/$dictionary.dict" "$OUT/$target.dict"
done
# The limits of the inputs, as in tests/testbed/fuzz.
for target in review new_pod; do printf '[libfuzzer]\nmax_len = 16384\n' >"$OUT/$target.options"; done
for target in recipe unpack; do printf '[libfuzzer]\nmax_len = 8192\n' >"$OUT/$target.options"; done
printf '[libfuzzer]\nmax_len = 1024\n' >"$OUT/reference.options"
