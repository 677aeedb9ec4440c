use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn read_all(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(header) = reader.entry()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        entries.push((header, content));
    }
    Ok(entries)
}

fn write_all(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (header, content) in entries {
        writer.entry(header, content).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    let file = |path: &str| Header::new(Kind::File, path);
    let long = "d".repeat(90);
    let entries = [
        (
            Header { mode: 0o1777, uid: 5, gid: 6, mtime: (7, 0), ..Header::new(Kind::Directory, "tmp") },
            vec![],
        ),
        (file("a"), b"content".to_vec()),
        (file("block"), vec![1; BLOCK]),
        (file(&format!("{long}/{}", "n".repeat(100))), vec![]),
        (file(&format!("{long}/{}", "n".repeat(101))), b"x".to_vec()),
        (file("Größe"), vec![]),
        (Header::new(Kind::File, b"\xff\xfe".to_vec()), vec![]),
        (Header { link: b"a".to_vec(), ..Header::new(Kind::Hardlink, "h") }, vec![]),
        (Header { link: "l".repeat(300).into(), mode: 0o777, ..Header::new(Kind::Symlink, "s") }, vec![]),
        (Header { device: (1, 3), ..Header::new(Kind::Character, "null") }, vec![]),
        (Header { device: (259, 1 << 19), ..Header::new(Kind::Block, "disk") }, vec![]),
        (Header::new(Kind::Fifo, "fifo"), vec![]),
        (Header { uid: u32::MAX - 1, gid: 1 << 21, mode: 0o4755, ..file("big") }, vec![]),
        (Header { mtime: (-1, 500_000_000), ..file("old") }, vec![]),
        (Header { mtime: (-86_400, 0), ..file("older") }, vec![]),
        (Header { mtime: (1 << 33, 0), ..file("late") }, vec![]),
        (Header { mtime: (1, 1), ..file("exact") }, vec![]),
        (
            Header {
                xattrs: vec![
                    (b"security.capability".to_vec(), vec![0, 10, b'=', 1]),
                    (b"user.a".to_vec(), vec![]),
                ],
                ..file("x")
            },
            vec![],
        ),
    ];
    let bytes = write_all(&entries);
    assert_eq!(bytes.len() % BLOCK, 0);
    let again = read_all(&bytes).unwrap();
    for ((mut header, content), read) in entries.into_iter().zip(again) {
        header.size = content.len() as u64;
        assert_eq!((header, content), read);
    }
}

/// GNU tar reads what we write and we read what it writes, in each of its formats.
#[test]
fn gnu_tar_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "p".repeat(120), "q".repeat(130));
    std::fs::create_dir_all(dir.path().join("in").join("p".repeat(120))).unwrap();
    std::fs::write(dir.path().join("in").join(&long), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(150), dir.path().join("in/link")).unwrap();
    std::fs::hard_link(dir.path().join("in").join(&long), dir.path().join("in/zhard")).unwrap();
    let sparse = std::fs::File::create(dir.path().join("in/sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    {
        use std::os::unix::fs::FileExt;
        sparse.write_all_at(b"middle", 1 << 19).unwrap();
        sparse.write_all_at(b"end", (1 << 20) - 3).unwrap();
    }
    let tar = |args: &[&str]| {
        let out = Command::new("tar").current_dir(dir.path()).args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    for format in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ] {
        let mut args = format.to_vec();
        args.extend(["--sort=name", "-cf", "-", "-C", "in", "."]);
        let entries = read_all(&tar(&args)).unwrap();
        let find =
            |name: &str| entries.iter().find(|(h, _)| h.path == format!("./{name}").as_bytes()).unwrap();
        assert_eq!(find(&long).1, b"long", "{format:?}");
        assert_eq!(find("link").0.link.len(), 150);
        assert_eq!(
            (find("zhard").0.kind, &find("zhard").0.link),
            (Kind::Hardlink, &format!("./{long}").into_bytes())
        );
        let (header, content) = find("sparse");
        assert_eq!(header.size, 1 << 20, "{format:?}");
        if format.contains(&"--sparse") {
            let pieces = header.pieces.as_ref().unwrap();
            assert_eq!(pieces.iter().map(|(_, length)| length).sum::<u64>(), content.len() as u64);
            let (offset, _) = pieces
                .iter()
                .find(|(offset, length)| (offset..&(offset + length)).contains(&&(1 << 19)))
                .unwrap();
            let before: u64 = pieces.iter().filter(|(o, _)| o < offset).map(|(_, l)| l).sum();
            let at = (before + (1 << 19) - offset) as usize;
            assert_eq!(&content[at..at + 6], b"middle", "{format:?}");
            assert!(content.ends_with(b"end"));
        } else {
            assert_eq!((content.len(), &header.pieces), (1 << 20, &None));
        }
    }
    let header = Header { mtime: (-5, 0), mode: 0o640, ..Header::new(Kind::File, long.clone()) };
    std::fs::write(dir.path().join("ours.tar"), write_all(&[(header, b"ours".to_vec())])).unwrap();
    assert_eq!(tar(&["-xOf", "ours.tar", &long]), b"ours");
    let listed =
        String::from_utf8(tar(&["-tvf", "ours.tar", "--numeric-owner", "--full-time", "--utc"])).unwrap();
    assert!(listed.starts_with("-rw-r----- 0/0") && listed.contains("1969-12-31 23:59:55"), "{listed}");
}

