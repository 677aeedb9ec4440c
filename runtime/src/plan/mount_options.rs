//! What does each word of a mount's `options` mean? (config.md, "Linux mount options")

use anyhow::Result;
use report::Explain;
use sys::mount::{attr, flags};

use super::mounts::Attributes;
use super::rootfs::Propagation;

/// The words of one mount, sorted by what they act on.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// `MS_*` to set, and those that were asked to be off.
    pub on: u64,
    pub off: u64,
    pub recursive: Attributes,
    pub propagation: Vec<Propagation>,
    /// `bind` is `Some(false)`, `rbind` `Some(true)`.
    pub bind: Option<bool>,
    pub remount: bool,
    pub copy_up: bool,
    /// `idmap` is `Some(false)`, `ridmap` `Some(true)`.
    pub idmap: Option<bool>,
    /// Everything else, which the file system itself has to know; with its place in the list.
    pub data: Vec<(usize, String)>,
}

enum Meaning {
    Nothing,
    On(u64),
    Off(u64),
    AllOn(u64),
    AllOff(u64),
}

use Meaning::{AllOff, AllOn, Nothing, Off, On};

/// The words that stand for flags; `features` prints their names.
const FLAGS: &[(&str, Meaning)] = &[
    ("acl", On(flags::POSIXACL)),
    ("async", Off(flags::SYNCHRONOUS)),
    ("atime", Off(flags::NOATIME)),
    ("defaults", Nothing),
    ("dev", Off(flags::NODEV)),
    ("diratime", Off(flags::NODIRATIME)),
    ("dirsync", On(flags::DIRSYNC)),
    ("exec", Off(flags::NOEXEC)),
    ("iversion", On(flags::I_VERSION)),
    ("lazytime", On(flags::LAZYTIME)),
    ("loud", Off(flags::SILENT)),
    ("mand", On(flags::MANDLOCK)),
    ("noacl", Off(flags::POSIXACL)),
    ("noatime", On(flags::NOATIME)),
    ("nodev", On(flags::NODEV)),
    ("nodiratime", On(flags::NODIRATIME)),
    ("noexec", On(flags::NOEXEC)),
    ("noiversion", Off(flags::I_VERSION)),
    ("nolazytime", Off(flags::LAZYTIME)),
    ("nomand", Off(flags::MANDLOCK)),
    ("norelatime", Off(flags::RELATIME)),
    ("nostrictatime", Off(flags::STRICTATIME)),
    ("nosuid", On(flags::NOSUID)),
    ("nosymfollow", On(flags::NOSYMFOLLOW)),
    ("relatime", On(flags::RELATIME)),
    ("ro", On(flags::RDONLY)),
    ("rw", Off(flags::RDONLY)),
    ("silent", On(flags::SILENT)),
    ("strictatime", On(flags::STRICTATIME)),
    ("suid", Off(flags::NOSUID)),
    ("symfollow", Off(flags::NOSYMFOLLOW)),
    ("sync", On(flags::SYNCHRONOUS)),
    ("ratime", AllOff(attr::NOATIME)),
    ("rdev", AllOff(attr::NODEV)),
    ("rdiratime", AllOff(attr::NODIRATIME)),
    ("rexec", AllOff(attr::NOEXEC)),
    ("rnoatime", AllOn(attr::NOATIME)),
    ("rnodev", AllOn(attr::NODEV)),
    ("rnodiratime", AllOn(attr::NODIRATIME)),
    ("rnoexec", AllOn(attr::NOEXEC)),
    ("rnorelatime", AllOff(attr::RELATIME)),
    ("rnostrictatime", AllOff(attr::STRICTATIME)),
    ("rnosuid", AllOn(attr::NOSUID)),
    ("rnosymfollow", AllOn(attr::NOSYMFOLLOW)),
    ("rrelatime", AllOn(attr::RELATIME)),
    ("rro", AllOn(attr::RDONLY)),
    ("rrw", AllOff(attr::RDONLY)),
    ("rstrictatime", AllOn(attr::STRICTATIME)),
    ("rsuid", AllOff(attr::NOSUID)),
    ("rsymfollow", AllOff(attr::NOSYMFOLLOW)),
];

const OTHERS: &[&str] = &[
    "bind",
    "rbind",
    "remount",
    "tmpcopyup",
    "idmap",
    "ridmap",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
];

/// Every word that has a meaning of its own, sorted.
pub fn known() -> Vec<&'static str> {
    let mut out: Vec<_> = FLAGS.iter().map(|(name, _)| *name).chain(OTHERS.iter().copied()).collect();
    out.sort_unstable();
    out
}

