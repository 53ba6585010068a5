//! Archives that somebody made with care, against the reader.

use super::*;
use crate::build_tests::{gzip, tar};
use proptest::prelude::*;

const SMALL: Limits = Limits {
    bytes: 1 << 20,
    entries: 20,
    path: 300,
};

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Bench {
        Bench(tempfile::tempdir().unwrap())
    }

    /// What unpacking `bytes` gives: paths with what they are, or the refusal.
    fn unpacked(&self, bytes: &[u8]) -> Result<Vec<String>, String> {
        let (file, into) = (self.0.path().join("a.tar"), self.0.path().join("into"));
        fs::write(&file, bytes).unwrap();
        let _ = fs::remove_dir_all(&into);
        fs::create_dir(&into).unwrap();
        let packing = packing(&file).map_err(|e| e.to_string())?.unwrap_or(Packing::Tar);
        let records = unpack(&file, packing, &into, Some(SMALL)).map_err(|e| e.to_string())?;
        let shown = |record: &Record| match record {
            Record::Dir { path, mode } => format!("{path}/ {mode:o}"),
            Record::File { path, mode, size, .. } => format!("{path} {mode:o} {size}"),
            Record::Link { path, target } => format!("{path} -> {target}"),
            Record::Remove { path } => format!("no {path}"),
        };
        Ok(records.iter().map(shown).collect())
    }

    fn refusal(&self, bytes: &[u8]) -> String {
        self.unpacked(bytes).unwrap_err()
    }
}

/// An entry with any name, kind, link target and content.
fn entry(name: &str, kind: EntryType, target: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    // set_path refuses what an attacker would write.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str) -> Vec<u8> {
    entry(name, EntryType::Regular, "", b"x")
}

fn ended(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

#[test]
fn honest_archives_give_what_they_hold() {
    let bench = Bench::new();
    let links = [
        file("./d/x"),
        entry("d/same", EntryType::Link, "d/x", b""),
        entry("d/link", EntryType::Symlink, "../d/x", b""),
        file("d/x"),
        entry("e/", EntryType::Directory, "", b""),
        entry("/", EntryType::XGlobalHeader, "", b"18 comment=nothing\n"),
    ];
    assert_eq!(
        bench.unpacked(&ended(&links)).unwrap(),
        ["d/ 755", "d/link -> ../d/x", "d/same 644 1", "d/x 644 1", "e/ 644"]
    );
    assert_eq!(fs::read_to_string(bench.0.path().join("into/d/link")).unwrap(), "x");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let packed = gzip(&tar(&[(&long, 0o4755, b"long")]));
    assert_eq!(bench.unpacked(&packed).unwrap()[1], format!("{long} 4755 4"));
    // Two compressed streams one after the other are one.
    let bytes = tar(&[("a", 0o600, b"a")]);
    let halves = [gzip(&bytes[..700]), gzip(&bytes[700..])].concat();
    assert_eq!(bench.unpacked(&halves).unwrap(), ["a 600 1"]);
    assert_eq!(bench.unpacked(&[0; 1024]).unwrap(), Vec::<String>::new());
}

#[test]
fn two_sizes_of_one_entry_are_refused() {
    let bench = Bench::new();
    let extension = entry("pax", EntryType::XHeader, "", b"13 size=1024\n");
    // The header itself says that there is nothing; its content looks like a header with an evil name.
    let mut large = entry("large", EntryType::Regular, "", b"");
    large.extend(file("../evil"));
    let error = bench.refusal(&ended(&[extension, large, file("after")]));
    assert!(error.contains("two headers disagree about its size"), "{error}");
}

#[test]
fn what_would_leave_the_archive_is_refused_by_name() {
    let bench = Bench::new();
    let link = |target: &str| entry("l", EntryType::Symlink, target, b"");
    for (entries, expected) in [
        (
            vec![file("../evil")],
            "the entry \"../evil\": it leads out of the archive",
        ),
        (vec![file("/etc/passwd")], "the entry \"/etc/passwd\": it leads out"),
        (vec![file("a/../../evil")], "it leads out"),
        (vec![link("/etc/passwd")], "the symbolic link to /etc/passwd leads out"),
        (vec![link("../x")], "the symbolic link to ../x leads out"),
        (vec![link("")], "the link has no target"),
        (
            vec![link("."), file("l/x")],
            "the entry \"l/x\": it leads through l, which is no folder",
        ),
        (vec![file("f"), file("f/x")], "it leads through f, which is no folder"),
        (
            vec![file("d/x"), file("d")],
            "the entry \"d\": a folder has this name already",
        ),
        (
            vec![file("f"), entry("f/", EntryType::Directory, "", b"")],
            "a file has this name already",
        ),
        (
            vec![entry("h", EntryType::Link, "../../etc/passwd", b"")],
            "the hard link to ../../etc/passwd leads out",
        ),
        (
            vec![entry("h", EntryType::Link, "later", b""), file("later")],
            "has no file before it",
        ),
        (
            vec![link("."), entry("h", EntryType::Link, "l", b"")],
            "has no file before it",
        ),
        (vec![entry("dev", EntryType::Block, "", b"")], "it is of the type Block"),
        (vec![entry("tty", EntryType::Char, "", b"")], "it is of the type Char"),
        (vec![entry("p", EntryType::Fifo, "", b"")], "it is of the type Fifo"),
        (vec![file("d/.wh.x")], "names that begin with .wh."),
        (
            vec![file("a\u{ff}")]
                .into_iter()
                .map(|mut bytes| {
                    bytes[1] = 0xff;
                    bytes[2] = 0xfe;
                    rechecked(bytes)
                })
                .collect(),
            "its name is not UTF-8",
        ),
        (vec![entry(".", EntryType::Regular, "", b"x")], "it has no name"),
    ] {
        let error = bench.refusal(&ended(&entries));
        assert!(
            error.contains(expected) && error.contains("a.tar is refused"),
            "expected {expected}\ngot {error}"
        );
        assert!(!bench.0.path().join("evil").exists());
    }
}

fn rechecked(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    bytes
}

#[test]
fn bombs_are_refused_before_they_fill_anything() {
    let bench = Bench::new();
    let zeros = tar(&[("zeros", 0o644, &vec![0; 3 << 20])]);
    assert!(
        bench
            .refusal(&gzip(&zeros))
            .contains("it unpacks to more than the 1048576 bytes it may have")
    );
    let many: Vec<Vec<u8>> = (0..30).map(|number| file(&format!("f{number}"))).collect();
    assert!(bench.refusal(&ended(&many)).contains("more than 20 entries"));
    let deep = "d/".repeat(40);
    assert!(
        bench
            .refusal(&ended(&[file(&format!("{deep}x"))]))
            .contains("more than 20 entries")
    );
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let huge = entry("x", kind, "", &vec![b'a'; 70_000]);
        let error = bench.refusal(&ended(&[huge, file("f")]));
        assert!(
            error.contains("a name or extended header of 70000 bytes"),
            "{kind:?}: {error}"
        );
    }
    let long = tar(&[(&"n/".repeat(5).replace('n', &"n".repeat(90)), 0o644, b"")]);
    assert!(
        bench.refusal(&long).contains("its name is too long"),
        "{}",
        bench.refusal(&long)
    );
    let sparse = entry("s", EntryType::GNUSparse, "", b"");
    assert!(bench.refusal(&ended(&[sparse])).contains("it is of the type GNUSparse"));
    assert_eq!(Limits::of(10).bytes, 256 << 20);
    assert_eq!(Limits::of(1 << 30).bytes, 64 << 30);
    assert_eq!(Limits::of(10 << 20).bytes, 1000 << 20);
}