/// Python writes headers of its own.
#[test]
fn python_agrees() {
    let script = r#"
import sys, tarfile, io
t = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=getattr(tarfile, sys.argv[1]))
i = tarfile.TarInfo("ü" * 60); i.size = 3; i.uid = 3000000; i.mtime = 1.5
if sys.argv[1] == "PAX_FORMAT": i.pax_headers = {"SCHILY.xattr.user.k": "v", "comment": "c"}
t.addfile(i, io.BytesIO(b"abc"))
i = tarfile.TarInfo("d"); i.type = tarfile.DIRTYPE; i.mode = 0o1777
t.addfile(i)
t.close()
"#;
    for format in ["GNU_FORMAT", "PAX_FORMAT"] {
        let python = Command::new("python3").args(["-c", script, format]).stderr(Stdio::inherit()).output();
        let Ok(out) = python else {
            eprintln!("skipped: no python3");
            return;
        };
        assert!(out.status.success());
        let entries = read_all(&out.stdout).unwrap();
        let (header, content) = &entries[0];
        assert_eq!((header.path.as_slice(), content.as_slice()), ("ü".repeat(60).as_bytes(), &b"abc"[..]));
        assert_eq!(header.uid, 3_000_000);
        if format == "PAX_FORMAT" {
            assert_eq!(header.mtime, (1, 500_000_000));
            assert_eq!(header.xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
        }
        assert_eq!(
            (entries[1].0.kind, entries[1].0.mode, entries[1].0.title()),
            (Kind::Directory, 0o1777, "d".to_owned())
        );
    }
}

