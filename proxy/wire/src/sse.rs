//! Server-sent events, as the WHATWG HTML standard frames them (§9.2.6 “Interpreting an event stream”), for the subset
//! that the OpenAI API uses: `data` lines. Comments, ids, event names and retry times of an upstream are dropped here,
//! so they never reach a client. Of names only `error` means something; and some servers write a field `error` in place of `data`.

use bytes::Bytes;

use crate::json::Write;

/// A comment, which clients pass over.
pub const COMMENT: &str = ": keep-alive\n\n";

/// The event after which nothing more comes.
pub const DONE: &str = "data: [DONE]\n\n";

/// `data: {…}` and an empty line. JSON text has no raw line break, so one line is enough.
#[must_use]
pub fn data(json: &impl Write) -> Bytes {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"data: ");
    json.write(&mut out);
    out.extend_from_slice(b"\n\n");
    Bytes::from(out)
}

/// A comment line, which keeps a connection open or names something for a person who reads along.
#[must_use]
pub fn comment(text: &str) -> Bytes {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Bytes::from(format!(": {line}\n\n"))
}

/// One event grew larger than the decoder's bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {limit} bytes")]
pub struct EventTooLarge {
    /// The bound, in bytes.
    pub limit: usize,
}

/// What one event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its `data`.
    pub data: Vec<u8>,
    /// It says that something went wrong, by its name or its field.
    pub is_error: bool,
}

/// Bytes in pieces of any size → events.
#[derive(Debug)]
pub struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    is_error: bool,
    after_cr: bool,
    limit: usize,
}

impl Decoder {
    /// `limit` bounds the bytes of one line and the data of one event.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { line: Vec::new(), data: Vec::new(), has_data: false, is_error: false, after_cr: false, limit }
    }

    /// Takes the next piece and appends every event that it completes to `events`.
    ///
    /// # Errors
    /// [`EventTooLarge`]; the decoder is of no use afterwards.
    pub fn push(&mut self, piece: &[u8], events: &mut Vec<Event>) -> Result<(), EventTooLarge> {
        for &byte in piece {
            let follows_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => self.end_line(events)?,
                _ if self.line.len() >= self.limit => return Err(EventTooLarge { limit: self.limit }),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// True between events: no event has been begun that is not complete.
    #[must_use]
    pub fn is_between_events(&self) -> bool {
        self.line.is_empty() && !self.has_data
    }

    fn end_line(&mut self, events: &mut Vec<Event>) -> Result<(), EventTooLarge> {
        if self.line.is_empty() {
            let is_error = std::mem::take(&mut self.is_error);
            if std::mem::take(&mut self.has_data) || is_error {
                events.push(Event { data: std::mem::take(&mut self.data), is_error });
            }
            return Ok(());
        }
        let line = std::mem::take(&mut self.line);
        let Some(data) = value(&line, b"data") else {
            if let Some(name) = value(&line, b"event") {
                self.is_error = name == b"error";
            } else if let Some(error) = value(&line, b"error") {
                events.push(Event { data: error.to_vec(), is_error: true });
            }
            return Ok(());
        };
        if self.data.len() + data.len() >= self.limit {
            return Err(EventTooLarge { limit: self.limit });
        }
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(data);
        self.has_data = true;
        Ok(())
    }
}

/// The value of a line, if its field is that one.
fn value<'a>(line: &'a [u8], field: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(field)? {
        b"" => Some(b""),
        [b':', b' ', rest @ ..] | [b':', rest @ ..] => Some(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::json::json;
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::new(1000);
        let mut events = Vec::new();
        for piece in pieces {
            decoder.push(piece, &mut events).unwrap();
        }
        events.into_iter().map(|event| String::from_utf8(event.data).unwrap()).collect()
    }

    #[test]
    fn reads_data_and_drops_the_rest() {
        let stream =
            b": hello\nid: 7\nevent: x\nretry: 10\ndata: {\"a\":1}\n\ndata:two\r\ndata\r\n\r\n\ndata: [DONE]\n\n";
        assert_eq!(decode(&[stream]), ["{\"a\":1}", "two\n", "[DONE]"]);
    }

    #[test]
    fn errors_are_told_from_data_in_their_order() {
        let stream = b"event: message\ndata: 1\n\nevent: error\ndata: 2\n\ndata: 3\n\nerror: {4}\nevent:error\n\ndata: errors: 5\n\n";
        let mut events = Vec::new();
        Decoder::new(100).push(stream, &mut events).unwrap();
        let told: Vec<_> = events.iter().map(|event| (event.data.as_slice(), event.is_error)).collect();
        let expected: [(&[u8], bool); 6] =
            [(b"1", false), (b"2", true), (b"3", false), (b"{4}", true), (b"", true), (b"errors: 5", false)];
        assert_eq!(told, expected);
    }

    #[test]
    fn an_event_that_was_not_ended_is_not_given_out() {
        let mut decoder = Decoder::new(100);
        let mut events = Vec::new();
        decoder.push(b"data: {\"a\":", &mut events).unwrap();
        assert!(events.is_empty() && !decoder.is_between_events());
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut decoder = Decoder::new(64);
        let mut events = Vec::new();
        assert_eq!(decoder.push(&[b'x'; 65], &mut events), Err(EventTooLarge { limit: 64 }));
        let mut decoder = Decoder::new(64);
        assert!(decoder.push("data: 0123456789\n".repeat(9).as_bytes(), &mut events).is_err());
    }

    #[test]
    fn what_we_write_we_read() {
        let value = json!({"text": "line\nbreak \u{2028} and \"quotes\""});
        let read = decode(&[&data(&value), &comment("a\nb"), DONE.as_bytes()]);
        assert_eq!(read, [value.to_string(), "[DONE]".into()]);
    }

    proptest! {
        #[test]
        fn where_the_pieces_are_cut_does_not_matter(cuts in proptest::collection::vec(0usize..80, 0..10)) {
            let stream = b"data: one\r\n\r\n: c\n\ndata: two\ndata: three\n\rdata: four\n\n".as_slice();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&pieces), decode(&[stream]));
        }
    }
}