impl Words {
    /// Sort the words; a later one overrules an earlier one.
    pub fn parse(options: &[String], place: &str) -> Result<Words> {
        let mut words = Words::default();
        for (i, word) in options.iter().enumerate() {
            if word.contains('\0') || word.is_empty() {
                let at = format!("{place}.options[{i}]");
                return Err(report::at(at, format!("{word:?} is not a mount option")));
            }
            words.add(i, word);
        }
        Ok(words)
    }

    fn add(&mut self, index: usize, word: &str) {
        match word {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(self.idmap.unwrap_or(false)),
            "ridmap" => self.idmap = Some(true),
            _ => {
                if let Some(propagation) = Propagation::parse(word) {
                    self.propagation.push(propagation);
                } else if let Some((_, meaning)) = FLAGS.iter().find(|(name, _)| *name == word) {
                    self.flag(meaning);
                } else {
                    self.data.push((index, word.to_owned()));
                }
            }
        }
    }

    fn flag(&mut self, meaning: &Meaning) {
        match *meaning {
            Nothing => {}
            On(bits) => {
                if bits & ACCESS_TIMES != 0 {
                    self.on &= !ACCESS_TIMES;
                }
                self.on |= bits;
                self.off &= !bits;
            }
            Off(bits) => {
                self.on &= !bits;
                self.off |= bits;
            }
            AllOn(bits) => self.recursive.turn_on(bits),
            AllOff(bits) => self.recursive.turn_off(bits),
        }
    }

    /// The flags as attributes of a mount that has some already: what is not named stays as it is.
    pub fn attributes(&self) -> Attributes {
        let mut out = Attributes::default();
        for (ms, bits) in SAME {
            if self.on & ms != 0 {
                out.turn_on(*bits);
            }
            if self.off & ms != 0 {
                out.turn_off(*bits);
            }
        }
        out
    }

    /// Those that belong to the file system, not to the mount.
    pub fn of_file_system(&self) -> Vec<&'static str> {
        SUPER.iter().filter(|(bits, _)| self.on & bits != 0).map(|(_, name)| *name).collect()
    }
}

const ACCESS_TIMES: u64 = flags::NOATIME | flags::RELATIME | flags::STRICTATIME;

const SAME: &[(u64, u64)] = &[
    (flags::RDONLY, attr::RDONLY),
    (flags::NOSUID, attr::NOSUID),
    (flags::NODEV, attr::NODEV),
    (flags::NOEXEC, attr::NOEXEC),
    (flags::NODIRATIME, attr::NODIRATIME),
    (flags::NOSYMFOLLOW, attr::NOSYMFOLLOW),
    (flags::NOATIME, attr::NOATIME),
    (flags::STRICTATIME, attr::STRICTATIME),
    (flags::RELATIME, attr::RELATIME),
];

const SUPER: &[(u64, &str)] = &[
    (flags::SYNCHRONOUS, "sync"),
    (flags::DIRSYNC, "dirsync"),
    (flags::MANDLOCK, "mand"),
    (flags::LAZYTIME, "lazytime"),
    (flags::SILENT, "silent"),
    (flags::I_VERSION, "iversion"),
    (flags::POSIXACL, "acl"),
];

fn is_access_time(bits: u64) -> bool {
    bits == attr::RELATIME || bits & attr::ATIME != 0
}

impl Attributes {
    fn turn_on(&mut self, bits: u64) {
        if is_access_time(bits) {
            // One field with several values: all of it is cleared to set one.
            self.set &= !attr::ATIME;
            self.clear |= attr::ATIME;
        } else {
            self.clear &= !bits;
        }
        self.set |= bits;
    }