/// A header of an entry, with its checksum made right after a change.
fn changed(entry: &Header, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = write_all(&[(entry.clone(), vec![])]);
    change(&mut bytes[..BLOCK]);
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u32 = bytes[..BLOCK].iter().map(|b| u32::from(*b)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn extended(flag: u8, content: &[u8], then: &Header) -> Vec<u8> {
    let mut header = changed(&Header::new(Kind::File, "x"), |b| {
        b[156] = flag;
        b[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    });
    header.truncate(BLOCK);
    header.extend(content);
    header.resize(header.len().next_multiple_of(BLOCK), 0);
    header.extend(write_all(&[(then.clone(), vec![])]));
    header
}

#[test]
fn what_is_wrong_is_refused_with_a_reason() {
    let file = Header::new(Kind::File, "file");
    let pax = |records: &[(&str, &str)]| {
        let records: Vec<u8> =
            records.iter().flat_map(|(k, v)| pax_record(k.as_bytes(), v.as_bytes())).collect();
        extended(b'x', &records, &file)
    };
    let field = |at: usize, text: &[u8]| changed(&file, |b| b[at..at + text.len()].copy_from_slice(text));
    let whole = write_all(&[(file.clone(), vec![7; 1000])]);
    let mut sum = whole.clone();
    sum[0] ^= 1;
    let mut gap = vec![0; BLOCK];
    gap.extend(&whole);
    for (bytes, reason) in [
        (whole[..100].to_vec(), "cut off in a header"),
        (whole[..BLOCK + 100].to_vec(), "the archive is cut off"),
        (sum, "wrong checksum"),
        (gap, "after an empty block"),
        (field(156, b"Z"), "unknown type 'Z'"),
        (field(124, b"99999999999"), "no octal number"),
        (field(124, &[0xff; 12]), "negative"),
        (field(124, &[0x80, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "too large"),
        (field(108, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), "is no id"),
        (pax(&[("uid", "4294967295")]), "is no id"),
        (pax(&[("uid", "-1")]), "no number"),
        (pax(&[("size", "99999999999999999999")]), "size"),
        (pax(&[("mtime", "yesterday")]), "no time"),
        (pax(&[("path", "a\0b")]), "no path"),
        (pax(&[("path", &"p/".repeat(3000))]), "no path"),
        (pax(&[("SCHILY.xattr.", "v")]), "no name"),
        (pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]), "without its size"),
        (pax(&[("GNU.sparse.map", "0,5"), ("GNU.sparse.size", "9")]), "5 bytes, but 0 follow"),
        (pax(&[("GNU.sparse.map", "5,5,0,1"), ("GNU.sparse.size", "10")]), "overlap"),
        (pax(&[("GNU.sparse.map", "5,6"), ("GNU.sparse.size", "10")]), "beyond its end"),
        (pax(&[("GNU.sparse.map", "5"), ("GNU.sparse.size", "10")]), "without a length"),
        (extended(b'x', b"9999 path=x\n", &file), "PAX header that is none"),
        (extended(b'x', b"5 a=b", &file), "PAX header that is none"),
        (extended(b'x', &vec![b'a'; 2 << 20], &file), "at most"),
        (extended(b'L', &vec![b'a'; 2 << 20], &file), "at most"),
    ] {
        let error = format!("{:#}", read_all(&bytes).expect_err(reason));
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn what_go_reads_is_read_in_the_same_way() {
    let file = Header::new(Kind::File, "file");
    // A link has no content, whatever its size says.
    let link = changed(&Header { link: b"t".to_vec(), ..Header::new(Kind::Hardlink, "l") }, |b| {
        b[124..136].copy_from_slice(b"00000001000\0");
    });
    let entries = read_all(&link).unwrap();
    assert_eq!((entries.len(), entries[0].0.size), (1, 0));
    // A global header says nothing.
    let global = extended(b'g', b"13 path=evil\n", &file);
    assert_eq!(read_all(&global).unwrap()[0].0.path, b"file");
    // A folder by its slash alone.
    let old = changed(&Header::new(Kind::File, "dir/"), |b| b[156] = 0);
    assert_eq!(read_all(&old).unwrap()[0].0.kind, Kind::Directory);
    // No empty blocks at the end, and anything after them.
    let whole = write_all(&[(file, vec![])]);
    assert_eq!(read_all(&whole[..BLOCK]).unwrap().len(), 1);
    assert_eq!(read_all(&[&whole[..], b"garbage"].concat()).unwrap().len(), 1);
    assert!(read_all(b"").unwrap().is_empty());
}

proptest! {
    #[test]
    fn fuzz_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        if let Ok(entries) = read_all(&bytes) {
            prop_assert!(entries.len() < 10);
        }
    }

    #[test]
    fn fuzz_a_mutated_archive_does_not_panic(at in 0_usize..BLOCK * 3, value: u8, fixed: bool) {
        let header = Header { xattrs: vec![(b"user.k".to_vec(), b"v".to_vec())], ..Header::new(Kind::File, "f") };
        let mut bytes = write_all(&[(header, b"content".to_vec())]);
        bytes[at] = value;
        if fixed {
            for start in [0, 2 * BLOCK] {
                let block = &mut bytes[start..start + BLOCK];
                block[148..156].copy_from_slice(b"        ");
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        if let Ok(entries) = read_all(&bytes) {
            prop_assert!(entries.len() < 10);
        }
    }

    #[test]
    fn fuzz_times_are_read_as_they_were_written(seconds in -(1_i64 << 40)..1 << 40, nanos in 0_u32..1_000_000_000) {
        prop_assert_eq!(time(time_text((seconds, nanos)).as_bytes()).unwrap(), (seconds, nanos));
    }
}
