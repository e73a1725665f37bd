//! daemon (in work).
