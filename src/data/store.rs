//! Preprocessed scans on disk: one memory-mapped safetensors file a subject, and an index.
