//! What is in a table of a database file? SQLite's file format (sqlite.org/fileformat2.html), as far as reading a plain table needs it.
//! The file is not trusted: all is bounded by its size.

use anyhow::{Context, Result, bail, ensure};

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Levels of a tree.
const DEPTH_MOST: usize = 32;

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Number(i64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
    /// A floating-point number, which nobody asks for.
    Other,
}

/// A database.
#[derive(Debug)]
pub struct Database<'b> {
    bytes: &'b [u8],
    page: usize,
    usable: usize,
}

impl<'b> Database<'b> {
    pub fn open(bytes: &'b [u8]) -> Result<Database<'b>> {
        ensure!(bytes.len() >= 512 && bytes.starts_with(MAGIC), "it is no SQLite database");
        let page = match u16::from_be_bytes([bytes[16], bytes[17]]) {
            1 => 65536,
            n => usize::from(n),
        };
        ensure!(page >= 512 && page.is_power_of_two(), "pages of {page} bytes");
        let usable = page.saturating_sub(usize::from(bytes[20]));
        ensure!(usable >= 480, "pages with {usable} usable bytes");
        Ok(Database { bytes, page, usable })
    }

    /// The rows of a table.
    pub fn rows(&self, table: &str, take: &mut dyn FnMut(Vec<Value>) -> Result<()>) -> Result<()> {
        let mut root = None;
        self.tree(1, &mut |row| {
            // type, name, tbl_name, rootpage, sql
            if let [Value::Text(kind), Value::Text(name), _, Value::Number(page), ..] = &row[..]
                && kind == b"table"
                && name.eq_ignore_ascii_case(table.as_bytes())
            {
                root = usize::try_from(*page).ok();
            }
            Ok(())
        })?;
        self.tree(root.with_context(|| format!("there is no table {table}"))?, take)
    }

    fn at(&self, page: usize) -> Result<&'b [u8]> {
        let begin = page.checked_sub(1).and_then(|n| n.checked_mul(self.page)).context("page 0")?;
        self.bytes.get(begin..begin + self.page).with_context(|| format!("page {page} lies beyond the end"))
    }

    fn tree(&self, root: usize, take: &mut dyn FnMut(Vec<Value>) -> Result<()>) -> Result<()> {
        let mut left = self.bytes.len() / self.page + 1;
        self.node(root, 0, &mut left, take)
    }

    fn node(
        &self,
        number: usize,
        depth: usize,
        left: &mut usize,
        take: &mut dyn FnMut(Vec<Value>) -> Result<()>,
    ) -> Result<()> {
        ensure!(depth < DEPTH_MOST, "a tree of more than {DEPTH_MOST} levels");
        *left = left.checked_sub(1).context("a page is used twice")?;
        let page = self.at(number)?;
        let head = if number == 1 { 100 } else { 0 };
        let count = usize::from(u16::from_be_bytes([page[head + 3], page[head + 4]]));
        let (inner, first) = match page[head] {
            5 => (true, head + 12),
            13 => (false, head + 8),
            other => bail!("page {number} is of kind {other}, not a table's"),
        };
        for n in 0..count {
            let pointer =
                page.get(first + 2 * n..first + 2 * n + 2).context("a cell lies beyond its page")?;
            let cell = usize::from(u16::from_be_bytes([pointer[0], pointer[1]]));
            let mut rest = page.get(cell..).context("a cell lies beyond its page")?;
            if inner {
                let child = rest.first_chunk::<4>().context("a cell lies beyond its page")?;
                self.node(u32::from_be_bytes(*child) as usize, depth + 1, left, take)?;
                continue;
            }
            let length = varint(&mut rest).context("a cell is cut short")?;
            varint(&mut rest).context("a cell is cut short")?;
            let length = usize::try_from(length).ok().filter(|l| *l <= self.bytes.len());
            take(row(&self.payload(rest, length.context("a row is larger than the database")?)?)?)?;
        }
        if inner {
            let child = [page[head + 8], page[head + 9], page[head + 10], page[head + 11]];
            self.node(u32::from_be_bytes(child) as usize, depth + 1, left, take)?;
        }
        Ok(())
    }