    fn turn_off(&mut self, bits: u64) {
        if is_access_time(bits) {
            // Without `noatime` and `strictatime` comes the kernel's own way, `relatime`.
            self.set &= !attr::ATIME;
            self.clear |= attr::ATIME;
        } else {
            self.set &= !bits;
            self.clear |= bits;
        }
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

/// A flag that none of these file systems has, but that looks like one that every mount has, is a slip of the pen.
/// Anything else is for the kernel to judge: it may be newer than we are.
fn check_flag(fs: &str, flag: &str, at: &str) -> Result<()> {
    let own: &[&str] = match fs {
        "tmpfs" => {
            &["casefold", "grpquota", "inode32", "inode64", "noswap", "quota", "strict_encoding", "usrquota"]
        }
        "devpts" => &["newinstance"],
        "proc" | "sysfs" | "mqueue" => &[],
        _ => return Ok(()),
    };
    if own.contains(&flag) {
        return Ok(());
    }
    match report::nearest(flag, known().into_iter().chain(own.iter().copied())) {
        Some(near) => Err(report::at(at, format!("unknown mount option {flag:?}")))
            .hint(|| format!("did you mean {near:?}?")),
        None => Ok(()),
    }
}

/// Check the values of the options that we know of file systems that every container mounts, so that a mistake
/// is found before anything is made.
pub fn check_value(fs: &str, option: &str, at: &str) -> Result<()> {
    let Some((key, value)) = option.split_once('=') else { return check_flag(fs, option, at) };
    let wrong = |allowed: &str| Err(report::at(at, format!("{key}={value}: {value:?} is not {allowed}")));
    let octal = |max: u32| u32::from_str_radix(value, 8).is_ok_and(|v| v <= max);
    match (fs, key) {
        ("tmpfs", "mode") if !octal(0o7777) => wrong("an octal mode of at most 7777"),
        ("devpts", "mode" | "ptmxmode") if !octal(0o7777) => wrong("an octal mode of at most 7777"),
        ("tmpfs" | "devpts", "uid" | "gid") if value.parse::<u32>().is_err() => wrong("a number"),
        ("tmpfs", "size" | "nr_blocks" | "nr_inodes") if !is_size(value, key == "size") => {
            wrong("a size, such as 65536k or 50%")
        }
        ("devpts", "max") if value.parse::<u32>().is_err() => wrong("a number"),
        _ => Ok(()),
    }
}

fn is_size(value: &str, percent: bool) -> bool {
    let digits = match value.strip_suffix('%') {
        Some(rest) if percent => rest,
        Some(_) => return false,
        None => {
            value.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T', 'p', 'P', 'e', 'E']).unwrap_or(value)
        }
    };
    if let Some(hex) = digits.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).is_ok();
    }
    digits.parse::<u64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Words {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        Words::parse(&words, "mounts[0]").unwrap()
    }

    #[test]
    fn attributes_of_binds() {
        for (name, words, set, clear) in [
            ("nothing asked", &["rbind", "rprivate"][..], 0, 0),
            ("read-only", &["bind", "ro"], attr::RDONLY, 0),
            ("the later word wins", &["ro", "rw"], 0, attr::RDONLY),
            ("and the other way round", &["rw", "ro"], attr::RDONLY, 0),
            ("four at once", &["ro", "nosuid", "nodev", "noexec"], 0xf, 0),
            ("one access time", &["noatime"], attr::NOATIME, attr::ATIME),
            ("the later access time", &["noatime", "strictatime"], attr::STRICTATIME, attr::ATIME),
            ("relatime is the field at zero", &["relatime"], 0, attr::ATIME),
            ("no symlinks", &["nosymfollow"], attr::NOSYMFOLLOW, 0),
        ] {
            assert_eq!(parse(words).attributes(), Attributes { set, clear }, "{name}");
        }
    }

    #[test]
    fn recursive_words() {
        for (words, set, clear) in [
            (&["rro"][..], attr::RDONLY, 0),
            (&["rro", "rrw"], 0, attr::RDONLY),
            (&["rro", "rnosuid", "rdev"], attr::RDONLY | attr::NOSUID, attr::NODEV),
            (&["rnoatime", "rstrictatime"], attr::STRICTATIME, attr::ATIME),
            (&["rrelatime"], 0, attr::ATIME),
        ] {
            assert_eq!(parse(words).recursive, Attributes { set, clear }, "{words:?}");
        }
    }

    #[test]
    fn every_word_of_the_specification_is_known() {
        for word in "async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand noatime \
                     nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow \
                     private ratime rbind rdev rdiratime relatime remount rexec ridmap rnoatime rnodiratime rnoexec \
                     rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave \
                     rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid sync symfollow \
                     tmpcopyup unbindable"
            .split_whitespace()
        {
            assert!(known().contains(&word), "{word}");
            assert!(parse(&[word]).data.is_empty(), "{word}");
        }
    }

    #[test]
    fn values() {
        for (fs, option, good) in [
            ("tmpfs", "nosuidd", false),
            ("tmpfs", "inode64", true),
            ("tmpfs", "an_option_of_tomorrow", true),
            ("ext4", "nosuidd", true),
            ("proc", "noexecc", false),
            ("tmpfs", "mode=755", true),
            ("tmpfs", "mode=9z", false),
            ("tmpfs", "mode=17777", false),
            ("tmpfs", "size=65536k", true),
            ("tmpfs", "size=50%", true),
            ("tmpfs", "size=big", false),
            ("tmpfs", "nr_inodes=50%", false),
            ("devpts", "ptmxmode=0666", true),
            ("devpts", "gid=tty", false),
            ("overlay", "mode=9z", true),
        ] {
            assert_eq!(check_value(fs, option, "mounts[3].options[1]").is_ok(), good, "{fs} {option}");
        }
        let e = check_value("tmpfs", "mode=9z", "mounts[3].options[1]").unwrap_err();
        assert_eq!(
            report::line(&e),
            "mounts[3].options[1]: mode=9z: \"9z\" is not an octal mode of at most 7777"
        );
    }
}
