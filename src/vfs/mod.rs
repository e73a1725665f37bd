//! vfs (in work).
