//! The protobuf wire format (protobuf.dev, «Encoding»): tags, varints and length-delimited bytes.

use super::ProtoError;

/// A field's value as it stands on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    pub(super) fn is_bytes(&self) -> bool {
        matches!(self, Self::Bytes(_))
    }

    pub(super) fn bytes(&self) -> Result<&'a [u8], ProtoError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(ProtoError::Malformed("a length-delimited field was expected")),
        }
    }

    pub(super) fn text(&self) -> Result<String, ProtoError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| ProtoError::Malformed("a string is not UTF-8"))
    }

    pub(super) fn varint(&self) -> Result<u64, ProtoError> {
        match self {
            Self::Varint(n) => Ok(*n),
            Self::Fixed32(bytes) => Ok(u64::from(u32::from_le_bytes(*bytes))),
            _ => Err(ProtoError::Malformed("a varint was expected")),
        }
    }

    pub(super) fn double(&self) -> Result<f64, ProtoError> {
        match self {
            Self::Fixed64(bytes) => Ok(f64::from_le_bytes(*bytes)),
            _ => Err(ProtoError::Malformed("a double was expected")),
        }
    }
}

/// Reads the fields of a message one by one.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Malformed("a field number is too large"))?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(
                self.take(8)?
                    .try_into()
                    .map_err(|_| ProtoError::Malformed("cut short"))?,
            ),
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_err(|_| ProtoError::Malformed("a length is too large"))?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(
                self.take(4)?
                    .try_into()
                    .map_err(|_| ProtoError::Malformed("cut short"))?,
            ),
            _ => return Err(ProtoError::Malformed("unknown wire type")),
        };
        Ok(Some((number, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtoError> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(ProtoError::Malformed("cut short"))?;
        self.rest = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtoError::Malformed("a varint is too long"))
    }
}

/// The numbers of a packed list.
pub(super) fn packed(bytes: &[u8]) -> Result<Vec<u64>, ProtoError> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    while !reader.rest.is_empty() {
        all.push(reader.varint()?);
    }
    Ok(all)
}

/// Writes the fields of a message.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn starting_with(bytes: &[u8]) -> Self {
        Self { out: bytes.to_vec() }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn raw_varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.out.push(u8::try_from(n & 0x7f).unwrap_or(0) | 0x80);
            n >>= 7;
        }
        self.out.push(u8::try_from(n).unwrap_or(0));
    }

    pub(crate) fn varint(&mut self, number: u32, n: u64) {
        self.raw_varint(u64::from(number) << 3);
        self.raw_varint(n);
    }

    pub(crate) fn double(&mut self, number: u32, n: f64) {
        self.raw_varint(u64::from(number) << 3 | 1);
        self.out.extend(n.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.raw_varint(u64::from(number) << 3 | 2);
        self.raw_varint(bytes.len() as u64);
        self.out.extend(bytes);
    }
}