    /// A row's bytes; what does not fit lies on pages of its own.
    fn payload(&self, cell: &[u8], length: usize) -> Result<Vec<u8>> {
        let most = self.usable - 35;
        let here = if length <= most {
            length
        } else {
            let least = (self.usable - 12) * 32 / 255 - 23;
            let wanted = least + (length - least) % (self.usable - 4);
            if wanted <= most { wanted } else { least }
        };
        let mut bytes = cell.get(..here).context("a row is cut short")?.to_vec();
        let mut next = match cell.get(here..here + 4) {
            Some(next) if here < length => u32::from_be_bytes([next[0], next[1], next[2], next[3]]) as usize,
            None if here < length => bail!("a row is cut short"),
            _ => 0,
        };
        while bytes.len() < length {
            let page = self.at(next)?;
            let n = (length - bytes.len()).min(self.usable - 4);
            bytes.extend(&page[4..4 + n]);
            next = u32::from_be_bytes([page[0], page[1], page[2], page[3]]) as usize;
        }
        Ok(bytes)
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for n in 0..9 {
        let (byte, more) = rest.split_first()?;
        *rest = more;
        if n == 8 {
            return Some(value << 8 | u64::from(*byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn row(bytes: &[u8]) -> Result<Vec<Value>> {
    let cut = "a row is cut short";
    let mut head = bytes;
    let length = usize::try_from(varint(&mut head).context(cut)?)?;
    let at = bytes.len() - head.len();
    let mut head = bytes.get(at..length).context(cut)?;
    let mut body = bytes.get(length..).context(cut)?;
    let mut values = Vec::new();
    while !head.is_empty() {
        let kind = varint(&mut head).context(cut)?;
        let size = match kind {
            0 | 8 | 9 => 0,
            n @ 1..=4 => n as usize,
            5 => 6,
            6 | 7 => 8,
            n => usize::try_from((n - 12) / 2)?,
        };
        ensure!(kind != 10 && kind != 11, "a value of kind {kind}");
        let (value, rest) = body.split_at_checked(size).context(cut)?;
        body = rest;
        values.push(match kind {
            0 => Value::Null,
            7 => Value::Other,
            8 => Value::Number(0),
            9 => Value::Number(1),
            1..=6 => {
                let negative = value[0] & 0x80 != 0;
                let first = if negative { -1_i64 } else { 0 };
                Value::Number(value.iter().fold(first, |n, byte| n << 8 | i64::from(*byte)))
            }
            n if n % 2 == 0 => Value::Blob(value.to_vec()),
            _ => Value::Text(value.to_vec()),
        });
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of `rows` as SQLite would write it: pages of 512 bytes, one leaf, rows that overflow.
    fn database(rows: &[&[u8]]) -> Vec<u8> {
        let mut pages = vec![vec![0_u8; 512], vec![0_u8; 512]];
        pages[0][..16].copy_from_slice(MAGIC);
        pages[0][16..18].copy_from_slice(&512_u16.to_be_bytes());
        let number =
            |n: usize| if n < 128 { vec![n as u8] } else { vec![(n >> 7) as u8 | 0x80, (n & 0x7f) as u8] };
        let record = |values: &[(usize, &[u8])]| {
            let kinds: Vec<u8> = values.iter().flat_map(|(kind, _)| number(*kind)).collect();
            let mut bytes = vec![kinds.len() as u8 + 1];
            bytes.extend(kinds);
            values.iter().for_each(|(_, v)| bytes.extend(*v));
            bytes
        };
        let schema = record(&[(23, b"table"), (17, b"Pa"), (17, b"Pa"), (1, &[2]), (15, b"s")]);
        for (page, head, cells) in [
            (0, 100, vec![schema]),
            (1, 0, rows.iter().map(|r| record(&[(0, b""), (12 + 2 * r.len(), r)])).collect()),
        ] {
            let mut end = 512;
            for (n, cell) in cells.iter().enumerate() {
                let here = if cell.len() <= 477 {
                    cell.len()
                } else {
                    let wanted = 39 + (cell.len() - 39) % 508;
                    if wanted <= 477 { wanted } else { 39 }
                };
                let mut bytes = number(cell.len());
                bytes.push(n as u8 + 1);
                bytes.extend(&cell[..here]);
                if here < cell.len() {
                    let mut rest = &cell[here..];
                    bytes.extend((pages.len() as u32 + 1).to_be_bytes());
                    while !rest.is_empty() {
                        let part = rest.len().min(508);
                        let next = if part < rest.len() { pages.len() as u32 + 2 } else { 0 };
                        let mut more = next.to_be_bytes().to_vec();
                        more.extend(&rest[..part]);
                        more.resize(512, 0);
                        pages.push(more);
                        rest = &rest[part..];
                    }
                }
                end -= bytes.len();
                let at = head + 8 + 2 * n;
                pages[page][end..end + bytes.len()].copy_from_slice(&bytes);
                pages[page][at..at + 2].copy_from_slice(&(end as u16).to_be_bytes());
            }
            pages[page][head] = 13;
            pages[page][head + 3..head + 5].copy_from_slice(&(cells.len() as u16).to_be_bytes());
        }
        pages.concat()
    }

    #[test]
    fn rows_of_a_table() {
        let long: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
        let bytes = database(&[b"abc", &long]);
        let mut found = Vec::new();
        let all = |bytes: &[u8], found: &mut Vec<Vec<Value>>| {
            Database::open(bytes)?.rows("pa", &mut |row| {
                found.push(row);
                Ok(())
            })
        };
        all(&bytes, &mut found).unwrap();
        assert_eq!(
            found,
            [vec![Value::Null, Value::Blob(b"abc".to_vec())], vec![Value::Null, Value::Blob(long)]]
        );
        assert!(Database::open(&bytes).unwrap().rows("other", &mut |_| Ok(())).is_err());
        // Whatever is damaged is an error, or other rows; nothing else.
        for n in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[n] = value;
                all(&damaged, &mut Vec::new()).unwrap_or_default();
            }
        }
        for n in (0..bytes.len()).step_by(100) {
            all(&bytes[..n], &mut Vec::new()).unwrap_or_default();
        }
    }
}
