//! Tar streams in and out.

use super::*;

fn put_tar(f: &Fixture, text: &str, stream: &[u8]) -> Result<Sealed> {
    f.cache.put_tar(&mut &stream[..], &TaskFacts::default(), [None, None], request(text))
}

#[test]
fn out_and_in_again_gives_the_same_tree() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    let long = "n".repeat(200);
    std::fs::create_dir_all(tree.join(&long).join(&long)).unwrap();
    std::fs::write(tree.join(&long).join(&long).join("f"), "deep").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), tree.join("long link")).unwrap();
    std::os::unix::fs::symlink("x", tree.join(OsStr::from_bytes(&[0xff; 150]))).unwrap();
    let entry = f.put("abcd", &tree).unwrap().into_entry();
    let mut stream = Vec::new();
    entry.write_tar(&mut stream).unwrap();
    let mut again = Vec::new();
    entry.write_tar(&mut again).unwrap();
    assert!(stream == again, "the order is fixed");
    let copy = put_tar(&f, "copy", &stream).unwrap().into_entry();
    let dest = f.beside("dest");
    copy.restore(&dest, RestoreAs::Auto, false).unwrap();
    assert_eq!(look(&dest), look(&tree));
    assert!(matches!(put_tar(&f, "abcd", &stream).unwrap(), Sealed::Same(_)));
    assert!(f.cache.drafts().is_empty());
    // The system's tar understands it.
    let unpacked = f.beside("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    std::fs::write(f.beside("stream.tar"), &stream).unwrap();
    let status = std::process::Command::new("tar")
        .args(["--xattrs", "--xattrs-include=user.*", "-xpf"])
        .arg(f.beside("stream.tar"))
        .current_dir(&unpacked)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(look(&unpacked), look(&tree));
}

#[test]
fn the_systems_tar_is_understood() {
    let f = Fixture::new();
    let tree = f.odd_tree("tree");
    for format in ["gnu", "pax"] {
        let out = std::process::Command::new("tar")
            .args(["--xattrs", "--format", format, "-cf", "-", "."])
            .current_dir(&tree)
            .output()
            .unwrap();
        if format == "gnu" && !out.status.success() {
            continue; // no attributes in that format
        }
        let entry = put_tar(&f, &format!("tar-{format}"), &out.stdout).unwrap().into_entry();
        let dest = f.beside(format);
        entry.restore(&dest, RestoreAs::Auto, false).unwrap();
        let strip = |tree: &Path| -> Vec<_> {
            let whole = format == "pax";
            let seen = look(tree).into_iter();
            seen.map(|s| Seen { mtime: if whole { s.mtime } else { (s.mtime.0, 0) }, ..s }).collect()
        };
        assert_eq!(strip(&dest), strip(&tree), "{format}");
    }
}

/// A stream of one member with a name as it is.
fn member(name: &[u8], kind: ::tar::EntryType, target: &[u8]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    add(&mut builder, name, kind, target);
    builder.into_inner().unwrap()
}

fn add(builder: &mut ::tar::Builder<Vec<u8>>, name: &[u8], kind: ::tar::EntryType, target: &[u8]) {
    let mut header = ::tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
}

#[test]
fn hostile_streams_are_refused() {
    use ::tar::EntryType as Type;
    let f = Fixture::new();
    for (name, kind, target) in [
        (&b"/etc/x"[..], Type::Regular, &b""[..]),
        (b"../x", Type::Regular, b""),
        (b"a/../../x", Type::Regular, b""),
        (b"a/..", Type::Directory, b""),
        (b"hard", Type::Link, b"../../../../etc/passwd"),
        (b"hard", Type::Link, b"/etc/passwd"),
        (b"pipe", Type::Fifo, b""),
        (b"dev", Type::Char, b""),
    ] {
        let error = put_tar(&f, "abcd", &member(name, kind, target)).unwrap_err();
        assert!(
            matches!(error, CacheError::BadInput { .. } | CacheError::SpecialFile { .. }),
            "{}: {error}",
            String::from_utf8_lossy(name)
        );
    }
    let mut builder = ::tar::Builder::new(Vec::new());
    add(&mut builder, b"link", Type::Symlink, b"/tmp");
    add(&mut builder, b"link/through", Type::Regular, b"");
    let error = put_tar(&f, "abcd", &builder.into_inner().unwrap()).unwrap_err();
    assert!(matches!(error, CacheError::BadInput { .. }), "{error}");
    assert!(!Path::new("/tmp/through").exists());
    for broken in [&b"not a tar stream"[..], &[b'x'; 2000]] {
        assert!(matches!(put_tar(&f, "abcd", broken), Err(CacheError::BadInput { .. })));
    }
    assert!(f.cache.drafts().is_empty());
    assert!(f.cache.entry(&key("abcd"), LeaseKind::Hold).unwrap().is_none());
}

#[test]
fn times_before_1970_stay_there_in_every_format() {
    let f = Fixture::new();
    let tree = f.beside("tree");
    std::fs::create_dir(&tree).unwrap();
    for (name, seconds) in [("last", -1), ("old", -1_234_567_890i64), ("older", -5_000_000_000)] {
        std::fs::write(tree.join(name), name).unwrap();
        super::super::at::set_mtime(
            std::os::fd::AsFd::as_fd(&std::fs::File::open(&tree).unwrap()),
            name.as_bytes(),
            seconds * 1_000_000_000,
        )
        .unwrap();
    }
    let times = |tree: &Path| look(tree).into_iter().map(|s| (s.path, s.mtime.0)).collect::<Vec<_>>();
    for format in ["gnu", "pax"] {
        let args = ["--format", format, "-cf", "-", "."];
        let out = std::process::Command::new("tar").args(args).current_dir(&tree).output().unwrap();
        let entry = put_tar(&f, &format!("tar-{format}"), &out.stdout).unwrap().into_entry();
        let dest = f.beside(format);
        entry.restore(&dest, RestoreAs::Auto, false).unwrap();
        assert_eq!(times(&dest), times(&tree), "{format}");
        assert!(times(&dest).iter().all(|(_, seconds)| *seconds < 0), "{format}: {:?}", times(&dest));
    }
}
