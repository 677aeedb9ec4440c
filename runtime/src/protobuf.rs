//! Protobuf's encoding (protobuf.dev, "Encoding"): messages written field by field, and read so.
//!
//! Whoever speaks it here knows some dozen messages: a protobuf library would be larger than the rest of the runtime.

/// A message under construction.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn number(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    /// `false` is what criu takes for granted.
    pub fn flag(self, field: u32, value: bool) -> Self {
        if value { self.number(field, 1) } else { self }
    }

    pub fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.as_ref().len() as u64);
        self.0.extend_from_slice(value.as_ref());
        self
    }

    /// A list of numbers.
    pub fn packed(self, field: u32, values: &[u64]) -> Self {
        let mut list = Message::default();
        for value in values {
            list.varint(*value);
        }
        self.message(field, list)
    }

    /// Eight bytes, such as a `double`'s.
    pub fn fixed64(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn message(self, field: u32, value: Message) -> Self {
        self.bytes(field, value.0)
    }

    /// A message of two texts in fields 1 and 2.
    pub fn pair(self, field: u32, key: &str, value: &str) -> Self {
        self.message(field, Message::default().bytes(1, key).bytes(2, value))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The numbers of a packed list; `None`: damaged.
pub fn packed(bytes: &[u8]) -> Option<Vec<u64>> {
    let mut rest = Fields(bytes);
    let mut out = Vec::new();
    while !rest.0.is_empty() {
        out.push(rest.varint()?);
    }
    Some(out)
}

/// A field's value, as its wire type has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message; `None` in the middle: it is damaged.
#[derive(Clone, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((number, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return None };
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_protobuf() {
        let message =
            Message::default().number(1, 300).flag(2, true).flag(3, false).bytes(4, "ab").pair(5, "k", "v");
        let expected =
            [0x08, 0xac, 0x02, 0x10, 1, 0x22, 2, b'a', b'b', 0x2a, 6, 0x0a, 1, b'k', 0x12, 1, b'v'];
        assert_eq!(message.as_bytes(), expected);
        // Numbers above 15 take two bytes for the key.
        assert_eq!(Message::default().flag(50, true).as_bytes(), [0x90, 0x03, 1]);
    }
}
