//! Train, validation and test sides, drawn by subject, saved and reused.

/// The subject a scan belongs to: its id up to the first `/`.
pub fn subject(id: &str) -> &str {
    id.split('/').next().unwrap_or(id)
}
