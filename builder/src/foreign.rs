//! Which machines' programs run here? This one's own, and those that binfmt_misc has an interpreter for
//! (Documentation/admin-guide/binfmt-misc.rst).

use std::path::Path;

/// Architectures of image-spec, with what an ELF header says of them (elf(5)): e_machine, and whether numbers begin with their last byte.
const MACHINES: [(&str, u16, bool); 10] = [
    ("386", 3, true),
    ("amd64", 62, true),
    ("arm", 40, true),
    ("arm64", 183, true),
    ("loong64", 258, true),
    ("mips64le", 8, true),
    ("ppc64le", 21, true),
    ("riscv64", 243, true),
    ("s390x", 22, false),
    ("mips64", 8, false),
];

/// An interpreter that binfmt_misc has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    pub path: String,
    /// It is open already, and need not be in the container (flag `F`).
    pub open: bool,
    magic: Vec<u8>,
    mask: Vec<u8>,
    offset: usize,
}

/// All that are registered and enabled. To be asked where the host's /proc is seen.
pub fn interpreters() -> Vec<Interpreter> {
    let folder = Path::new("/proc/sys/fs/binfmt_misc");
    let enabled = std::fs::read_to_string(folder.join("status"));
    if !enabled.is_ok_and(|text| text.trim() == "enabled") {
        return Vec::new();
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = entries.filter(|e| e.file_name() != "register" && e.file_name() != "status");
    entries.filter_map(|e| Interpreter::parse(&std::fs::read_to_string(e.path()).ok()?)).collect()
}

impl Interpreter {
    fn parse(text: &str) -> Option<Interpreter> {
        let mut lines = text.lines();
        if lines.next()? != "enabled" {
            return None;
        }
        let mut found =
            Interpreter { path: String::new(), open: false, magic: Vec::new(), mask: Vec::new(), offset: 0 };
        let bytes = |text: &str| -> Option<Vec<u8>> {
            let digits = text.as_bytes().chunks(2);
            digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
        };
        for line in lines {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("interpreter", path) => found.path = path.to_owned(),
                ("flags:", flags) => found.open = flags.contains('F'),
                ("offset", number) => found.offset = number.parse().ok()?,
                ("magic", text) => found.magic = bytes(text)?,
                ("mask", text) => found.mask = bytes(text)?,
                _ => {}
            }
        }
        (!found.magic.is_empty()).then_some(found)
    }

    /// Whether it takes programs that begin so.
    fn takes(&self, begin: &[u8]) -> bool {
        let Some(part) = begin.get(self.offset..self.offset + self.magic.len()) else { return false };
        part.iter().zip(&self.magic).enumerate().all(|(n, (byte, magic))| {
            let mask = self.mask.get(n).copied().unwrap_or(0xff);
            byte & mask == magic & mask
        })
    }
}

/// How programs of an architecture run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs<'i> {
    Natively,
    By(&'i Interpreter),
    Not,
    /// Of an architecture that we know nothing of.
    Perhaps,
}

/// Whether programs of an architecture run on a machine of `own`.
pub fn runs<'i>(architecture: &str, own: &str, interpreters: &'i [Interpreter]) -> Runs<'i> {
    let native = |a: &str| a == own || matches!((own, a), ("amd64", "386") | ("arm64", "arm"));
    if architecture.is_empty() || native(architecture) {
        return Runs::Natively;
    }
    let Some((_, machine, little)) = MACHINES.iter().find(|(name, ..)| *name == architecture) else {
        return Runs::Perhaps;
    };
    let mut begin = [0; 64];
    let class = if matches!(architecture, "386" | "arm") { 1 } else { 2 };
    begin[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, if *little { 1 } else { 2 }, 1]);
    let two = |n: u16| if *little { n.to_le_bytes() } else { n.to_be_bytes() };
    begin[16..18].copy_from_slice(&two(2));
    begin[18..20].copy_from_slice(&two(*machine));
    begin[20] = u8::from(*little);
    match interpreters.iter().find(|i| i.takes(&begin)) {
        Some(found) => Runs::By(found),
        None => Runs::Not,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_for_architectures() {
        let text = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n\
            magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";
        let arm = Interpreter::parse(text).expect("an interpreter");
        assert!(arm.open);
        assert_eq!(Interpreter::parse(&text.replacen("enabled", "disabled", 1)), None);
        let all = [arm];
        for (architecture, own, expected) in [
            ("arm64", "amd64", Runs::By(&all[0])),
            ("riscv64", "amd64", Runs::Not),
            ("s390x", "amd64", Runs::Not),
            ("amd64", "amd64", Runs::Natively),
            ("386", "amd64", Runs::Natively),
            ("amd64", "386", Runs::Not),
            ("arm", "arm64", Runs::Natively),
            ("", "amd64", Runs::Natively),
            ("wasm", "amd64", Runs::Perhaps),
        ] {
            assert_eq!(runs(architecture, own, &all), expected, "{architecture} on {own}");
        }
    }
}
