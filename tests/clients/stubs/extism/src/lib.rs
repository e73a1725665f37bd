//! An empty stand-in for `extism`, which runs WebAssembly plugins.
//!
//! Purpose: cuenv-ci reaches the real one through its 1Password support and nothing else. This one has the
//! names and signatures that code compiles against; whatever would run a plugin answers with an error.

use std::fmt;

/// Why nothing runs here.
pub struct Error(String);

impl Error {
    pub fn msg(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
    fn stub() -> Self {
        Self::msg("this is the empty stand-in for extism")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub enum ValType {
    I32,
    I64,
}

pub enum Val {
    I32(i32),
    I64(i64),
}

impl Val {
    pub fn unwrap_i32(&self) -> i32 {
        match self {
            Val::I32(v) => *v,
            Val::I64(_) => panic!("not an i32"),
        }
    }
}

pub struct UserData<T>(std::marker::PhantomData<T>);

impl<T> UserData<T> {
    pub fn new(_value: T) -> Self {
        Self(std::marker::PhantomData)
    }
}

pub struct MemoryHandle;

impl MemoryHandle {
    pub fn offset(&self) -> u64 {
        0
    }
}

pub struct CurrentPlugin;

impl CurrentPlugin {
    pub fn memory_new(&mut self, _bytes: &[u8]) -> Result<MemoryHandle, Error> {
        Err(Error::stub())
    }
}

pub struct Function;

impl Function {
    pub fn new<T, F>(
        _name: &str,
        _inputs: impl IntoIterator<Item = ValType>,
        _outputs: impl IntoIterator<Item = ValType>,
        _data: UserData<T>,
        _body: F,
    ) -> Self
    where
        F: Fn(&mut CurrentPlugin, &[Val], &mut [Val], UserData<T>) -> Result<(), Error>,
    {
        Self
    }
    pub fn with_namespace(self, _namespace: &str) -> Self {
        self
    }
}

pub struct Wasm;

impl Wasm {
    pub fn data(_bytes: Vec<u8>) -> Self {
        Self
    }
}

pub struct Manifest;

impl Manifest {
    pub fn new(_modules: impl IntoIterator<Item = Wasm>) -> Self {
        Self
    }
    pub fn with_allowed_hosts(self, _hosts: impl Iterator<Item = String>) -> Self {
        self
    }
}

pub struct Plugin;

impl Plugin {
    pub fn new(_manifest: &Manifest, _functions: Vec<Function>, _wasi: bool) -> Result<Self, Error> {
        Err(Error::stub())
    }
    pub fn call<I, O>(&mut self, _name: &str, _input: I) -> Result<O, Error> {
        Err(Error::stub())
    }
}
