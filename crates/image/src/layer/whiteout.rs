//! How does a layer say that something is gone? image-spec, layer.md, "Whiteouts" (names in an archive), and overlayfs.rst,
//! "whiteouts and opaque directories" (nodes and attributes in a tree).

/// What is gone is named behind it.
pub const PREFIX: &[u8] = b".wh.";
/// The name that says that all that was in its folder is gone.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that AUFS kept for itself.
const RESERVED: &[u8] = b".wh..wh.";

/// What the last part of an entry's path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// Itself.
    Plain,
    /// What lower layers have under this name is gone.
    Whiteout(&'a [u8]),
    /// All that lower layers have in the folder is gone.
    Opaque,
    /// Nothing.
    Reserved,
}

/// What a name in an archive means.
pub fn meaning(name: &[u8]) -> Meaning<'_> {
    match name {
        OPAQUE => Meaning::Opaque,
        _ if name.starts_with(RESERVED) => Meaning::Reserved,
        _ => match name.strip_prefix(PREFIX) {
            Some(gone) => Meaning::Whiteout(gone),
            None => Meaning::Plain,
        },
    }
}

/// Whose attributes overlayfs reads: `trusted.` ones can only be written by the host's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    Root,
    /// Mounted with `userxattr`.
    User,
}

impl Privilege {
    /// Of this process.
    pub fn own() -> Privilege {
        let (uid, _) = sys::user::effective_ids();
        if uid == 0 && !sys::user::in_user_namespace() { Privilege::Root } else { Privilege::User }
    }

    /// The attribute of an opaque folder.
    pub fn opaque(self) -> &'static str {
        match self {
            Privilege::Root => "trusted.overlay.opaque",
            Privilege::User => "user.overlay.opaque",
        }
    }
}

/// What an attribute of an entry is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Content: it is kept.
    Kept,
    /// The host's own matter: its labels and measurements, and notes that overlayfs leaves behind.
    Dropped,
    /// It would make overlayfs show other files than the layer's.
    Refused,
}

/// What an attribute in an archive is to us.
pub fn attribute(name: &[u8]) -> Attribute {
    let overlay = name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."));
    match (overlay, name) {
        // What overlayfs notes of where a file came from; a layer made inside a container has them by accident.
        (Some(b"impure" | b"origin" | b"nlink" | b"upper" | b"uuid" | b"protattr" | b"verity"), _) => {
            Attribute::Dropped
        }
        (Some(_), _) => Attribute::Refused,
        (None, b"security.selinux" | b"security.ima" | b"security.evm" | b"security.apparmor") => {
            Attribute::Dropped
        }
        (None, _) if name.starts_with(b"user.berth.") => Attribute::Refused,
        (None, _) => Attribute::Kept,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fuzz_whiteout_names(prefix in "(\\.?w?h?\\.?){0,3}", rest in proptest::collection::vec(any::<u8>(), 0..12)) {
            let name = [prefix.as_bytes(), &rest].concat();
            match meaning(&name) {
                Meaning::Whiteout(hidden) => prop_assert_eq!([b".wh.", hidden].concat(), name),
                Meaning::Plain => prop_assert!(!name.starts_with(b".wh.")),
                _ => prop_assert!(name.starts_with(b".wh..wh.")),
            }
        }
    }

    #[test]
    fn names_and_what_they_mean() {
        for (name, what) in [
            (&b"file"[..], Meaning::Plain),
            (b".wh", Meaning::Plain),
            (b"a.wh.b", Meaning::Plain),
            (b".wh.file", Meaning::Whiteout(b"file")),
            (b".wh.", Meaning::Whiteout(b"")),
            (b".wh..", Meaning::Whiteout(b".")),
            (b".wh...", Meaning::Whiteout(b"..")),
            (b".wh..wh..opq", Meaning::Opaque),
            (b".wh..wh.plnk", Meaning::Reserved),
        ] {
            assert_eq!(meaning(name), what, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn attributes_that_overlayfs_obeys_are_refused() {
        use Attribute::*;
        for (name, what) in [
            ("user.mime", Kept),
            ("security.capability", Kept),
            ("system.posix_acl_access", Kept),
            ("security.selinux", Dropped),
            ("trusted.overlay.origin", Dropped),
            ("user.overlay.impure", Dropped),
            ("trusted.overlay.opaque", Refused),
            ("trusted.overlay.redirect", Refused),
            ("user.overlay.metacopy", Refused),
            ("user.overlay.whiteout", Refused),
            ("trusted.overlay.overlay.opaque", Refused),
            ("user.berth.owner", Refused),
        ] {
            assert_eq!(attribute(name.as_bytes()), what, "{name}");
        }
    }
}
