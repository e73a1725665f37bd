//! fuse (in work).