#[test]
fn damage_is_noticed() {
    let bench = Bench::new();
    let whole = tar(&[("a", 0o644, &[7; 2000]), ("b", 0o644, b"b")]);
    for cut in [100, 512, 1000, 2559] {
        let error = bench.refusal(&whole[..cut]);
        assert!(error.contains("a.tar is refused"), "{cut}: {error}");
    }
    let packed = gzip(&whole);
    assert!(bench.refusal(&packed[..packed.len() - 9]).contains("is refused"));
    let mut wrong = whole;
    wrong[2560] ^= 1;
    assert!(bench.refusal(&wrong).contains("checksum"), "{}", bench.refusal(&wrong));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_archive_nothing_is_written_outside(
        names in proptest::collection::vec("(\\.\\./|/|a/|l/|\\./){0,3}[al]", 1..6),
        kinds in proptest::collection::vec(0usize..4, 6),
        targets in proptest::collection::vec("(\\.\\./|/|a/|l/){0,3}[al]?", 6),
        flipped in 0usize..4096,
    ) {
        let bench = Bench::new();
        let kinds = kinds.iter().map(|kind| [EntryType::Regular, EntryType::Symlink, EntryType::Link, EntryType::Directory][*kind]);
        let entries: Vec<_> = names.iter().zip(kinds).zip(&targets).map(|((name, kind), target)| {
            entry(name, kind, target, if kind == EntryType::Regular { b"x" } else { b"" })
        }).collect();
        let mut bytes = ended(&entries);
        let _ = bench.unpacked(&bytes);
        let at = flipped % bytes.len();
        bytes[at] ^= 0x11;
        let _ = bench.unpacked(&bytes);
        let mut left: Vec<_> = fs::read_dir(bench.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        prop_assert_eq!(left, ["a.tar", "into"]);
        prop_assert!(!Path::new("/al").exists() && !Path::new("/l").exists() && !Path::new("/a").exists());
    }
}
