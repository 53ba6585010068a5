//! Everything that reads what others wrote, as functions of bytes that must never panic, hang or break a rule.
//!
//! A target turns bytes into what its parser reads and asserts what must hold whatever they are. `libfuzzer/` runs them with
//! coverage (`make fuzz`); the tests of this crate run them on `corpus/` and on small mutations of it with every other test.
//! What the fuzzer finds becomes a file of `corpus/`.

#![expect(clippy::expect_used, reason = "a target that cannot do its work shall say so")]

mod archive;
mod documents;
mod frames;
mod layer;
mod registries;
mod signature;
#[cfg(test)]
mod smoke;
mod tarball;
mod texts;

/// One parser, and what must hold of it.
pub struct Target {
    /// Its name: that of its folder in `corpus/` and of its file in `libfuzzer/`.
    pub name: &'static str,
    /// Takes any bytes; panics if a rule is broken.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "kubefile",
        run: texts::kubefile,
    },
    Target {
        name: "clusterfile",
        run: texts::clusterfile,
    },
    Target {
        name: "reference",
        run: texts::reference,
    },
    Target {
        name: "documents",
        run: documents::run,
    },
    Target {
        name: "layer",
        run: layer::run,
    },
    Target {
        name: "archive",
        run: archive::run,
    },
    Target {
        name: "registry",
        run: registries::run,
    },
    Target {
        name: "uploads",
        run: registries::uploads,
    },
    Target {
        name: "frames",
        run: frames::run,
    },
    Target {
        name: "signature",
        run: signature::run,
    },
];

/// Runs the target of this name.
///
/// # Panics
/// If there is none, or a rule is broken.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(data);
}

/// Takes bytes from the front of what a fuzzer gave.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte; 0 where there is none.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// As many of the next bytes as there are.
    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Up to the next zero byte, which is dropped.
    pub(crate) fn until_zero(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        let taken = self.take(end);
        self.byte();
        taken
    }
}
