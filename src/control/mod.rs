//! control (in work).
