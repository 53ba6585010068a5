//! clusterd
fn main() {}
